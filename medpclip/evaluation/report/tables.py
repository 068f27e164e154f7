"""The result as tables: for the terminal, and for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medpclip.evaluation.metrics.calibration import BRIER, ECE
from medpclip.evaluation.results.headline import OURS
from medpclip.evaluation.results.measures import PRIMARY
from medpclip.evaluation.results.result import order_of
from medpclip.evaluation.results.rows import MEAN
from medpclip.evaluation.task import BOX_GEOMETRY, COMPARATORS, OWN

# Others read as their names.
HEADINGS = {
    "roi_align": "RoIAlign",
    "image": "image embedding",
    "knn": "k-NN",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "mean_auroc": "mean AUROC",
    ECE: "ECE",
    BRIER: "Brier score",
}
MISSING = "-"
_OTHER_FUSIONS = set(COMPARATORS) - {*OWN, BOX_GEOMETRY}
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


def heading(name: str) -> str:
    """A comparator's or a prompt's name as tables say it."""
    return HEADINGS.get(name, name.replace("_", " "))


def tables(result: Row) -> list[Table]:
    """What the terminal shows of a result, section by section; those without a row are left out."""
    made = [
        regions_table(result),
        pairs_table(result),
        images_table(result),
        labels_table(result),
        retrieval_table(result),
        probe_table(result),
        robustness_table(result),
        published_table(result),
    ]
    return [table for table in made if table.rows]


def regions_table(result: Row) -> Table:
    """A row for each source and prompt kind, under the mean over sources where there are several."""
    means = [r | {"name": _mean_of(r)} for r in _main(result["headline"]) if len(r["sources"]) > 1]
    rows = [_counted(r) for r in [*means, *_main(result["rows"], "region")]]
    labels = {"source": "name", "exposure": "exposure", "prompt": "prompt", "n/groups": "n"}
    table = _pivot(f"Regions: balanced accuracy in %, {_level(result)}", rows, "comparator", labels, figure)
    table.note = _not_trained(rows)
    return table


def pairs_table(result: Row) -> Table:
    """A row for each pair of classes and prompt kind."""
    rows = [r | dict(zip(("kind", "pair"), r["part"].split(": ", 1), strict=True)) for r in result["pairs"]]
    title = f"Pairs of classes: balanced accuracy in % with these two as candidates, {_level(result)}"
    several = len({row["name"] for row in rows}) > 1
    labels = {"differ by": "kind", "pair": "pair", **({"source": "name"} if several else {}), "prompt": "prompt"}
    return _pivot(title, rows, "comparator", labels, figure)


def differences_table(result: Row) -> Table:
    """What the prompted embedding gains over each comparator."""
    rows = [
        r for r in result["differences"] if r["section"] == "region" and (r["name"] != MEAN or len(r["sources"]) > 1)
    ]
    title = f"Prompted minus the others: points of balanced accuracy, {_level(result)}, paired"
    return _pivot(title, rows, "minus", {"source": "name", "prompt": "prompt"}, signed_figure, best=False)


def images_table(result: Row) -> Table:
    """A row for each image-level question and way to ask it, a column for each metric."""
    rows = [_counted(r) | {"count": str(r["candidates"])} for r in _plain(result, "image")]
    labels = {"label": "name", "exposure": "exposure", "asked by": "asked", "classes": "count", "n/groups": "n"}
    return _pivot(f"Images: figures in %, {_level(result)}", rows, "metric", labels, figure, best=False, order=None)


def prompted_images_table(result: Row) -> Table:
    """What it costs to ask about a whole image with a prompt."""
    rows = [_counted(r) for r in result["differences"] if r["section"] in ("image", "multi_label")]
    title = f"Images asked with a prompt, minus the image embedding: points, {_level(result)}, paired"
    return _pivot(title, rows, "prompt", {"label": "name", "metric": "metric"}, signed_figure, best=False, order=None)


def labels_table(result: Row) -> Table:
    """The same for questions with several labels."""
    rows = [_counted(r) | {"count": str(r["candidates"])} for r in _plain(result, "multi_label")]
    labels = {"label": "name", "exposure": "exposure", "asked by": "asked", "labels": "count", "n/groups": "n"}
    title = f"Images with several labels: figures in %, {_level(result)}"
    return _pivot(title, rows, "metric", labels, figure, best=False, order=None)


def metrics_table(result: Row) -> Table:
    """All metrics of the regions, a column for each."""
    rows = [_counted(r) for r in _plain(result, "region")]
    labels = {"source": "name", "prompt": "prompt", "comparator": "by", "n/groups": "n"}
    return _pivot(
        f"Regions: all metrics in %, {_level(result)}", rows, "metric", labels, figure, best=False, order=None
    )


def retrieval_table(result: Row) -> Table:
    """A row for each direction and way to ask, a column for each depth."""
    rows = [_counted(r) | {"count": str(r["candidates"])} for r in result["rows"] if r["section"] == "retrieval"]
    labels = {
        "direction": "name",
        "prompt": "prompt",
        "comparator": "by",
        "candidates": "count",
        "n/groups": "n",
    }
    table = _pivot(f"Retrieval in %, {_level(result)}", rows, "metric", labels, figure, best=False, order=None)
    if rows:
        table.note = (
            "recall@k is the share of queries with a right candidate among the first k, found@k the mean share of a "
            "query's right candidates that are among them"
        )
    return table


def probe_table(result: Row) -> Table:
    """A row for each probe and prompt kind."""
    rows = [_counted(r) for r in _main(result["rows"], "probe")]
    labels = {"probe": "name", "exposure": "exposure", "prompt": "prompt", "n/groups": "n"}
    return _pivot(
        f"Probes on frozen embeddings: balanced accuracy in %, {_level(result)}", rows, "comparator", labels, figure
    )


def robustness_table(result: Row) -> Table:
    """A row for each source and disturbance: the figure, and what the disturbance costs."""
    costs = {_key(r): r for r in result["differences"] if r["section"] == "robustness"}
    rows = []
    for r in _main(result["rows"], "robustness"):
        rows.append(_counted(r) | {"column": heading(r["comparator"]), "text": figure(r)})
        cost = costs.get(_key(r))
        if cost is not None:
            rows.append(_counted(r) | {"column": f"{heading(r['comparator'])}: cost", "text": signed_figure(cost)})
    labels = {"source": "name", "prompt": "prompt", "n/groups": "n"}
    title = f"Robustness: balanced accuracy in %, and points against the plain prompt, {_level(result)}"
    return _pivot(title, rows, "column", labels, lambda r: r["text"], best=False, order=None)


def calibration_table(result: Row) -> Table:
    """Calibration error and Brier score of each way to ask."""
    rows = [_counted(r) for r in result["rows"] if r["metric"] in (ECE, BRIER) and r["section"] != "robustness"]
    title = f"Calibration, {_level(result)}"
    labels = {"section": "section", "question": "name", "prompt": "prompt", "comparator": "by"}
    return _pivot(title, rows, "metric", labels, lambda r: figure(r, "{:.3f}", 1), best=False, order=None)


def subgroups_tables(result: Row) -> list[Table]:
    """For each section a row for each part of a question's cases, a column for each comparator."""
    made = []
    for section in dict.fromkeys(r["section"] for r in result["subgroups"]):
        rows = [_counted(r) for r in result["subgroups"] if r["section"] == section]
        images = section in ("image", "multi_label")
        labels = {"question": "name", "part": "part", "asked by": "asked", "n/groups": "n"}
        metric = heading(PRIMARY[section])
        title = f"Subgroups, {section.replace('_', ' ')}: {metric} in %, {_level(result)}"
        made.append(_pivot(title, rows, "metric" if images else "comparator", labels, figure, order=None))
    return made


