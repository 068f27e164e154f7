"""Classification metrics, from confusion matrices."""

from __future__ import annotations

import numpy as np


def confusion_matrix(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 (classes, classes): rows are the true class, columns the predicted one.

    Args:
        true, predicted: (n,) class indices in [0, classes).
    """
    flat = np.bincount(true * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def accuracy(confusion: np.ndarray) -> float:
    """The share that is right; NaN without any case."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean over the classes of the share that is right; NaN without any case.

    A class that doesn't occur among the true ones has no such share and is left out of the mean (as scikit-learn does).
    """
    return float(mean_recall(np.diag(confusion), confusion.sum(axis=1)))


def mean_recall(hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Mean of hits / totals over the last axis, leaving out classes with a total of 0; NaN where all are 0."""
    present = totals > 0
    recall = np.divide(hits, totals, out=np.zeros(np.shape(totals), float), where=present)
    count = present.sum(axis=-1)
    return np.divide(recall.sum(axis=-1), count, out=np.full(np.shape(count), np.nan), where=count > 0)
