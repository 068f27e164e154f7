"""Metrics, each as a function of the cases' weights, so that all resamples of a bootstrap are computed at once.

A `Metric` holds what it needs of n cases and maps weights (draws, n) to values (draws,): weights of one give the plain
value, the weights of a resample give that of the resample. A value is NaN wherever its definition divides by nothing: no case,
no positive, no negative. Cases that were not asked (an answer of -1, a score of NaN) count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

BALANCED_ACCURACY = "balanced_accuracy"
ACCURACY = "accuracy"
MACRO_F1 = "macro_f1"
AUROC = "auroc"
AVERAGE_PRECISION = "average_precision"
SENSITIVITY = "sensitivity"
SPECIFICITY = "specificity"
MEAN_AVERAGE_PRECISION = "mean_average_precision"
MEAN_AUROC = "mean_auroc"


class Metric(Protocol):
    """Weights (draws, n) -> values (draws,), float64."""

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The metric for each row of weights."""


@dataclass(frozen=True)
class Sums:
    """A metric that is a function of sums over the cases, so that a group's cases can be summed once and for all.

    Attributes:
        each: (n, S) float64, what each case adds.
        finish: sums (draws, S) -> values (draws,).
    """

    each: np.ndarray
    finish: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, columns: Sequence[np.ndarray], finish: Callable[..., np.ndarray]) -> Sums:
        """From several (n, S), all of one width, whose sums (draws, S) are `finish`'s arguments."""
        count = len(columns)
        return cls(np.hstack(columns).astype(float), lambda sums: finish(*np.split(sums, count, axis=-1)))

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The metric for each row of weights."""
        return self.finish(weights @ self.each)

    def of_groups(self, groups: np.ndarray, count: int) -> Sums:
        """The same metric of `count` groups; `groups` (n,) says which one a case belongs to."""
        columns = [np.bincount(groups, column, minlength=count) for column in self.each.T]
        return Sums(np.stack(columns, axis=1), self.finish)


class Ordered:
    """A metric of positives and negatives in the order of their scores, best first, equals together.

    Args:
        positive: (n,) 1 or 0 (or bool); -1 where it isn't known.
        scores: (n,) how much speaks for positive; NaN where it wasn't asked.
        finish: weights of positives and of negatives, (draws, T) each for T different scores -> values (draws,).
    """

    def __init__(
        self, positive: np.ndarray, scores: np.ndarray, finish: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> None:
        truth = np.asarray(positive).astype(np.int64)
        known = np.flatnonzero((truth >= 0) & ~np.isnan(scores))
        self._order = known[np.argsort(-scores[known], kind="stable")]
        ordered = scores[self._order]
        self._starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else ordered
        self._positive, self._finish = truth[self._order].astype(float), finish

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The metric for each row of weights."""
        if not len(self._order):
            return np.full(len(weights), np.nan)
        own = weights[:, self._order].astype(float)
        all_of = np.add.reduceat(own, self._starts, axis=1)
        positives = np.add.reduceat(own * self._positive, self._starts, axis=1)
        return self._finish(positives, all_of - positives)


