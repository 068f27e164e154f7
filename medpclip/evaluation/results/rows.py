"""The rows of a result: one shape for every figure of every section."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from medpclip.evaluation.embedding.texts import templates_sha256
from medpclip.evaluation.results.answers import Answers, Asked
from medpclip.evaluation.results.exposure import Exposure, TrainedOn, exposure_of
from medpclip.evaluation.results.measures import Measured
from medpclip.evaluation.task import Task

MEAN = "MEAN"
ASKED_AS = {"image": "multi_class", "multi_label": "multi_label"}  # section -> kind of image question


@dataclass(frozen=True)
class Row:
    """A figure and what it says. The order of the fields is that of result.json.

    Attributes:
        section: image, multi_label, region, retrieval, probe or robustness.
        name: the source, the label or the direction of retrieval; "MEAN" over the sources.
        part: which cases only, as "size: below 1 %", or which classes only; None for all.
        prompt: prompt kind, "image" for the image embedding, or a disturbed prompt.
        comparator: what embedded it.
        minus_prompt, minus: what was subtracted, for a difference; None otherwise.
        metric: the metric's name.
        value: a share, not percent; None where it can't be had.
        interval: [low, high], or None.
        level: coverage of the interval.
        cases: regions, images or queries.
        images: they are on.
        groups: patients or studies (else images), which were resampled.
        split: of the data.
        exposure: what training saw.
        sources: where the cases come from.
        candidates: how many answers there are to choose from.
        classes: these; empty for retrieval.
        templates_sha256: of the question's templates; None where no text was asked.
    """

    section: str
    name: str
    part: str | None
    prompt: str
    comparator: str
    minus_prompt: str | None
    minus: str | None
    metric: str
    value: float
    interval: list[float] | None
    level: float
    cases: int
    images: int
    groups: int
    split: str
    exposure: Exposure
    sources: list[str]
    candidates: int
    classes: list[str]
    templates_sha256: str | None

    def data(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)


def row(
    asked: Asked,
    answers: Answers,
    metric: str,
    measured: Measured,
    task: Task,
    trained: TrainedOn | None,
    part: str | None = None,
    minus: Asked | None = None,
) -> Row:
    """A metric of some answers as a row; of a difference, `minus` is what was subtracted.

    One group can't be resampled, so it has no interval.
    """
    groups = len(set(answers.groups))
    return Row(
        section=asked.section,
        name=asked.name,
        part=part,
        prompt=asked.prompt,
        comparator=asked.comparator,
        minus_prompt=minus.prompt if minus else None,
        minus=minus.comparator if minus else None,
        metric=metric,
        value=measured.rounded,
        interval=measured.interval(task.bootstrap.level) if groups > 1 else None,
        level=task.bootstrap.level,
        cases=len(answers),
        images=answers.images,
        groups=groups,
        split=task.split,
        exposure=exposure(asked, answers, trained),
        sources=answers.sources,
        candidates=answers.options,
        classes=list(getattr(answers, "classes", [])),
        templates_sha256=templates_of(task, asked),
    )


def exposure(asked: Asked, answers: Answers, trained: TrainedOn | None) -> Exposure:
    """What training saw of the cases; whole images have no terms that it could have seen."""
    regions = any(case.region is not None for case in answers.ids)
    return exposure_of(trained, answers.sources, answers.occurring if regions and answers.occurring else None)


def templates_of(task: Task, asked: Asked) -> str | None:
    """SHA-256 of the templates that word the question's classes; None where there are none."""
    templates: list[str] = []
    if asked.section in ("region", "robustness") and task.region is not None:
        templates = task.region.templates
    for question in task.image:
        if question.label == asked.name and question.kind == ASKED_AS.get(asked.section):
            templates = question.templates + (question.negatives if asked.section == "multi_label" else [])
    if asked.section == "retrieval" and "region" in asked.name.split(":")[0]:
        templates = [t for retrieval in task.retrieval if retrieval.kind == "region" for t in retrieval.templates]
    return templates_sha256(templates) if templates else None
