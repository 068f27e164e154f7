"""Bayesian bootstrap (Rubin 1981, The Annals of Statistics 9) over groups (as the cluster bootstrap, Field and Welsh 2007),
with percentile intervals.

Regions of one patient are not independent, so patients (studies, else images) are resampled, not regions. A resample gives
each group an exponential weight, where the plain bootstrap gives it a Poisson-like count: so none is left out, and no class
that only few patients have. Where some are, balanced accuracy is that of the other, easier classes, and intervals lie too
high."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from medpclip.evaluation.metrics.metrics import Metric, Sums

_CELLS = 4_000_000  # of an array of weights (32 MB); more resamples than fit are drawn in parts


def bootstrap(metric: Metric, groups: np.ndarray, draws: int, seed: int, count: int | None = None) -> np.ndarray:
    """A metric of `draws` resamples of the groups, (draws,); NaN without a case.

    The same seed and number of groups give the same resamples: of two models that were asked the same cases, the
    difference of the two arrays is the (paired) bootstrap of the difference.

    Args:
        metric: of n cases.
        groups: (n,) group indices in [0, count), as `group_numbers` gives them.
        count: how many groups there are; None for the highest number + 1.
    """
    count = int(groups.max(initial=-1)) + 1 if count is None else count
    if not count:
        return np.full(draws, np.nan)
    if isinstance(metric, Sums):
        summed = metric.of_groups(groups, count)
        return np.concatenate([summed(weights) for weights in _weights(draws, count, count, seed)])
    parts = _weights(draws, count, max(count, len(groups)), seed)
    return np.concatenate([metric(weights[:, groups]) for weights in parts])


def group_numbers(groups: Sequence[tuple[str, ...]]) -> np.ndarray:
    """The cases' groups -> (n,) int64 numbers in the groups' sorted order, whatever the cases' order."""
    numbers = {group: number for number, group in enumerate(sorted(set(groups)))}
    return np.array([numbers[group] for group in groups], np.int64)


def seed_of(seed: int, name: str) -> int:
    """The seed of a name's resamples: the same for all that is compared under the name, others for another."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:8], "little")


def percentile_interval(values: np.ndarray, level: float) -> list[float] | None:
    """[low, high] that holds the middle `level` of the resamples; None where none holds a case."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    tail = (1 - level) / 2
    return [float(v) for v in np.quantile(finite, [tail, 1 - tail])]


def mean_of_sources(values: Sequence[np.ndarray]) -> np.ndarray:
    """Resamples of the plain mean over sources, each resampled by itself: (sources) x (draws,) -> (draws,)."""
    return np.mean(np.stack(values), axis=0)


def _weights(draws: int, groups: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """Each group's weight, of mean 1 in a resample, float64 (part of draws, groups); `width` columns are what must fit in
    memory."""
    step = max(1, _CELLS // width)
    if draws * groups > _CELLS:
        yield from _drawn(draws, groups, step, seed)
        return
    kept = _kept(draws, groups, seed)
    yield from (kept[start : start + step] for start in range(0, draws, step))


@lru_cache(maxsize=2)  # the metrics of a question, and of all that answer it, are resampled alike
def _kept(draws: int, groups: int, seed: int) -> np.ndarray:
    weights = next(_drawn(draws, groups, draws, seed))
    weights.setflags(write=False)
    return weights


def _drawn(draws: int, groups: int, step: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for start in range(0, draws, step):
        weights = rng.standard_exponential((min(step, draws - start), groups))  # the same however the draws are parted
        yield weights / weights.mean(axis=1, keepdims=True)
