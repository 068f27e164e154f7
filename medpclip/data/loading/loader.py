"""Batches without end, from either reader.

Every choice is a pure function of (seed, epoch, sample, copy). With the indexed reader the order is one of (seed, epoch)
too, and ranks take their parts of it: batches don't depend on the number of workers. With the streaming reader it is a
function of (seed, epoch, ranks, workers). Either way a run continues at exactly the next batch from the batch's number.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from medpclip.data.loading.batch import Batch
from medpclip.data.loading.config import Augmentation, DataConfig
from medpclip.data.loading.dataset import RegionDataset
from medpclip.data.loading.order import BatchOrder, Item
from medpclip.data.loading.stream import StreamingDataset
from medpclip.data.loading.windows import WindowSpec
from medpclip.errors import MedpclipError

__all__ = ["Augmentation", "Batch", "DataConfig", "Loader", "RegionDataset", "StreamingDataset", "check_state"]
__all__ += ["loader_state", "make_loader", "open_dataset"]

_ENOUGH = 1000  # samples that a share of unreadable ones is taken of, at least


def open_dataset(
    config: DataConfig,
    image_size: int,
    mask_grid: int,
    fill: tuple[int, ...],
    seed: int,
    window: WindowSpec | None = None,
) -> RegionDataset | StreamingDataset:
    """The reader that `config` asks for; arguments and errors as theirs."""
    reader = RegionDataset if config.reader == "indexed" else StreamingDataset
    return reader(config, image_size, mask_grid, fill, seed, window)


def make_loader(
    dataset: RegionDataset | StreamingDataset,
    batch_size: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    micros: int = 1,
) -> Loader:
    """A rank's batches without end, beginning with batch number `start`; the workers start at once.

    Args:
        batch_size: samples per batch of each rank.
        start: how many batches each rank has had before.
        rank, world: which of how many ranks.
        micros: batches of each rank that make a step.

    Raises:
        MedpclipError: too little data for a step, or, streaming, uneven or too few shards.
    """
    workers = dataset.config.workers
    leaving = multiprocessing.get_context("fork").Event()
    order = None
    if isinstance(dataset, StreamingDataset):
        dataset.begin(batch_size, start, rank, world)
    else:
        order = BatchOrder(dataset.plan, batch_size, start, rank, world, micros)
    loader: DataLoader[Batch | MedpclipError] = DataLoader(
        _ErrorsAsValues(dataset) if isinstance(dataset, RegionDataset) else dataset,
        sampler=order,
        batch_size=None,  # both datasets give whole batches
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=partial(_start_worker, leaving=leaving),
        multiprocessing_context="fork" if workers else None,
    )
    batches = Loader(iter(loader), dataset.config.max_unreadable)
    atexit.register(leaving.set)  # after torch's own registration, hence called before it
    return batches


class Loader(Iterator[Batch]):
    """Batches, and what was skipped on the way.

    Attributes:
        samples: how many were asked for, since this loader began.
        skipped: reason -> how many of them could not be used.

    Raises, while iterating:
        MedpclipError: more than the allowed share can't be used, or a whole batch; names shard and key.
    """

    def __init__(self, batches: Iterator[Batch | MedpclipError], max_unreadable: float) -> None:
        self._batches, self._share = batches, max_unreadable
        self.samples = 0
        self.skipped = Counter[str]()

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if isinstance(batch, MedpclipError):
            try:
                raise batch
            finally:
                del batch  # else error and frame hold each other, and the workers live on until garbage is collected
        self.samples += len(batch.keys)
        self.skipped.update(batch.skipped)
        count = self.skipped.total()
        if count > self._share * max(self.samples, _ENOUGH):
            reasons = ", ".join(f"{reason}: {n}" for reason, n in self.skipped.most_common())
            raise MedpclipError(
                f"{batch.faults[0]} ({count} of {self.samples} samples can't be used: {reasons}; "
                f"data.max_unreadable is {self._share:g}; 'medpclip data check' finds them all)"
            )
        return batch


def loader_state(config: DataConfig, steps: int, world: int = 1, micro_batch_size: int | None = None) -> dict[str, Any]:
    """What a checkpoint needs for going on with the very next sample, after so many steps."""
    state: dict[str, Any] = {"reader": config.reader, "steps": steps}
    if config.reader == "streaming":  # dealt out to all these
        state |= {"workers": max(1, config.workers), "world": world, "micro_batch_size": micro_batch_size}
    return state


def check_state(
    state: Mapping[str, Any], config: DataConfig, world: int = 1, micro_batch_size: int | None = None
) -> None:
    """Refuse a state that this configuration doesn't continue exactly: a stream is dealt out to ranks and workers.

    Raises:
        MedpclipError: naming what differs.
    """
    now = loader_state(config, int(state.get("steps", 0)), world, micro_batch_size)
    labels = {"reader": "data.reader", "workers": "data.workers", "world": "the number of ranks"}
    for key, label in (labels | {"micro_batch_size": "micro_batch_size"}).items():
        if state.get(key) != now.get(key):
            raise MedpclipError(
                f"{label} was {state.get(key)}, is now {now.get(key)}, so samples would be repeated or left out; "
                "resume as the run began, or add --resume-anyway"
            )


class _ErrorsAsValues(Dataset[Any]):
    """Hands on what is wrong with a batch: raised in a worker, torch would make its message a traceback."""

    def __init__(self, dataset: RegionDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, items: list[Item]) -> Batch | MedpclipError:
        try:
            return self.dataset[items]
        except MedpclipError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int, leaving: Event) -> None:
    """Set up a worker process; `leaving` is set when the main process ends, by a bug perhaps, and wants it gone."""
    torch.set_num_threads(1)
    gc.freeze()  # what came with the fork stays: going through it again and again would copy its pages, too

    def leave_if_asked(number: int, frame: FrameType | None) -> None:
        if leaving.is_set():
            os._exit(0)

    # A scheduler signals all processes of a job: the main one saves and ends, and must not find its workers dead.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, leave_if_asked)