@dataclass(frozen=True)
class Mean:
    """The plain mean of metrics of the same cases, leaving out those that are NaN; NaN where all are."""

    parts: Sequence[Metric]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The metric for each row of weights."""
        values = np.stack([part(weights) for part in self.parts], axis=1)
        known = ~np.isnan(values)
        return divide(np.where(known, values, 0).sum(axis=1), known.sum(axis=1))


def value_of(metric: Metric, cases: int) -> float:
    """The metric of all `cases` cases."""
    return float(metric(np.ones((1, cases)))[0])


def of_answers(true: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Metric]:
    """Balanced accuracy, accuracy and macro F1.

    Args:
        true, predicted: (n,) class indices in [0, classes); -1 where there is none.
    """
    asked = (true >= 0) & (predicted >= 0)
    is_true, is_predicted = (asked[:, None] & (index[:, None] == np.arange(classes)) for index in (true, predicted))
    hits = is_true & is_predicted
    return {
        BALANCED_ACCURACY: Sums.of([hits, is_true], mean_recall),
        ACCURACY: share(hits.any(axis=1), asked),
        MACRO_F1: Sums.of([hits, is_true, is_predicted], mean_f1),
    }


def of_binary(positive: np.ndarray, scores: np.ndarray, said: np.ndarray) -> dict[str, Metric]:
    """AUROC, average precision, sensitivity and specificity of a question with a class that is looked for.

    Args:
        positive: (n,) 1 or 0 (or bool); -1 where it isn't known.
        scores: (n,) how much speaks for positive; NaN where it wasn't asked.
        said: (n,) bool, whether the answer is positive, for sensitivity and specificity.
    """
    asked = ~np.isnan(scores)
    return {
        AUROC: auroc(positive, scores),
        AVERAGE_PRECISION: average_precision(positive, scores),
        SENSITIVITY: share(said, asked & (positive == 1)),
        SPECIFICITY: share(~said, asked & (positive == 0)),
    }


def of_labels(truth: np.ndarray, scores: np.ndarray) -> dict[str, Metric]:
    """Means over labels of average precision and of AUROC, and macro F1 where even odds decide.

    A label without a positive (AUROC: or without a negative) is left out of the mean, so is one that is neither true
    nor said anywhere (F1).

    Args:
        truth: (n, C) 1 true, 0 false, -1 unknown.
        scores: (n, C) log-probability that it is true; NaN where it wasn't asked.
    """
    labels = list(zip(truth.T, scores.T, strict=True))
    known = (truth >= 0) & ~np.isnan(scores)
    is_true, said = known & (truth == 1), known & (np.nan_to_num(scores, nan=-np.inf) > np.log(0.5))
    return {
        MEAN_AVERAGE_PRECISION: Mean([average_precision(*label) for label in labels]),
        MEAN_AUROC: Mean([auroc(*label) for label in labels]),
        MACRO_F1: Sums.of([is_true & said, is_true, said], mean_f1),
    }


def of_ranking(best_rank: np.ndarray, found: Mapping[int, np.ndarray]) -> dict[str, Metric]:
    """recall@k and found@k for the depths k of `found`.

    Args:
        best_rank: (n,) 0-based rank of each query's best-placed right candidate; -1 where it can't be asked.
        found: k -> (n,) share of the query's right candidates among the first k.
    """
    asked = best_rank >= 0
    recall: dict[str, Metric] = {f"recall@{k}": share(best_rank < k, asked) for k in found}
    return recall | {f"found@{k}": share(shares, asked) for k, shares in found.items()}


def share(amount: np.ndarray, counted: np.ndarray) -> Sums:
    """The mean of `amount` (n,) over the cases that are counted, bool (n,)."""
    return Sums.of(
        [np.where(counted, amount, 0)[:, None], counted[:, None]],
        lambda amounts, cases: divide(amounts[..., 0], cases[..., 0]),
    )


def auroc(positive: np.ndarray, scores: np.ndarray) -> Ordered:
    """Area under the ROC curve: the chance that a positive scores above a negative, equals counting half (midranks).

    NaN where there is no positive or no negative.
    """

    def area(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        total = negatives.sum(axis=1, keepdims=True)
        below = total - np.cumsum(negatives, axis=1) + negatives / 2
        return divide((positives * below).sum(axis=1), positives.sum(axis=1) * total[:, 0])

    return Ordered(positive, scores, area)


def average_precision(positive: np.ndarray, scores: np.ndarray) -> Ordered:
    """Mean over the positives of the precision at their score, without interpolation; equals enter together.

    NaN where there is no positive (scikit-learn says 0); 1 where there are only positives.
    """

    def area(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        found = np.cumsum(positives, axis=1)
        taken = found + np.cumsum(negatives, axis=1)
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
        return divide((positives * precision).sum(axis=1), found[:, -1])

    return Ordered(positive, scores, area)


def confusion_matrix(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 (classes, classes): rows are the true class, columns the predicted one.

    Args:
        true, predicted: (n,) class indices in [0, classes).
    """
    flat = np.bincount(true * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def mean_recall(hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Balanced accuracy: the mean over the last axis of hits / totals, the classes' recall.

    Classes that don't occur among the true ones are left out of the mean (as scikit-learn does); NaN where all are so.
    """
    present = totals > 0
    recall = np.divide(hits, totals, out=np.zeros(np.shape(totals), float), where=present)
    return divide(recall.sum(axis=-1), present.sum(axis=-1))


def mean_f1(hits: np.ndarray, totals: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean over the last axis of 2 hits / (totals + predicted), the classes' F1.

    Classes that are neither true nor predicted are left out of the mean (as scikit-learn does); NaN where all are so.
    """
    size = totals + predicted
    f1 = np.divide(2 * hits, size, out=np.zeros(np.shape(size), float), where=size > 0)
    return divide(f1.sum(axis=-1), (size > 0).sum(axis=-1))


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the divisor is 0."""
    out = np.full(np.broadcast_shapes(np.shape(above), np.shape(below)), np.nan)
    return np.divide(above, below, out=out, where=np.asarray(below) != 0)
