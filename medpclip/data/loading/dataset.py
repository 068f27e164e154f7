"""The indexed reader: any sample of local shards at once, so in any order."""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from medpclip.data.loading.batch import Batch, BatchBuilder, Record, UnreadableSampleError
from medpclip.data.loading.config import DataConfig
from medpclip.data.loading.draws import stream_keys
from medpclip.data.loading.left_out import check_left_out
from medpclip.data.loading.order import EpochPlan, Item
from medpclip.data.loading.windows import WindowSpec
from medpclip.data.mixture import read_mixture
from medpclip.data.shards import ShardFolder
from medpclip.errors import MedpclipError

_SAMPLES = 1  # what a random stream is for; 0 and 3 are order, 2 texts


@dataclass(frozen=True)
class Source:
    """A folder of shards and how often an epoch has each of its samples."""

    folder: Path
    weight: float


def data_sources(config: DataConfig) -> list[Source]:
    """The folders that a run trains on, mixtures taken apart.

    Raises:
        MedpclipError: no folder, one that holds no shards, a weight for a folder that isn't among them, or a term to
            leave out that none of them has.
    """
    if not config.shards:
        raise MedpclipError("key 'data.shards' is empty; name at least one folder of shards")
    found = [entry for folder in config.shards for entry in read_mixture(Path(folder))]
    names = [folder.name for folder, _ in found]
    for key, given in (("weights", config.weights), ("urls", config.urls)):
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1) or sorted(set(names))[:3]
                raise MedpclipError(
                    f"key 'data.{key}.{name}' names no folder of data.shards; there is {', '.join(near)}"
                )
            if names.count(name) > 1:
                raise MedpclipError(f"key 'data.{key}.{name}' fits several folders of data.shards; rename all but one")
    check_left_out(config.leave_out_terms, (folder for folder, _ in found), config.split)
    return [Source(folder, config.weights.get(folder.name, weight)) for folder, weight in found]


def sample_streams(seed: int, items: Sequence[Item]) -> list[int]:
    """Keys of the random numbers of some draws."""
    return stream_keys(seed, _SAMPLES, *np.array(items, np.int64).reshape(-1, 3).T).tolist()


class RegionDataset(Dataset[Any]):
    """Training batches by what they consist of.

    Args:
        config: what to read and how to draw from it.
        image_size: side of the images, in pixels.
        mask_grid: side of the grid for mask prompts.
        fill: the padding's colour.
        seed: of all draws.
        window: which square around each region to cut at the picture's own resolution; None for none.

    Raises:
        MedpclipError: no shards, or no such split in one of them.
    """

    def __init__(
        self,
        config: DataConfig,
        image_size: int,
        mask_grid: int,
        fill: tuple[int, ...],
        seed: int,
        window: WindowSpec | None = None,
    ) -> None:
        self.config, self.seed = config, seed
        self.builder = BatchBuilder(config, image_size, mask_grid, fill, window)
        sources = data_sources(config)
        self.folders = [ShardFolder(source.folder, config.split) for source in sources]
        counts = tuple(len(folder) for folder in self.folders)
        self.plan = EpochPlan(counts, tuple(source.weight for source in sources), seed)
        self.starts: list[int] = np.cumsum([0, *counts]).tolist()

    def __len__(self) -> int:
        """Samples of all sources."""
        return self.starts[-1]

    def __getitem__(self, items: Sequence[Item]) -> Batch:
        """The batch of these draws.

        Raises:
            MedpclipError: none of the samples can be used.
        """
        streams = sample_streams(self.seed, items)
        return self.builder.build([self.record(item.sample, key) for item, key in zip(items, streams, strict=True)])

    def record(self, index: int, stream: int) -> Record | UnreadableSampleError:
        """A sample's bytes, or why they can't be read."""
        number = bisect_right(self.starts, index) - 1
        folder, place = self.folders[number], index - self.starts[number]
        try:
            row, image, facts = folder.read(place)
        except MedpclipError as error:
            key = folder.rows[place].key
            return UnreadableSampleError("shard can't be read", f"{error} (for {key})")
        where = f"{folder.folder}/{row.shard}: {row.key}"
        return Record(row.key, where, image, row.extension, facts, stream)
