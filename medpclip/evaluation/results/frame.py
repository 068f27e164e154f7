"""The figures of results as one tidy table, to open in pandas or a spreadsheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas

BLOCKS = ("headline", "rows", "differences", "pairs", "subgroups")  # keys of result.json that hold rows
_FIELDS = ("section", "name", "part", "prompt", "comparator", "minus_prompt", "minus", "metric", "value")
_COUNTS = ("level", "cases", "images", "groups", "split", "exposure", "candidates")
COLUMNS = ("task", "model", "block", *_FIELDS, "low", "high", *_COUNTS, "sources")


def figures_frame(results: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """A line for every figure of some results, in their order.

    Args:
        results: as result.json holds them.

    Returns:
        Columns `COLUMNS`: the task's name and the model's, the key of result.json that the figure stands under, and the fields
        of a row, with `low` and `high` of its interval and its sources joined by "; ". Figures are shares, not percent.
    """
    lines = [
        (
            result["task"]["name"],
            result["model"]["name"],
            block,
            *map(row.get, _FIELDS),
            *(row["interval"] or (None, None)),
            *map(row.get, _COUNTS),
            "; ".join(row["sources"]),
        )
        for result in results
        for block in BLOCKS
        for row in result[block]
    ]
    return pandas.DataFrame(lines, columns=list(COLUMNS))


def figures_csv(results: Sequence[dict[str, Any]]) -> bytes:
    """`figures_frame` as UTF-8 CSV; equal results give equal bytes."""
    text: str = figures_frame(results).to_csv(index=False, lineterminator="\n")
    return text.encode()