def published_table(result: Row) -> Table:
    """Figures that others published, over this model's of the same metric: of whole images, and the mean of regions."""
    given = result["published"]
    rows = [[r["model"], r["metric"], r["source"], r["note"] or MISSING, f"{r['value']:.1f}"] for r in given]
    wanted = {r["metric"].lower().replace(" ", "_"): r["metric"] for r in given}
    images = [r for r in result["rows"] if r["section"] in ("image", "multi_label") and r["prompt"] == "image"]
    for r in [*images, *(r for r in result["headline"] if r["comparator"] == OURS)]:
        if r["metric"] in wanted:
            what = r["name"] if r["prompt"] == "image" else f"regions, {_mean_of(r)} by {r['prompt']}"
            rows.append([f"this: {result['model']['name']}", wanted[r["metric"]], what, MISSING, figure(r)])
    labels = ["model", "metric", "source", "note"]
    return Table("Published figures in %", [*labels, "value"], rows, len(labels), [set() for _ in rows])


def figure(row: Row, form: str = "{:.1f}", scale: float = 100) -> str:
    """A value with its interval, in percent unless another `scale` is given, as "85.1 [82.0, 88.3]"."""
    if row["value"] is None:
        return MISSING
    value = form.format(scale * row["value"])
    if row["interval"] is None:
        return value
    low, high = (form.format(scale * v) for v in row["interval"])
    return f"{value} [{low}, {high}]"


