"""Which samples an epoch has, and in which order: pure functions of (seed, epoch), shared out to ranks.

A source's weight is how often an epoch has each of its samples. With weight w and n samples, every epoch has
round(w * n) draws: each sample floor(w) times, and the rest of the draws go to samples in turn, along a fixed random
order of the source that goes on from epoch to epoch. So after any number of epochs, no sample had more than one draw
more than another of its source. Our design.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medpclip.errors import MedpclipError

_ORDER, _TURNS = 0, 3  # what a random stream is for: a part of its seed; 1 is samples, 2 texts


class Item(NamedTuple):
    """A draw: which epoch, which sample of all sources, and which copy of it where an epoch has it several times."""

    epoch: int
    sample: int
    copy: int


@dataclass(frozen=True)
class EpochPlan:
    """What epochs consist of.

    Attributes:
        counts: samples (or shards) of each source; all sources together are numbered from 0.
        weights: of each source.
        seed: of the order.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    def __len__(self) -> int:
        """Draws per epoch, the same for all."""
        return sum(round(weight * count) for count, weight in zip(self.counts, self.weights, strict=True))

    def draws(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's (index, copy), both int64 (len(self),), in random order."""
        indices, copies = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        start = 0
        for source, (count, weight) in enumerate(zip(self.counts, self.weights, strict=True)):
            times = int(weight)
            rest = round(weight * count) - times * count
            indices.append(start + np.repeat(np.arange(count), times))
            copies.append(np.tile(np.arange(times), count))
            if rest:
                turns = np.random.default_rng((self.seed, _TURNS, source)).permutation(count)
                indices.append(start + turns[(epoch * rest + np.arange(rest)) % count])
                copies.append(np.full(rest, times))
            start += count
        index, copy = np.concatenate(indices), np.concatenate(copies)
        order = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(len(index))
        return index[order], copy[order]


class BatchOrder:
    """One rank's batches of items from batch number `start` on, without end.

    A step is `micros` batches of each rank. An epoch's order is cut into steps, a step into its first batch on all ranks,
    its second, and so on: which samples a step has doesn't depend on how many ranks and micro-batches share it. All ranks
    have the same number of batches; an epoch's last partial step is dropped.

    Args:
        plan: of the epochs.
        batch_size: of each rank.
        start: number of the first batch.
        rank, world: whose batches, of how many.
        micros: batches of each rank in a step.

    Raises:
        MedpclipError: an epoch has fewer draws than a step.
    """

    def __init__(
        self, plan: EpochPlan, batch_size: int, start: int = 0, rank: int = 0, world: int = 1, micros: int = 1
    ) -> None:
        step = batch_size * world * micros
        if len(plan) < step:
            raise MedpclipError(
                f"key 'batch_size' is {step}, but an epoch has only {len(plan)} samples of the split; lower it, or add data"
            )
        self.plan, self.batch_size, self.start, self.rank, self.world = plan, batch_size, start, rank, world
        self.per_epoch = len(plan) // step * micros

    def __iter__(self) -> Iterator[list[Item]]:
        number = self.start
        while True:
            epoch, first = divmod(number, self.per_epoch)
            index, copy = self.plan.draws(epoch)
            for place in range(first, self.per_epoch):
                begin = (place * self.world + self.rank) * self.batch_size
                part = slice(begin, begin + self.batch_size)
                yield [Item(epoch, i, c) for i, c in zip(index[part].tolist(), copy[part].tolist(), strict=True)]
            number = (epoch + 1) * self.per_epoch


def shuffled(counts: Sequence[int], buffer: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Samples of shards in the order in which a bounded buffer gives them away: (which shard, which of its samples).

    Shards are read from front to back, one after the other, into a buffer of `buffer` samples; each time, one of those
    in the buffer is drawn, and the next one read takes its place. Only numbers are drawn here, nothing is read.

    Args:
        counts: samples of each shard, in reading order.
        buffer: how many wait at once.
        rng: for the draws.
    """
    waiting: list[tuple[int, int]] = []
    for shard, count in enumerate(counts):
        for row in range(count):
            if len(waiting) < buffer:
                waiting.append((shard, row))
                continue
            drawn = int(rng.integers(buffer))
            yield waiting[drawn]
            waiting[drawn] = (shard, row)
    yield from (waiting[i] for i in rng.permutation(len(waiting)))
