"""The report: one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medpclip.evaluation.metrics.metrics import BALANCED_ACCURACY
from medpclip.evaluation.report.figures import Picture, confusion_picture, data_uri
from medpclip.evaluation.report.gallery import cards
from medpclip.evaluation.report.plots import curves_picture, jitter_of, loss_curves, reliability_curves
from medpclip.evaluation.report.tables import (
    Table,
    calibration_table,
    differences_table,
    heading,
    images_table,
    labels_table,
    metrics_table,
    pairs_table,
    probe_table,
    prompted_images_table,
    published_table,
    regions_table,
    retrieval_table,
    robustness_table,
    subgroups_tables,
)
from medpclip.evaluation.results.headline import OURS
from medpclip.evaluation.results.result import order_of
from medpclip.evaluation.results.subgroups import SIZES
from medpclip.evaluation.scores import Evaluation
from medpclip.evaluation.task import Task

GALLERY = 24
LOG = "log.jsonl"
_TEMPLATE = "report.html.j2"
_PANELS = 16  # reliability curves in a picture
Row = dict[str, Any]


@dataclass
class Part:
    """A section of the page, left out where it has neither tables nor pictures.

    Attributes:
        anchor: by which the list of contents finds it, and the template its words.
    """

    anchor: str
    title: str
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tables = [table for table in self.tables if table.rows]


def render_report(result: Row, evaluation: Evaluation, task: Task, log: list[Row], gallery: int = GALLERY) -> str:
    """The page's HTML, the same bytes for the same input.

    Args:
        result: as `build_result` made it.
        evaluation: where the gallery's cases come from.
        task: what was measured.
        log: the training log's rows, as `run_log` reads them; empty for none.
        gallery: how many cases to show.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(_TEMPLATE).render(
        result=result,
        parts=[part for part in parts(result, log) if part.tables or part.pictures],
        cards=list(cards(evaluation, task.seed, gallery)),
        templates={"regions": task.region.templates if task.region else []}
        | {f"images: {question.label}": question.templates for question in task.image},
        no_mean=_sources_alone(result),
    )


def parts(result: Row, log: list[Row]) -> list[Part]:
    """The page's sections in order, empty ones too."""
    return [
        Part("published", "Published figures", [published_table(result)]),
        Part("regions", "Regions", [regions_table(result), differences_table(result), pairs_table(result)]),
        Part("images", "Whole images", [images_table(result), prompted_images_table(result)]),
        Part("labels", "Whole images with several labels", [labels_table(result)]),
        Part("retrieval", "Retrieval", [retrieval_table(result)]),
        Part("probes", "Probes", [probe_table(result)]),
        Part("robustness", "Robustness", [robustness_table(result)], list(_jitter_curves(result))),
        Part("subgroups", "Subgroups", subgroups_tables(result), list(_size_curves(result))),
        Part("calibration", "Calibration", [calibration_table(result)], list(_reliability(result))),
        Part("confusions", "Confusion matrices", [], list(_confusions(result))),
        Part("metrics", "All metrics of regions", [metrics_table(result)]),
        Part("training", "Training", [], list(_losses(log))),
    ]


def run_log(checkpoint: Path | None, step: int | None) -> list[Row]:
    """The training log up to a checkpoint's step, or nothing; a last line cut short is left out.

    Args:
        checkpoint: its folder, in a run's folder of checkpoints; None for an architecture.
        step: the checkpoint's; None for all that the run has logged.
    """
    from medpclip.models.load import CHECKPOINTS

    if checkpoint is None or checkpoint.resolve().parent.name != CHECKPOINTS:
        return []  # no run of ours around it: a log that happens to lie near is another's
    path = checkpoint.resolve().parent.parent / LOG
    rows = _log_rows(path) if path.is_file() else iter(())
    return [row for row in rows if step is None or row.get("step", 0) <= step]


