"""Whether a model is as sure as it is right: calibration error, Brier score and the reliability curve.

The confidence of an answer is the probability that the model gives it. Figures are over all cases, whatever their class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medpclip.evaluation.metrics.metrics import Metric, Sums, divide, share

ECE = "ece"
BRIER = "brier"


@dataclass(frozen=True)
class Bin:
    """The answers whose confidence lies in (low, high]; the first bin holds 0 too.

    Attributes:
        cases: how many.
        confidence, accuracy: their mean confidence and the share that is right; None without a case.
    """

    low: float
    high: float
    cases: int
    confidence: float | None
    accuracy: float | None


def of_confidence(confidence: np.ndarray, right: np.ndarray, brier: np.ndarray, bins: int) -> dict[str, Metric]:
    """Expected calibration error (Guo et al. 2017, equation 3) and the mean Brier score.

    The error is the mean over the cases of the gap between mean confidence and accuracy of their bin. A bin's gap is
    never negative, so that with few cases the error is above 0 for a calibrated model too, and a resample's error tends to
    be above that of the cases themselves: read its interval as an upper estimate.

    Args:
        confidence: (n,) the answer's probability; NaN where it wasn't asked.
        right: (n,) bool, whether the answer is right.
        brier: (n,) as `brier_scores` gives them.
        bins: of equal width over [0, 1].
    """
    asked = ~np.isnan(confidence)
    gap = np.where(asked, right - confidence.astype(float), 0)
    placed = asked[:, None] & (bin_of(confidence, bins)[:, None] == np.arange(bins))

    def error(gaps: np.ndarray, cases: np.ndarray) -> np.ndarray:
        return divide(np.abs(gaps).sum(axis=-1), cases.sum(axis=-1))

    return {ECE: Sums.of([gap[:, None] * placed, placed], error), BRIER: share(brier, asked)}


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int) -> list[Bin]:
    """The reliability curve (DeGroot and Fienberg 1983), a bin after the other.

    Args:
        confidence, right, bins: as for `of_confidence`.
    """
    asked = ~np.isnan(confidence)
    index, sure, hits = bin_of(confidence[asked], bins), confidence[asked].astype(float), right[asked].astype(float)
    cases = np.bincount(index, minlength=bins)
    edges = np.linspace(0, 1, bins + 1).tolist()
    rows = zip(
        edges[:-1],
        edges[1:],
        cases.tolist(),
        divide(np.bincount(index, sure, minlength=bins), cases).tolist(),
        divide(np.bincount(index, hits, minlength=bins), cases).tolist(),
        strict=True,
    )
    return [Bin(low, high, n, *((mean, hit) if n else (None, None))) for low, high, n, mean, hit in rows]


def bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """(n,) probabilities -> (n,) indices of `bins` bins of equal width; an edge belongs to the bin below it."""
    place = np.ceil(np.nan_to_num(confidence).astype(float) * bins).astype(np.int64) - 1
    return np.clip(place, 0, bins - 1)


def brier_scores(values: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(n, C) log-probabilities and (n,) class indices -> (n,) squared distances from the truth, summed over classes.

    Brier 1950; with two classes it is twice what is often called by that name. NaN for rows of NaN.
    """
    return ((np.exp(values.astype(float)) - (true[:, None] == np.arange(values.shape[1]))) ** 2).sum(axis=1)
