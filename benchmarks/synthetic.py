"""Batches as the loader makes them, made up: what the benchmarks of the training step share."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import open_clip
import torch

import medpclip
from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.config import DataConfig
from medpclip.data.loading.loader import Batch
from medpclip.data.loading.texts import TextSampling
from medpclip.data.loading.windows import CutWindows, WindowSpec
from medpclip.distributed import World
from medpclip.models import ModelConfig, Prompts, RegionCLIP
from medpclip.models.preprocess import Preprocess
from medpclip.train.config import TrainConfig
from medpclip.train.step import StepInputs, prepare

# Every image text is its caption and every region text its term, so that how many there are is known beforehand.
_EXACT = TextSampling(budget=100_000, synonyms=0.0, descriptions=0.0, attributes=0.0, captions=1.0)


def make_config(model: ModelConfig, **settings: Any) -> TrainConfig:
    """A run on batches that are made up."""
    data = DataConfig([Path("none")], workers=0, texts=_EXACT)
    return TrainConfig(out=Path("none"), data=data, model=model, **settings)


def make_batch(preprocess: Preprocess, mask_grid: int, size: int, regions: int, captions: int, terms: int,
               first: int = 0, window: WindowSpec | None = None) -> Batch:  # fmt: skip
    """Random pictures whose regions all have a box and a click, every other one a mask.

    Args:
        preprocess: the model's.
        mask_grid: the model's.
        size: how many images.
        regions: of each image; with 0 there is one prompt for each all the same, which is padding.
        captions: the images' captions are so many different ones.
        terms: the regions' terms likewise.
        first: number of the first image in its step.
        window: what the model wants to see of each region at the picture's own resolution.
    """
    draw = torch.Generator().manual_seed(first)
    side = preprocess.image_size
    slots = max(1, regions)
    prompts = Prompts.empty(size, slots, 4, mask_grid)
    if regions:
        corner = torch.rand(size, slots, 2, generator=draw) * 0.6
        prompts.boxes, prompts.box_valid = torch.cat([corner, corner + 0.3], -1), torch.ones(size, slots).bool()
        prompts.points[:, :, 0], prompts.point_labels[:, :, 0] = corner + 0.15, 1
        blobs = torch.rand(size, slots, mask_grid // 4, mask_grid // 4, generator=draw) > 0.8
        prompts.masks = blobs.repeat_interleave(4, 2).repeat_interleave(4, 3).to(prompts.masks.dtype)
        prompts.mask_valid[:, ::2] = True
        prompts.masks[:, 1::2] = 0
    windows = None
    if window is not None:
        squares = torch.randint(256, (size, slots, window.size, window.size, 3), dtype=torch.uint8, generator=draw)
        windows = CutWindows(squares, prompts.boxes.clone())
    names = sorted(Lexicon.load().terms)[:terms]
    numbers = range(first, first + size)
    return Batch(
        images=torch.randint(256, (size, side, side, 3), dtype=torch.uint8, generator=draw),
        colours=torch.tensor([[1.0, 0.0]]).repeat(size, 1),
        prompts=vars(prompts),
        image_facts=[{"modality": ("ultrasound",), "caption": (f"picture number {n % captions}",)} for n in numbers],
        region_facts=[[{"term": (names[(n * regions + r) % terms],)} for r in range(regions)] for n in numbers],
        keys=[f"{n:08x}" for n in numbers],
        windows=windows,
    )


def make_inputs(model: RegionCLIP, config: TrainConfig, world: World, micros: int, size: int, regions: int,
                captions: int, terms: int) -> StepInputs:  # fmt: skip
    """A rank's part of a step, as `prepare` makes it of `micros` batches of `size` images."""
    places = [(micro * world.size + world.rank) * size for micro in range(micros)]
    shape = (size, regions, captions, terms)
    batches = [
        make_batch(model.preprocess, model.mask_grid, *shape, first=place, window=model.fusion.window)
        for place in places
    ]
    return prepare(batches, Lexicon.load(), model, config, 0, world)


def machine(device: torch.device) -> dict[str, Any]:
    """What figures were measured with."""
    out = {
        "machine": processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "medpclip": medpclip.__version__,
    }
    if device.type == "cuda":
        out["cuda"] = torch.version.cuda
    return out


def processor() -> str:
    """The CPU's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
