"""Candidates exclude one another: no case is asked to choose between its class and what that class is a kind of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from medpclip.data.lexicon.lexicon import Lexicon


def related_classes(classes: Sequence[str], lexicon: Lexicon | None = None) -> np.ndarray:
    """(C, C) bool, symmetric: whether one of two different classes is an ancestor of the other in the lexicon."""
    lexicon = lexicon or Lexicon.load()
    return np.array([[a != b and lexicon.related(a, b) for b in classes] for a in classes], bool).reshape(
        len(classes), len(classes)
    )


def askable(related: np.ndarray) -> np.ndarray:
    """(C,) bool: whether a class has a candidate besides itself."""
    return related.sum(axis=1) < len(related) - 1


def without_related(values: np.ndarray, true: np.ndarray, related: np.ndarray) -> np.ndarray:
    """Log-probabilities among the candidates that exclude the true class, as if the others had not been asked.

    Args:
        values: (n, C) log-probabilities; rows of NaN stay so.
        true: (n,) class indices.
        related: (C, C), as `related_classes` gives it.

    Returns:
        (n, C) of the same type: -inf for the candidates that are related to the true class.
    """
    excluded = related[true]
    if not excluded.any():
        return values
    kept = np.where(excluded, -np.inf, values)
    with np.errstate(invalid="ignore"):  # the rows of NaN
        return (kept - np.logaddexp.reduce(kept, axis=1, keepdims=True)).astype(values.dtype)


def related_notes(what: str, unit: str, classes: Sequence[str], true: Sequence[int], related: np.ndarray) -> list[str]:
    """What was not asked for that reason, a line for each class; `true` are the classes of all `unit`, dropped or not."""
    notes = []
    for index, count in sorted(Counter(true).items()):
        others = ", ".join(repr(classes[i]) for i in np.flatnonzero(related[index]).tolist())
        if others:
            all_of_them = "" if askable(related)[index] else "; no other candidate is left, so they are not measured"
            notes.append(
                f"{what}: for {count} {unit} of {classes[index]!r} the candidates {others}, since one is a kind of the "
                f"other{all_of_them}"
            )
    return notes
