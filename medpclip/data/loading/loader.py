"""From shards to training batches: which samples in which order, and one image with its regions as tensors.

The order is a full permutation per epoch and a pure function of (seed, epoch); every random choice for a sample is a
pure function of (seed, epoch, sample). So the batches don't depend on the number of workers, and a run continues at
exactly the next batch from the batch's number alone.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import PromptSampling, RegionPrompt, sample_prompt, stack, visible
from medpclip.data.loading.texts import Facts, TextSampling, image_facts, region_facts
from medpclip.data.schema import Region, Sample
from medpclip.data.shards import ShardFolder
from medpclip.errors import MedpclipError

_ORDER, _SAMPLES = 0, 1  # what a random stream is for: a part of its seed, so that no two are alike


@dataclass
class Augmentation:
    """Random changes to training images (our design). No flips: left and right mean something.

    Attributes:
        zoom: the window's side is the whole image's times a uniform draw from this range.
        shift: the window moves by up to this share of its side, each way.
        brightness, contrast: each changes by a uniform draw of up to this share.
    """

    zoom: tuple[float, float] = (0.8, 1.1)
    shift: float = 0.08
    brightness: float = 0.2
    contrast: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"'zoom' is {list(self.zoom)}, expected [low, high] with 0 < low <= high")


@dataclass
class DataConfig:
    """What a run trains on.

    Attributes:
        shards: folders of shards; their samples are joined.
        split: which split of them.
        regions_per_image: at most so many regions of an image, drawn anew each epoch.
        balance: draw an image's regions evenly over its categories.
        workers: loader processes; 0 decodes in the training process.
    """

    shards: list[Path]
    split: str = "train"
    regions_per_image: int = 8
    balance: bool = True
    workers: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)
    prompts: PromptSampling = field(default_factory=PromptSampling)
    texts: TextSampling = field(default_factory=TextSampling)

    def __post_init__(self) -> None:
        if self.workers < 0 or self.regions_per_image < 1:
            raise ValueError("expected 'workers' of at least 0 and 'regions_per_image' of at least 1")


@dataclass
class Batch:
    """Attributes:
    images: (B, S, S, 3) uint8.
    prompts: the arrays of `prompting.stack`, as tensors, for B images and R regions each.
    image_facts: what is known of each image.
    region_facts: what is known of each image's regions, up to R of them; the rest is padding.
    keys: the samples' keys.
    """

    images: Tensor
    prompts: dict[str, Tensor]
    image_facts: list[Facts]
    region_facts: list[list[Facts]]
    keys: list[str]


class RegionDataset(Dataset[Any]):
    """Training examples by (epoch, index).

    Args:
        config: what to read and how to draw from it.
        image_size: side of the images, in pixels.
        mask_grid: side of the grid for mask prompts.
        fill: the padding's colour.
        seed: of all draws.

    Raises:
        MedpclipError: no shards, no such split, or no regions in it.
    """

    def __init__(self, config: DataConfig, image_size: int, mask_grid: int, fill: tuple[int, ...], seed: int) -> None:
        if not config.shards:
            raise MedpclipError("key 'data.shards' is empty; name at least one folder of shards")
        self.config, self.image_size, self.mask_grid, self.fill, self.seed = config, image_size, mask_grid, fill, seed
        self.folders = [ShardFolder(folder, config.split) for folder in config.shards]
        self.starts = np.cumsum([0, *map(len, self.folders)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, index = item
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        folder, row = self.folders[number], int(index - self.starts[number])
        rng = np.random.default_rng((self.seed, _SAMPLES, epoch, index))
        sample, image = folder.sample(row), folder.image(row)
        if image.shape[:2] != (sample.height, sample.width):
            raise MedpclipError(f"{folder.where(row)}: the image is {image.shape[1]}x{image.shape[0]}, its JSON says "
                                f"{sample.width}x{sample.height}; rebuild the shard")  # fmt: skip
        window = draw_window(sample, self.config.augmentation, rng)
        regions = self._draw_regions([r for r in sample.regions if not r.iscrowd and visible(r, window)], rng)
        return {
            "image": recolour(window.image(image, self.image_size, self.fill), self.config.augmentation, rng),
            "prompts": [sample_prompt(r, window, self.mask_grid, self.config.prompts, rng) for r in regions],
            "image_facts": image_facts(sample),
            "region_facts": [region_facts(r, sample, window) for r in regions],
            "key": sample.key,
        }

    def _draw_regions(self, regions: list[Region], rng: np.random.Generator) -> list[Region]:
        """Up to `regions_per_image`, in random order; balanced: one of each category by turns."""
        order = [regions[i] for i in rng.permutation(len(regions))]
        if self.config.balance:
            seen: Counter[str] = Counter()
            turns = []
            for region in order:
                turns.append(seen[region.category])
                seen[region.category] += 1
            order = [order[i] for i in np.argsort(turns, kind="stable")]
        return order[: self.config.regions_per_image]


def draw_window(sample: Sample, augmentation: Augmentation, rng: np.random.Generator) -> Window:
    """The whole image, zoomed and shifted a little."""
    whole = Window.whole(sample.width, sample.height)
    side = max(1, round(whole.side * rng.uniform(*augmentation.zoom)))
    dx, dy = rng.uniform(-augmentation.shift, augmentation.shift, 2) * side
    centre = (whole.side - side) / 2
    return Window(round(whole.left + centre + dx), round(whole.top + centre + dy), side)


def recolour(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Brightness and contrast of a uint8 image, by one look-up table."""
    gain = 1 + rng.uniform(-augmentation.contrast, augmentation.contrast)
    offset = 255 * rng.uniform(-augmentation.brightness, augmentation.brightness)
    table = np.clip((np.arange(256) - 127.5) * gain + 127.5 + offset, 0, 255).astype(np.uint8)
    return table[image]


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) from batch number `start` on, without end; an epoch's last partial batch is dropped."""

    def __init__(self, samples: int, batch_size: int, seed: int, start: int = 0) -> None:
        if samples < batch_size:
            raise MedpclipError(
                f"key 'batch_size' is {batch_size}, but the shards hold only {samples} samples of the split; lower it"
            )
        self.samples, self.batch_size, self.seed, self.start = samples, batch_size, seed, start
        self.per_epoch = samples // batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.start
        while True:
            epoch, first = divmod(number, self.per_epoch)
            order = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(self.samples)
            for place in range(first, self.per_epoch):
                chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
                yield [(epoch, int(i)) for i in chosen]
            number = (epoch + 1) * self.per_epoch


