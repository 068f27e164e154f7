"""The result as tables: for the terminal, and for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medpclip.evaluation.result import order_of

HEADINGS = {
    "prompted": "prompted",
    "unprompted": "unprompted",
    "crop": "crop",
    "prompted_crop": "prompted crop",
    "mask_pooling": "mask pooling",
    "box_geometry": "box geometry",
    "image": "image embedding",
}
MISSING = "-"
# What the same weights are used for, but were not trained for.
_NOT_TRAINED = ("unprompted", "crop", "mask_pooling")
Row = dict[str, Any]


@dataclass
class Table:
    """Text cells under headings; the first `labels` columns say what a row is.

    Attributes:
        best: for each row the columns with its highest value, if there is more than one to compare.
        note: stands below; empty for none.
    """

    title: str
    headings: list[str]
    rows: list[list[str]]
    labels: int
    best: list[set[int]]
    note: str = ""

    def text(self) -> str:
        """Aligned columns: labels to the left, figures to the right."""
        widths = [max(map(len, column)) for column in zip(self.headings, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            pairs = enumerate(zip(cells, widths, strict=True))
            return "  ".join(c.ljust(w) if i < self.labels else c.rjust(w) for i, (c, w) in pairs).rstrip()

        lines = [self.title, line(self.headings), "  ".join("-" * w for w in widths), *map(line, self.rows)]
        return "\n".join([*lines, self.note] if self.note else lines)


def tables(result: Row) -> list[Table]:
    """Regions, images and pairs, as the terminal shows them; those without a row are left out."""
    return [table for table in (regions_table(result), images_table(result), pairs_table(result)) if table.rows]


def regions_table(result: Row) -> Table:
    """A row for each source and prompt kind, under the mean over sources where there are several."""
    rows = [r | {"label": f"MEAN of {len(r['sources'])}", "n": ""} for r in result["headline"] if len(r["sources"]) > 1]
    rows += [r | {"label": r["source"], "n": f"{r['cases']}/{r['groups']}"} for r in result["region"]]
    title = f"Regions: balanced accuracy in %, {_level(result)}"
    labels = {"source": "label", "exposure": "exposure", "prompt": "prompt", "n/groups": "n"}
    table = _pivot(title, rows, "comparator", labels, figure)
    table.note = _not_trained(rows)
    return table


def pairs_table(result: Row) -> Table:
    """A row for each pair of classes and prompt kind."""
    rows = [r | {"pair": " / ".join(r["classes"])} for r in result["pairs"]]
    title = f"Pairs of classes: balanced accuracy in % with these two as candidates, {_level(result)}"
    several = len({row["source"] for row in rows}) > 1
    labels = {"differ by": "kind", "pair": "pair", **({"source": "source"} if several else {}), "prompt": "prompt"}
    return _pivot(title, rows, "comparator", labels, figure)


def differences_table(result: Row) -> Table:
    """What the prompted embedding gains over each comparator."""
    title = f"Prompted minus the others: points of balanced accuracy, {_level(result)}, paired"
    table = _pivot(title, result["differences"], "minus", {"source": "source", "prompt": "prompt"}, signed_figure)
    table.best = [set() for _ in table.rows]
    return table


def images_table(result: Row) -> Table:
    """A row for each image-level question."""
    rows = [r | {"n": f"{r['cases']}/{r['groups']}", "count": str(len(r["classes"]))} for r in result["image"]]
    title = f"Images: balanced accuracy in %, {_level(result)}"
    return _pivot(
        title, rows, "prompt", {"label": "label", "exposure": "exposure", "classes": "count", "n/groups": "n"}, figure
    )


def figure(row: Row, form: str = "{:.1f}") -> str:
    """A value with its interval in percent, as "85.1 [82.0, 88.3]"."""
    if row["value"] is None:
        return MISSING
    value = form.format(100 * row["value"])
    if row["interval"] is None:
        return value
    low, high = (form.format(100 * v) for v in row["interval"])
    return f"{value} [{low}, {high}]"


def signed_figure(row: Row) -> str:
    """The same with signs."""
    return figure(row, "{:+.1f}")


def _not_trained(rows: Sequence[Row]) -> str:
    """Which comparators among the rows are at a disadvantage."""
    present = {row["comparator"] for row in rows}
    names = [HEADINGS[name] for name in _NOT_TRAINED if name in present]
    if not names:
        return ""
    return (
        f"not trained as such: {', '.join(names)} use the same weights, whose images and patches training pairs with "
        "texts of whole images (modality, labels, captions) only, never with a region's term alone"
    )


def _level(result: Row) -> str:
    return f"{result['task']['bootstrap']['level']:.0%} interval over groups"


def _pivot(title: str, rows: Sequence[Row], column: str, labels: dict[str, str], cell: Callable[[Row], str]) -> Table:
    """One line for each combination of the labels (heading -> key), one column for each value of `column`."""
    names = sorted({row[column] for row in rows}, key=order_of)
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in labels.values()), {})[row[column]] = row
    best = []
    for cells in lines.values():
        values = {len(labels) + names.index(n): r["value"] for n, r in cells.items() if r["value"] is not None}
        best.append({i for i, v in values.items() if v == max(values.values())} if len(values) > 1 else set())
    return Table(
        title,
        [*labels, *(HEADINGS.get(n, n) for n in names)],
        [[*key, *(cell(cells[n]) if n in cells else MISSING for n in names)] for key, cells in lines.items()],
        len(labels),
        best,
    )