def _log_rows(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a line that a running training has not finished yet
        if isinstance(row, dict) and row.get("kind", "train") == "train":
            yield row


def _sources_alone(result: Row) -> dict[str, list[str]]:
    """Sources that are the only one in a headline -> the prompt kinds where they are."""
    alone: dict[str, list[str]] = {}
    for prompt, sources in {row["prompt"]: row["sources"] for row in result["headline"]}.items():
        if len(sources) == 1:
            alone.setdefault(sources[0], []).append(prompt)
    return alone


def _losses(log: list[Row]) -> Iterator[Picture]:
    png = loss_curves(log)
    if png is not None:
        steps = [row["step"] for row in log if "step" in row]
        last = next((row["loss"] for row in reversed(log) if "loss" in row), None)
        text = f"Training losses up to step {max(steps, default=0)}" + (f"; the last is {last:.3f}" if last else "")
        yield _picture(png, text, text + ".")


def _confusions(result: Row) -> Iterator[Picture]:
    """The model's own answers by each prompt kind, then the image level."""
    values = {_key(row): row["value"] for row in result["rows"] if row["metric"] == BALANCED_ACCURACY}
    for block in _own(result["confusions"]):
        value = values.get(_key(block))
        shown = "no" if value is None else f"{100 * value:.1f} %"
        what = _what(block)
        text = f"Confusion matrix, {what}: {len(block['classes'])} classes, {shown} balanced accuracy"
        yield _picture(confusion_picture(block["counts"], block["classes"]), text, f"{what} ({shown})")


def _reliability(result: Row) -> Iterator[Picture]:
    """The model's own answers, by the first prompt kind of each question."""
    first: dict[tuple[str, str], Row] = {}
    for curve in _own(result["calibration"]):
        first.setdefault((curve["section"], curve["name"]), curve)
    curves = [curve | {"title": _what(curve)} for curve in first.values()]
    for start in range(0, len(curves), _PANELS):
        some = curves[start : start + _PANELS]
        text = "Reliability: the share that is right over the confidence, for " + "; ".join(c["title"] for c in some)
        yield _picture(
            reliability_curves(some),
            text,
            "Dots: bins. Dotted line: as sure as right. Bars: shares of the cases.",
        )


def _jitter_curves(result: Row) -> Iterator[Picture]:
    """For each prompt kind the model's own answers over the jitter, a line for each source."""
    rows = [r for r in result["rows"] if r["metric"] == BALANCED_ACCURACY and r["comparator"] == OURS]
    found = [(*jitter, row) for row in rows if (jitter := jitter_of(row["prompt"])) is not None]
    for kind in dict.fromkeys(kind for kind, _, _ in found):
        steps = [0.0, *sorted({percent for k, percent, _ in found if k == kind})]
        curves: dict[str, list[Row]] = {}
        for _, percent, row in (one for one in found if one[0] == kind):
            curves.setdefault(row["name"], []).append(row | {"at": steps.index(percent)})
        for row in (r for r in rows if r["section"] == "region" and r["prompt"] == kind and r["name"] in curves):
            curves[row["name"]].append(row | {"at": 0})
        text = f"Balanced accuracy over the jitter of the {kind} prompt, for {', '.join(curves)}"
        png = curves_picture(curves, [f"{step:g} %" for step in steps], f"each side of the {kind} moves by up to")
        yield _picture(png, text, text + ".")


def _size_curves(result: Row) -> Iterator[Picture]:
    """For each source the comparators over the regions' size, by the source's first prompt kind."""
    rows = [r for r in result["subgroups"] if r["section"] == "region" and r["part"].startswith("size: ")]
    first = {r["name"]: r["prompt"] for r in reversed(rows)}
    for name in dict.fromkeys(r["name"] for r in rows):
        prompt = first[name]
        own = [r for r in rows if (r["name"], r["prompt"]) == (name, prompt)]
        present = {r["part"].removeprefix("size: ") for r in own}
        sizes = [size for _, size in SIZES if size in present]
        curves: dict[str, list[Row]] = {}
        for row in sorted(own, key=lambda r: order_of(r["comparator"])):
            at = sizes.index(row["part"].removeprefix("size: "))
            curves.setdefault(heading(row["comparator"]), []).append(row | {"at": at})
        text = f"Balanced accuracy over the regions' size, {name} by {prompt}"
        yield _picture(
            curves_picture(curves, sizes, "side of the region (root of its area), against the side of its image"),
            text,
            text + ".",
        )


def _own(blocks: list[Row]) -> list[Row]:
    """The model's own answers: prompted regions, unprompted images, probes."""
    return [b for b in blocks if b["comparator"] == OURS or b["prompt"] == "image"]


def _what(row: Row) -> str:
    by = "" if row["prompt"] == "image" else f", by {row['prompt'].replace('_', ' ')}"
    return f"{'images: ' if row['section'] == 'image' else ''}{row['name']}{by}"


def _key(row: Row) -> tuple[str, ...]:
    return row["section"], row["name"], row["prompt"], row["comparator"]


def _picture(png: bytes, text: str, caption: str) -> Picture:
    return Picture(data_uri(png, "png"), text, caption)
