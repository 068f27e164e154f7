"""Peak memory of a step of a large effective batch, against that of one micro-batch alone.

    python benchmarks/memory.py
    python benchmarks/memory.py --trunk ViT-B-16 --device cuda --precision bf16

The training loop's own step, optimizer included, on batches as the loader makes them. Each size has a process of its own.
It first takes a step of one micro-batch, so that gradients' and the optimizer's memory is there, then the step that is
measured: on the CPU the kernel's high-water mark of the process (VmHWM, from the start of that step), on a GPU PyTorch's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from synthetic import machine, make_batch, make_config, make_inputs

import medpclip  # noqa: F401 (mends CPU builds of torchvision)
from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import Batch
from medpclip.distributed import World
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import build_model
from medpclip.train.engines.local import LocalEngine
from medpclip.train.step import StepInputs, prepare, run_step

RATE = 1e-5


def main() -> None:
    """Print one JSON object: peaks in MiB, their ratio, and what belongs to the large step alone."""
    args = _arguments()
    if args.only:
        print(json.dumps(one_size(args, args.only)))
        return
    small, large = (_in_own_process(size) for size in (args.micro, args.batch))
    base = small["before"]
    report = {
        "trunk": args.trunk, "precision": args.precision, "micro-batch": args.micro, "batch": args.batch,
        "regions per image": args.regions,
        "large / small": round(large["peak"] / small["peak"], 3),
        "the same without what the process has before the model": round(
            (large["peak"] - base) / (small["peak"] - base), 3
        ),
        "small": _mebibytes(small), "large": _mebibytes(large), **machine(torch.device(args.device)),
    }  # fmt: skip
    print(json.dumps(report, indent=2))


def one_size(args: argparse.Namespace, size: int) -> dict[str, Any]:
    """Bytes at the peak of a step of `size` images, and of what is kept of all of them; seconds."""
    device = torch.device(args.device)
    before = _high_water(device)
    torch.manual_seed(0)
    model_config = ModelConfig(args.trunk, image_size=args.image_size, fusion=FusionConfig(prompt_dim=args.prompt_dim))
    model = build_model(model_config)
    config = make_config(model_config, batch_size=size, micro_batch_size=args.micro, precision=args.precision)
    engine = LocalEngine(model, config, World(), device)

    def step(inputs: StepInputs) -> None:
        run_step(engine, inputs, config.loss, World())
        engine.step(RATE)

    step(make_inputs(model, config, World(), 1, args.micro, args.regions, args.micro, args.terms))
    _reset(device)
    began = time.perf_counter()
    shape = (args.micro, args.regions, size, args.terms)
    own = (model.preprocess, model.mask_grid)
    starts = range(0, size, args.micro)
    batches = [make_batch(*own, *shape, first=start, window=model.fusion.window) for start in starts]
    inputs = prepare(batches, Lexicon.load(), model, config, 1, World())
    step(inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {
        "before": before,
        "peak": _high_water(device),
        "seconds": round(time.perf_counter() - began, 1),
        **_parts(batches, inputs, model.output_dim),
    }


def _parts(batches: list[Batch], inputs: StepInputs, width: int) -> dict[str, int]:
    regions = sum(len(micro.regions) for micro in inputs.micros)
    vectors = sum(len(micro.images) + len(micro.text) for micro in inputs.micros) + regions
    return {
        "images": sum(batch.images.nbytes for batch in batches),
        "mask prompts": sum(batch.prompts["masks"].nbytes for batch in batches),
        "other prompts": sum(
            value.nbytes for batch in batches for name, value in batch.prompts.items() if name != "masks"
        ),
        "tokens": sum(micro.text.nbytes for micro in inputs.micros),
        "targets": inputs.image_targets.nbytes + inputs.region_targets.nbytes,
        "embeddings": 4 * width * vectors,
        "gradients of embeddings": 4 * width * vectors,
        "logits at once, at most": 4
        * min(1 << 22, max(t.numel() for t in (inputs.image_targets, inputs.region_targets))),
    }


def _mebibytes(values: dict[str, Any]) -> dict[str, float]:
    return {name: value if name == "seconds" else round(value / 2**20, 1) for name, value in values.items()}


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the high-water mark begins anew


def _high_water(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _in_own_process(size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--only", str(size)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", default="ViT-B-32")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--prompt-dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--micro", type=int, default=64)
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--terms", type=int, default=128)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
