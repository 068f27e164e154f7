"""What two ranks get done, against twice what one does: each rank has one CPU core, ranks talk by gloo.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --batch 32 --precision bf16 --micros 2

The training loop's step (`prepare`, `run_step`, the engine's step) on batches that are made up. Two ranks take twice the
images, twice the texts and twice the terms in a step. All is measured in the same two processes in turn; ratios are of
medians over rounds:

* one: rank 0 by itself, local engine, while the other waits;
* apart: both ranks at once, each by itself, nothing exchanged: what the machine itself loses with both cores busy;
* local, zero1: both ranks together, by the local engine and by DeepSpeed's ZeRO stage 1.

The model has ViT-B/16's width, 12 heads and 224 pixels, but 2 blocks (a text tower of 2 blocks and width 256), so that
rounds are short. That makes exchange dear: ViT-B/16 has several times the work for each byte of gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from synthetic import machine, make_batch, make_config

import medpclip  # noqa: F401 (mends CPU builds of torchvision)
from medpclip.data.lexicon import Lexicon
from medpclip.distributed import World, join
from medpclip.distributed.world import leave
from medpclip.models import ModelConfig
from medpclip.models.load import build_model
from medpclip.train.config import EngineConfig
from medpclip.train.engines import Engine
from medpclip.train.start import make_engine
from medpclip.train.step import prepare, run_step

ARCHITECTURE = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "patch_size": 16, "width": 768, "layers": 2, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 2},
}
RATE = 1e-5
CPU = torch.device("cpu")
ALONE = World()


def main() -> None:
    """Print one JSON object."""
    args = _arguments()
    if "RANK" in os.environ:
        one_rank(args)
        return
    with socket.socket() as s, TemporaryDirectory() as folder:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        s.close()
        trunk = Path(folder) / "two-blocks-16.json"
        trunk.write_text(json.dumps(ARCHITECTURE))
        command = [sys.executable, __file__, *sys.argv[1:], *([] if args.trunk else ["--trunk", str(trunk)])]
        processes = []
        for rank in range(2):
            own = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
            environment = os.environ | {name: str(value) for name, value in own.items()}
            environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
            processes.append(subprocess.Popen(command, env=environment))
        try:
            if any([process.wait() for process in processes]):
                sys.exit("ranks.py: a rank failed; see above")
        finally:
            for process in processes:
                process.kill()


def one_rank(args: argparse.Namespace) -> None:
    """Take turns with the other rank; rank 0 prints."""
    cores = sorted(os.sched_getaffinity(0))
    core = cores[int(os.environ["RANK"]) % len(cores)]
    os.sched_setaffinity(0, {core})  # threads begun from here on, gloo's too, stay there
    torch.set_num_threads(1)
    world = join(CPU)
    alone = Way(args, ALONE, "local")
    ways = {"one": alone, "apart": alone, "local": Way(args, world, "local"), "zero1": Way(args, world, "deepspeed")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, way in ways.items():
            world.barrier()
            began = time.perf_counter()
            if name != "one" or world.is_first:
                way.step(number)
            own = time.perf_counter() - began
            slowest = max(world.gather(own))
            if number:
                seconds[name].append(own if name == "one" else slowest)
    if world.is_first:
        report(args, seconds, alone)
    leave()


class Way:
    """An engine of its own, and this rank's batches."""

    def __init__(self, args: argparse.Namespace, world: World, kind: str) -> None:
        torch.manual_seed(0)
        model_config = ModelConfig(args.trunk)
        model, size = build_model(model_config), args.batch * world.size
        self.parameters = sum(p.numel() for p in model.parameters())
        self.config = make_config(
            model_config, batch_size=size * args.micros, micro_batch_size=args.batch, precision=args.precision,
            engine=EngineConfig(kind, 1),
        )  # fmt: skip
        self.world, self.lexicon = world, Lexicon.load()
        self.engine: Engine = make_engine(model, self.config, world, CPU)
        shape = (args.batch, args.regions, size * args.micros, args.terms * world.size)
        places = [(micro * world.size + world.rank) * args.batch for micro in range(args.micros)]
        own, window = (model.preprocess, model.mask_grid), model.fusion.window
        self.batches = [make_batch(*own, *shape, first=place, window=window) for place in places]

    def step(self, number: int) -> None:
        inputs = prepare(self.batches, self.lexicon, self.engine.model, self.config, number, self.world)
        run_step(self.engine, inputs, self.config.loss, self.world)
        self.engine.step(RATE)


def report(args: argparse.Namespace, seconds: dict[str, list[float]], alone: Way) -> None:
    """Print what rank 0 knows."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: [one / value for one, value in zip(seconds["one"], seconds[name], strict=True)] for name in median}
    out = {
        "trunk": Path(args.trunk).stem, "parameters": alone.parameters, "precision": args.precision,
        "images of a rank": args.batch * args.micros, "micro-batches": args.micros, "regions per image": args.regions,
        "texts of a rank": args.batch * args.micros + args.terms,
        "seconds": {name: round(value, 3) for name, value in median.items()},
        **{
            f"{name} / 2 x one": round(median["one"] / median[name], 3) for name in ("apart", "local", "zero1")
        },
        **{f"{name} / apart": round(median["apart"] / median[name], 3) for name in ("local", "zero1")},
        "lowest and highest round": {
            name: [round(min(values), 3), round(max(values), 3)] for name, values in ratios.items() if name != "one"
        },
        "rounds": args.rounds, **machine(CPU), "cores": 2,
    }  # fmt: skip
    print(json.dumps(out, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", help="another architecture than the one above")
    parser.add_argument("--batch", type=int, default=16, help="images of a micro-batch of a rank")
    parser.add_argument("--micros", type=int, default=1)
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--terms", type=int, default=8, help="region texts of a rank")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
