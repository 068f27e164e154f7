"""Percentile bootstrap (Efron and Tibshirani 1993, chapter 13) over groups (cluster bootstrap, Field and Welsh 2007).

Regions of one patient are not independent, so patients (studies, else images) are resampled, not regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medpclip.evaluation.metrics import mean_recall


@dataclass
class GroupCounts:
    """What balanced accuracy needs of each group.

    Attributes:
        hits: (groups, classes) cases of the class that are right.
        totals: (groups, classes) cases of the class.
    """

    hits: np.ndarray
    totals: np.ndarray

    @classmethod
    def of(cls, true: np.ndarray, predicted: np.ndarray, groups: np.ndarray, count: int, classes: int) -> GroupCounts:
        """Counts of n cases.

        Args:
            true, predicted: (n,) class indices.
            groups: (n,) group indices in [0, count).
        """
        cell = groups * classes + true
        shape = (count, classes)
        totals = np.bincount(cell, minlength=count * classes).reshape(shape)
        return cls(np.bincount(cell[true == predicted], minlength=count * classes).reshape(shape), totals)


def resample(counts: GroupCounts, draws: int, seed: int) -> np.ndarray:
    """Balanced accuracy of `draws` resamples, (draws,); NaN where a resample holds no case.

    The same seed and number of groups give the same resamples, so that two ways to predict the same cases are compared
    in pairs: the difference of their two arrays is the bootstrap of the difference.
    """
    groups = len(counts.hits)
    picks = np.random.default_rng(seed).integers(groups, size=(draws, groups))
    weights = np.zeros((draws, groups))
    np.add.at(weights, (np.arange(draws)[:, None], picks), 1)
    return mean_recall(weights @ counts.hits, weights @ counts.totals)


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
