"""The metrics of a comparator's answers, each with its resamples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from medpclip.evaluation.metrics import metrics
from medpclip.evaluation.metrics.bootstrap import bootstrap as resampled
from medpclip.evaluation.metrics.bootstrap import group_numbers, mean_of_sources, percentile_interval, seed_of
from medpclip.evaluation.metrics.calibration import BRIER, ECE, of_confidence
from medpclip.evaluation.metrics.metrics import Metric
from medpclip.evaluation.results.answers import Answers, AnyAnswers, Choices, Labels, Ranks, common
from medpclip.evaluation.task import Bootstrap

# The metric that a section is judged by, and that differences are taken of; retrieval: recall at every depth.
PRIMARY = {
    "image": metrics.BALANCED_ACCURACY,
    "multi_label": metrics.MEAN_AVERAGE_PRECISION,
    "region": metrics.BALANCED_ACCURACY,
    "retrieval": "recall@",
    "probe": metrics.BALANCED_ACCURACY,
    "robustness": metrics.BALANCED_ACCURACY,
}
LOWER_IS_BETTER = (ECE, BRIER)
_DIGITS = 6  # of what is written: sums of float32 in another order differ beyond


@dataclass(frozen=True)
class Measured:
    """A metric.

    Attributes:
        value: NaN where it can't be had.
        draws: (draws,) its resamples.
    """

    value: float
    draws: np.ndarray

    def __sub__(self, other: Measured) -> Measured:
        return Measured(self.value - other.value, self.draws - other.draws)

    @property
    def rounded(self) -> float:
        """The value as it is written."""
        return round(self.value, _DIGITS) + 0.0  # no -0.0

    def interval(self, level: float) -> list[float] | None:
        """[low, high] as they are written; None without a resample that has a value."""
        interval = percentile_interval(self.draws, level)
        return None if interval is None else [round(v, _DIGITS) + 0.0 for v in interval]


def measure(answers: Answers, name: str, bootstrap: Bootstrap, bins: int, only: str = "") -> dict[str, Measured]:
    """The metrics of some answers; empty without a case.

    Args:
        answers: n cases.
        name: the source or label: the same name and groups are resampled alike, other names otherwise.
        bootstrap: how often.
        bins: of the calibration error.
        only: what the metrics' names begin with.
    """
    if not len(answers):
        return {}
    groups, seed = group_numbers(answers.groups), seed_of(bootstrap.seed, name)
    return {
        key: Measured(metrics.value_of(metric, len(answers)), resampled(metric, groups, bootstrap.draws, seed))
        for key, metric in metrics_of(answers, bins).items()
        if key.startswith(only)
    }


def difference(
    a: AnyAnswers, b: AnyAnswers, name: str, bootstrap: Bootstrap, bins: int, only: str = ""
) -> tuple[AnyAnswers, dict[str, Measured]]:
    """a minus b on the cases that both have, the same groups resampled for both: these cases, and the metrics."""
    a, b = common(a, b)
    left, right = (measure(answers, name, bootstrap, bins, only) for answers in (a, b))
    return a, {metric: left[metric] - right[metric] for metric in left if metric in right}


def mean_of(parts: list[Measured]) -> Measured:
    """The plain mean over sources, each resampled by itself."""
    return Measured(float(np.mean([p.value for p in parts])), mean_of_sources([p.draws for p in parts]))


def seen_by_metric(answers: Answers, metric: str) -> np.ndarray:
    """What a metric sees of each of n cases, (n, ...): where two models' are equal, so is what they add to it."""
    if isinstance(answers, Labels):
        return answers.score
    if isinstance(answers, Ranks):
        name, _, depth = metric.partition("@")
        return answers.rank < int(depth) if name == "recall" else answers.found[int(depth)]
    assert isinstance(answers, Choices)
    if metric in (metrics.ACCURACY, metrics.BALANCED_ACCURACY):
        return answers.true == answers.predicted
    if metric == ECE:
        return np.stack([answers.confidence, answers.true == answers.predicted], 1)
    if metric == BRIER:
        return answers.brier
    score = answers.score if metric in (metrics.AUROC, metrics.AVERAGE_PRECISION) else None
    return answers.predicted if score is None else score


@singledispatch
def metrics_of(answers: Answers, bins: int) -> dict[str, Metric]:
    """Name -> metric of the n cases, as far as the kind of question has it."""
    raise AssertionError(type(answers))


@metrics_of.register
def _of_choices(answers: Choices, bins: int) -> dict[str, Metric]:
    out = metrics.of_answers(answers.true, answers.predicted, len(answers.classes))
    if answers.score is not None:
        positive, said = answers.true == answers.positive, answers.predicted == answers.positive
        out |= metrics.of_binary(positive, answers.score, said)
    return out | of_confidence(answers.confidence, answers.true == answers.predicted, answers.brier, bins)


@metrics_of.register
def _of_labels(answers: Labels, bins: int) -> dict[str, Metric]:
    return metrics.of_labels(answers.truth, answers.score)


@metrics_of.register
def _of_ranks(answers: Ranks, bins: int) -> dict[str, Metric]:
    return metrics.of_ranking(answers.rank, answers.found)
