"""What a training step with regions costs: against open_clip's step on images and texts, and against one pass a region.

    python benchmarks/train_step.py --precision bf16
    python benchmarks/train_step.py --trunk ViT-L-14 --device cuda --batch 128 --precision bf16

A whole optimizer step each: forward, contrast over the batch, backward, AdamW. Ours is the training loop's own
(`run_step` and the local engine) on inputs as `prepare` makes them; the other is open_clip's model and ClipLoss as
open_clip_train uses them (no clipping, no accumulation). Trunk, text tower, first weights, images, precision and AdamW
are the same. Ways take turns in one process; ratios are of medians.

How many texts a step encodes matters on a small batch, so there are two comparisons. "equal texts": a text for each
image, as open_clip has; ours are half captions, half terms of regions. "more texts": a caption for each image and
--terms terms of regions besides.

One pass a region: each region as an image of its own (a crop) through the trunk, forward and backward; the texts'
tower and AdamW aren't even counted. A pass of --batch crops is timed, and multiplied.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from synthetic import machine, make_config, make_inputs

import medpclip  # noqa: F401 (mends CPU builds of torchvision)
from medpclip.distributed import World
from medpclip.models import FusionConfig, ModelConfig, RegionCLIP
from medpclip.models.fusions import FUSION_KINDS
from medpclip.models.load import build_model
from medpclip.train.config import EngineConfig, TrainConfig
from medpclip.train.engines.local import LocalEngine
from medpclip.train.flops import count_flops
from medpclip.train.optimizer import make_optimizer
from medpclip.train.peak import peak_flops
from medpclip.train.step import StepInputs, run_step

RATE = 1e-5


class Ours:
    """A step of the training loop."""

    def __init__(self, engine: LocalEngine, inputs: StepInputs, config: TrainConfig) -> None:
        self.engine, self.inputs, self.config = engine, inputs, config

    def __call__(self) -> None:
        run_step(self.engine, self.inputs, self.config.loss, World())
        self.engine.step(RATE)


class OpenClip:
    """A step as open_clip_train takes it: pixels are ready, one text for each image."""

    def __init__(self, clip: open_clip.CLIP, model: RegionCLIP, config: TrainConfig, batch: int, device: str) -> None:
        self.clip, self.device, self.low = clip.to(device).train(), device, config.precision == "bf16"
        self.optimizer = make_optimizer(self.clip, config.optimizer)
        side = model.preprocess.image_size
        self.pixels = torch.randn(batch, 3, side, side, device=device)
        self.texts = model.tokenizer([f"picture number {n}" for n in range(batch)]).to(device)
        self.loss = open_clip.ClipLoss()

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device, torch.bfloat16) if self.low else contextlib.nullcontext()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.loss(*self.clip(self.pixels, self.texts))
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0, 4.6052)

    def crops(self) -> None:
        """Forward and backward of as many crops as there are images."""
        with self.autocast():
            image = self.clip.encode_image(self.pixels, normalize=True)
        (image * self.pixels[:, 0, 0, :1]).sum().backward()
        self.optimizer.zero_grad()


def main() -> None:
    """Print one JSON object."""
    args = _arguments()
    device = torch.device(args.device)
    torch.manual_seed(0)
    model_config = ModelConfig(trunk=args.trunk, fusion=FusionConfig(args.fusion, glimpse=args.glimpse))
    engine_config = EngineConfig(activation_checkpointing=args.activation_checkpointing, compile=args.compile)
    config = make_config(model_config, batch_size=args.batch, precision=args.precision, engine=engine_config)
    model = build_model(model_config)
    flops = count_flops(model)
    clip = copy.deepcopy(model.clip)
    if args.activation_checkpointing:
        clip.set_grad_checkpointing()
    baseline = OpenClip(torch.compile(clip) if args.compile else clip, model, config, args.batch, args.device)
    engine = LocalEngine(model, config, World(), device)

    def ours(regions: int, captions: int, terms: int) -> Ours:
        inputs = make_inputs(model, config, World(), 1, args.batch, regions, captions, terms)
        assert len(inputs.texts) == captions + (terms if regions else 0)
        return Ours(engine, inputs, config)

    half = args.batch // 2
    ways: dict[str, Callable[[], None]] = {
        "open_clip": baseline,
        "ours, no regions": ours(0, args.batch, 1),
        "ours, equal texts": ours(args.regions, args.batch - half, half),
        "ours, more texts": ours(args.regions, args.batch, args.terms),
        "crops": baseline.crops,
    }
    seconds, memory = measure(ways, args.rounds, device)
    plain = seconds["open_clip"]
    peak = peak_flops(device, args.precision)
    per_image = args.batch * args.regions
    work = {
        "open_clip": flops.step(args.batch, 0, args.batch),
        "ours, no regions": flops.step(args.batch, 0, args.batch),
        "ours, equal texts": flops.step(args.batch, per_image, args.batch),
        "ours, more texts": flops.step(args.batch, per_image, args.batch + args.terms),
    }
    report = {
        "trunk": args.trunk, "fusion": args.fusion, "glimpse": args.glimpse, "precision": args.precision,
        "batch": args.batch, "regions per image": args.regions, "texts": {"equal": args.batch, "more": args.batch + args.terms},
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "ours, no regions / open_clip": round(seconds["ours, no regions"] / plain, 3),
        "ours / open_clip, equal texts": round(seconds["ours, equal texts"] / plain, 3),
        "ours / open_clip, more texts": round(seconds["ours, more texts"] / plain, 3),
        "FLOPs, ours / open_clip, equal texts": round(work["ours, equal texts"] / work["open_clip"], 3),
        "images/s": {name: round(args.batch / seconds[name], 2) for name in work},
        "MFU": {name: round(value / seconds[name] / peak.flops, 3) for name, value in work.items()},
        "peak TFLOP/s": [round(peak.flops / 1e12, 3), peak.source],
        "region-text pairs/s": round(per_image / seconds["ours, equal texts"], 1),
        "region-text pairs/s, a pass for each": round(args.batch / seconds["crops"], 1),
        "a pass for each / one pass": round(seconds["crops"] * args.regions / seconds["ours, equal texts"], 2),
        "rounds": args.rounds, **machine(device),
    }  # fmt: skip
    if memory:
        report["peak GiB"] = {name: round(value / 2**30, 2) for name, value in memory.items()}
    print(json.dumps(report, indent=2))


def measure(
    ways: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds of each way, and on a GPU its peak memory; weights and states of both models are in all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            began = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                memory[name] = torch.cuda.max_memory_allocated(device)
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}, memory


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", default="ViT-B-16")
    parser.add_argument("--fusion", default="region_tokens", choices=FUSION_KINDS)
    parser.add_argument("--glimpse", type=int, default=0, help="patches each way, of region_tokens")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--regions", type=int, default=16, help="of each image")
    parser.add_argument("--terms", type=int, default=16, help="region texts of 'more texts'")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--activation-checkpointing", action="store_true", help="of both")
    parser.add_argument("--compile", action="store_true", help="both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
