"""What is said of several answers together: the mean over sources, and one way to ask minus another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from medpclip.evaluation.metrics.metrics import ACCURACY, BALANCED_ACCURACY, MACRO_F1
from medpclip.evaluation.results.answers import Answers, Asked, Labels, of_scores
from medpclip.evaluation.results.exposure import TrainedOn, least
from medpclip.evaluation.results.measures import PRIMARY, Measured, difference, mean_of, measure
from medpclip.evaluation.results.rows import MEAN, Row, exposure, row
from medpclip.evaluation.scores import Evaluation
from medpclip.evaluation.task import Task

OURS = "prompted"
IMAGE = Asked("image", "", "image", "unprompted")  # how an image is asked without a prompt


@dataclass(frozen=True)
class Measures:
    """All answers of an evaluation with their metrics, measured once.

    Attributes:
        answers: by question, in the sections' order.
        measured: metric -> value and resamples, by question.
    """

    task: Task
    trained: TrainedOn | None
    answers: dict[Asked, Answers]
    measured: dict[Asked, dict[str, Measured]]

    @classmethod
    def of(cls, task: Task, trained: TrainedOn | None, answers: Iterable[tuple[Asked, Answers]]) -> Measures:
        """Measure all metrics of all answers; a question that no case can be asked so is left out."""
        known = {asked: given for asked, given in answers if len(given)}
        measured = {
            asked: measure(given, asked.name, task.bootstrap, task.calibration_bins) for asked, given in known.items()
        }
        return cls(task, trained, known, measured)

    def rows(self) -> Iterator[Row]:
        """Every metric of every question."""
        for asked, given in self.answers.items():
            for metric, measured in self.measured[asked].items():
                yield row(asked, given, metric, measured, self.task, self.trained)

    def minus(self, a: Asked, b: Asked) -> Iterator[tuple[Answers, str, Measured]]:
        """The section's main metrics of `a` minus those of `b`, on the cases that both have."""
        bins, only = self.task.calibration_bins, PRIMARY[a.section]
        left, right = self.answers[a], self.answers[b]
        if left.ids == right.ids and left.groups == right.groups:
            both = {m: v - self.measured[b][m] for m, v in self.measured[a].items() if m.startswith(only)}
        else:
            left, both = difference(left, right, a.name, self.task.bootstrap, bins, only)
        for metric, measured in both.items():
            yield left, metric, measured


def headline(measures: Measures, mixed: list[str]) -> tuple[list[Row], list[Row]]:
    """Plain means over the sources where several region classes occur in one image, and ours minus the others.

    Args:
        measures: of the evaluation.
        mixed: these sources.
    """
    regions = {a: given for a, given in measures.answers.items() if a.section == "region" and a.name in mixed}
    asked_so = dict.fromkeys((a.prompt, a.comparator) for a in regions)
    means, differences = [], []
    for prompt, comparator in asked_so:
        parts = [a for a in regions if (a.prompt, a.comparator) == (prompt, comparator)]
        means += [
            _mean_row(measures, [(a, regions[a], measures.measured[a][metric]) for a in parts], metric)
            for metric in (BALANCED_ACCURACY, ACCURACY, MACRO_F1)
        ]
        if comparator != OURS:
            pairs = [(a._replace(comparator=OURS), a) for a in parts if a._replace(comparator=OURS) in regions]
            gains = [(ours, *found) for ours, other in pairs for found in measures.minus(ours, other)]
            if gains and len(gains) == len(parts):
                mean = _mean_row(measures, [(a, g, m) for a, g, _, m in gains], gains[0][2])
                differences.append(replace(mean, minus_prompt=prompt, minus=comparator))
    return means, differences


def differences(measures: Measures) -> Iterator[Row]:
    """Paired differences: ours minus each comparator, a prompted image minus the unprompted, a disturbed prompt minus
    the undisturbed one."""
    for asked in measures.answers:
        for other in _compared_with(asked, measures.answers):
            for given, metric, measured in measures.minus(asked, other):
                if len(given):
                    yield row(asked, given, metric, measured, measures.task, measures.trained, minus=other)


def _compared_with(asked: Asked, known: Iterable[Asked]) -> list[Asked]:
    if asked.section == "robustness":
        kind = asked.prompt.split()[0]  # of "box jittered 10%"
        undisturbed = asked.prompt == f"{kind} of tiny regions"
        others = [] if undisturbed else [asked._replace(section="region", prompt=kind)]
    elif asked.section in ("image", "multi_label"):
        others = [asked._replace(prompt=IMAGE.prompt, comparator=IMAGE.comparator)]
    else:
        others = [a for a in known if asked.comparator == OURS and a == asked._replace(comparator=a.comparator)]
    return [other for other in others if other != asked and other in set(known)]


def pairs(evaluation: Evaluation, task: Task, trained: TrainedOn | None) -> Iterator[Row]:
    """Regions of two classes, with only these two as candidates."""
    for scores in evaluation.of("region"):
        for kind, classes in scores.pairs.items():
            for pair in classes:
                for prompt, comparator in scores.values:
                    asked = Asked("region", scores.name, prompt, comparator)
                    given = of_scores(scores, prompt, comparator, pair)
                    found = measure(given, scores.name, task.bootstrap, task.calibration_bins, PRIMARY["region"])
                    for metric, measured in found.items():
                        yield row(asked, given, metric, measured, task, trained, part=f"{kind}: {' / '.join(pair)}")


def labels_apart(measures: Measures) -> Iterator[Row]:
    """Of questions with several labels, each label by itself."""
    task = measures.task
    for asked, given in measures.answers.items():
        if isinstance(given, Labels):
            for i, label in enumerate(given.classes):
                known = given.take(np.flatnonzero(given.truth[:, i] >= 0))
                one = replace(known, classes=[label], truth=known.truth[:, [i]], score=known.score[:, [i]])
                found = measure(one, asked.name, task.bootstrap, task.calibration_bins, PRIMARY[asked.section])
                for metric, measured in found.items():
                    yield row(asked, one, metric, measured, task, measures.trained, part=f"label: {label}")


def _mean_row(measures: Measures, parts: list[tuple[Asked, Answers, Measured]], metric: str) -> Row:
    """The mean over sources; counts are sums, exposure is the weakest."""
    rows = [row(a, given, metric, m, measures.task, measures.trained) for a, given, m in parts]
    mean = mean_of([m for *_, m in parts])
    return replace(
        rows[0],
        name=MEAN,
        metric=metric,
        value=mean.rounded,
        interval=mean.interval(measures.task.bootstrap.level) if any(r.groups > 1 for r in rows) else None,
        cases=sum(r.cases for r in rows),
        images=sum(r.images for r in rows),
        groups=sum(r.groups for r in rows),
        exposure=least(exposure(a, given, measures.trained) for a, given, _ in parts),
        sources=[a.name for a, *_ in parts],
        classes=sorted({c for r in rows for c in r.classes}),
    )
