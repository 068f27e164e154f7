"""The report: one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from medpclip.data.loading.prompting import PromptKind
from medpclip.evaluation.corpus import rng_for
from medpclip.evaluation.figures import confusion_picture, data_uri, loss_curves, prompted_picture
from medpclip.evaluation.predictions import top_answers
from medpclip.evaluation.result import OURS, order_of
from medpclip.evaluation.tables import HEADINGS, differences_table, images_table, pairs_table, regions_table
from medpclip.evaluation.task import Task
from medpclip.evaluation.zero_shot import Evaluation, Scores

GALLERY = 24
LOG = "log.jsonl"
_TEMPLATE = "report.html.j2"


@dataclass
class Picture:
    """A figure of the page: `source` is a data URI, `text` stands in for it where it can't be seen."""

    source: str
    text: str
    caption: str


@dataclass
class Card:
    """A case of the gallery.

    Attributes:
        answers: class, percent, whether it is the true one.
        others: what the other comparators answer: heading, class, whether it is the true one.
    """

    picture: Picture
    prompt: str
    source: str
    true: str
    right: bool
    answers: list[tuple[str, str, bool]]
    others: list[tuple[str, str, bool]]


def render_report(
    result: dict[str, Any], evaluation: Evaluation, task: Task, log: list[dict[str, Any]], gallery: int = GALLERY
) -> str:
    """The page's HTML.

    Args:
        result: as `build_result` made it, with the block `timing`.
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
    made = [regions_table(result), differences_table(result), pairs_table(result)]
    return environment.get_template(_TEMPLATE).render(
        result=result,
        region_tables=[table for table in made if table.rows],
        image_tables=[table for table in [images_table(result)] if table.rows],
        curves=_curves(log),
        confusions=list(_confusions(result)),
        cards=list(_cards(evaluation, task, gallery)),
        templates={"regions": task.region.templates if task.region else []}
        | {f"images: {question.label}": question.templates for question in task.image},
        no_mean=_sources_alone(result),
    )


def _sources_alone(result: dict[str, Any]) -> dict[str, list[str]]:
    """Sources that are the only one in a headline -> the prompt kinds where they are."""
    alone: dict[str, list[str]] = {}
    for prompt, sources in {row["prompt"]: row["sources"] for row in result["headline"]}.items():
        if len(sources) == 1:
            alone.setdefault(sources[0], []).append(prompt)
    return alone


def run_log(checkpoint: Path | None, step: int | None) -> list[dict[str, Any]]:
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


def _log_rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a line that a running training has not finished yet
        if isinstance(row, dict) and row.get("kind", "train") == "train":
            yield row


def _curves(log: list[dict[str, Any]]) -> Picture | None:
    png = loss_curves(log)
    if png is None:
        return None
    steps = [row["step"] for row in log if "step" in row]
    last = next((row["loss"] for row in reversed(log) if "loss" in row), None)
    text = f"Training losses up to step {max(steps, default=0)}" + (f"; the last loss is {last:.3f}" if last else "")
    return Picture(data_uri(png, "png"), text, text + ".")


def _confusions(result: dict[str, Any]) -> Iterator[Picture]:
    """The model's own answers by each prompt kind, then the image level."""
    for row in result["region"]:
        if row["comparator"] == OURS:
            yield _confusion(row, f"{row['source']}, by {row['prompt']}")
    for row in result["image"]:
        yield _confusion(row, f"images: {row['label']}")


def _confusion(row: dict[str, Any], what: str) -> Picture:
    value = "no" if row["value"] is None else f"{100 * row['value']:.1f} %"
    text = f"Confusion matrix, {what}: {len(row['classes'])} classes, {value} balanced accuracy"
    return Picture(data_uri(confusion_picture(row["confusion"], row["classes"]), "png"), text, f"{what} ({value})")


def _cards(evaluation: Evaluation, task: Task, count: int) -> Iterator[Card]:
    """Cases of all sources and prompt kinds in turn, right and wrong ones alternating where there are both."""
    queues = [
        queue
        for scores in evaluation.region
        for prompt in dict.fromkeys(prompt for prompt, _ in scores.values)
        for queue in _queues(scores, prompt, task.seed)
    ]
    shown: set[tuple[str, str]] = set()
    while queues and count > 0:
        scores, prompt, cases = queue = queues.pop(0)
        images = ((i, (scores.name, scores.cases[i].item.sample.key)) for i in cases)
        fresh = next(((i, image) for i, image in images if image not in shown), None)  # an image is shown once
        if fresh is not None:
            shown.add(fresh[1])
            yield _card(scores, fresh[0], prompt, task.seed)
            count -= 1
            queues.append(queue)


def _queues(scores: Scores, prompt: str, seed: int) -> list[tuple[Scores, str, list[int]]]:
    """The right and the wrong cases of one prompt kind, each in a seeded order."""
    name = OURS if (prompt, OURS) in scores.values else min((n for p, n in scores.values if p == prompt), key=order_of)
    right: list[int] = []
    wrong: list[int] = []
    for i in rng_for(seed, "gallery", scores.name, prompt).permutation(len(scores.cases)):
        top = top_answers(scores, i, prompt, name, 1)
        if top:
            (right if top[0][0] == scores.classes[scores.cases[i].true] else wrong).append(int(i))
    return [(scores, prompt, right), (scores, prompt, wrong)]


def _card(scores: Scores, index: int, prompt: str, seed: int) -> Card:
    case = scores.cases[index]
    true = scores.classes[case.true]
    names = sorted((n for p, n in scores.values if p == prompt), key=order_of)
    best = top_answers(scores, index, prompt, names[0])
    others = [(HEADINGS.get(n, n), top_answers(scores, index, prompt, n, 1)) for n in names[1:]]
    jpeg = prompted_picture(case, cast(PromptKind, prompt), seed)
    text = f"{case.item.sample.modality} image with a {prompt} prompt on a {true}; the first answer is {best[0][0]}"
    return Card(
        Picture(data_uri(jpeg, "jpeg"), text, ""),
        prompt,
        scores.name,
        true,
        best[0][0] == true,
        [(name, f"{100 * p:.0f} %", name == true) for name, p in best],
        [(heading, top[0][0], top[0][0] == true) for heading, top in others if top],
    )