def make_loader(dataset: RegionDataset, batch_size: int, start: int = 0) -> Iterator[Batch]:
    """Batches without end, beginning with batch number `start`; the workers start at once.

    Raises:
        MedpclipError: fewer samples than a batch; while iterating: the first unusable sample, naming shard and key.
    """
    workers = dataset.config.workers
    leaving = multiprocessing.get_context("fork").Event()
    loader: DataLoader[Batch | MedpclipError] = DataLoader(
        _ErrorsAsValues(dataset),
        batch_sampler=BatchOrder(len(dataset), batch_size, dataset.seed, start),
        num_workers=workers,
        collate_fn=Collate(dataset.mask_grid, dataset.config),
        prefetch_factor=4 if workers else None,
        worker_init_fn=partial(_start_worker, leaving=leaving),
        multiprocessing_context="fork" if workers else None,
    )
    batches = map(_raise_error, iter(loader))
    atexit.register(leaving.set)  # after torch's own registration, hence called before it
    return batches


class _ErrorsAsValues(Dataset[Any]):
    """Hands on what is wrong with a sample: raised in a worker, torch would make its message a traceback."""

    def __init__(self, dataset: RegionDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any] | MedpclipError:
        try:
            return self.dataset[item]
        except MedpclipError as error:
            return error


def _raise_error(batch: Batch | MedpclipError) -> Batch:
    if isinstance(batch, MedpclipError):
        try:
            raise batch
        finally:
            del batch  # else error and frame hold each other, and the workers live on until the garbage is collected
    return batch


@dataclass
class Collate:
    """Joins examples into a `Batch` of fixed sizes, so that all ranks' tensors agree; or hands on their first error."""

    mask_grid: int
    config: DataConfig

    def __call__(self, given: Sequence[dict[str, Any] | MedpclipError]) -> Batch | MedpclipError:
        examples: list[dict[str, Any]] = []
        for example in given:
            if isinstance(example, MedpclipError):
                return example
            examples.append(example)
        prompts: list[list[RegionPrompt]] = [e["prompts"] for e in examples]
        points = self.config.prompts.max_points + 1
        arrays = stack(prompts, self.mask_grid, self.config.regions_per_image, points)
        return Batch(
            images=torch.from_numpy(np.stack([e["image"] for e in examples])),
            prompts={name: torch.from_numpy(array) for name, array in arrays.items()},
            image_facts=[e["image_facts"] for e in examples],
            region_facts=[e["region_facts"] for e in examples],
            keys=[e["key"] for e in examples],
        )


def _start_worker(worker: int, leaving: Event) -> None:
    """Set up a worker process; `leaving` is set when the main process ends, by a bug perhaps, and wants it gone."""
    torch.set_num_threads(1)

    def leave_if_asked(number: int, frame: FrameType | None) -> None:
        if leaving.is_set():
            os._exit(0)

    # A scheduler signals all processes of a job: the main one saves and ends, and must not find its workers dead.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, leave_if_asked)