def signed_figure(row: Row) -> str:
    """The same in points with signs."""
    return figure(row, "{:+.1f}")


def _mean_of(row: Row) -> str:
    return row["sources"][0] if len(row["sources"]) == 1 else f"{MEAN} of {len(row['sources'])}"


def _plain(result: Row, section: str) -> list[Row]:
    """A section's rows but for calibration, which has a table of its own."""
    return [r for r in result["rows"] if r["section"] == section and r["metric"] not in (ECE, BRIER)]


def _main(rows: Sequence[Row], section: str | None = None) -> list[Row]:
    """The rows of a section's main metric; `section` None takes those of all."""
    return [r for r in rows if section in (None, r["section"]) and r["metric"].startswith(PRIMARY[r["section"]])]


def _counted(row: Row) -> Row:
    return row | {
        "n": f"{row['cases']}/{row['groups']}",
        "asked": heading(row["prompt"]),
        "by": heading(row["comparator"]),
    }


def _key(row: Row) -> tuple[str, ...]:
    return row["section"], row["name"], row["prompt"], row["comparator"]


def _not_trained(rows: Sequence[Row]) -> str:
    """Which comparators among the rows are at a disadvantage."""
    present = {row["comparator"] for row in rows}
    names = [heading(name) for name in COMPARATORS if name in present & _OTHER_FUSIONS]
    if not names:
        return ""
    return (
        f"not trained as such: {', '.join(names)} ask the same weights in another way than they were trained for; a "
        "comparator that was trained is a model of its own, whose figure stands under prompted in its own report"
    )


def _level(result: Row) -> str:
    return f"{result['task']['bootstrap']['level']:.0%} interval over groups"


def _pivot(
    title: str,
    rows: Sequence[Row],
    column: str,
    labels: dict[str, str],
    cell: Callable[[Row], str],
    best: bool = True,
    order: Callable[[str], Any] | None = order_of,
) -> Table:
    """One line for each combination of the labels (heading -> key), one column for each value of `column`.

    Args:
        best: mark the highest value of a line.
        order: of the columns; None for that of the rows.
    """
    names = list(dict.fromkeys(row[column] for row in rows))
    if order is not None:
        names.sort(key=order)
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in labels.values()), {})[row[column]] = row
    marked: list[set[int]] = []
    for cells in lines.values():
        values = {len(labels) + names.index(n): r["value"] for n, r in cells.items() if r["value"] is not None}
        marked.append(
            {i for i, v in values.items() if v == max(values.values())}
            if best and len(set(values.values())) > 1
            else set()
        )
    return Table(
        title,
        [*labels, *map(heading, names)],
        [[*key, *(cell(cells[n]) if n in cells else MISSING for n in names)] for key, cells in lines.items()],
        len(labels),
        marked,
    )
