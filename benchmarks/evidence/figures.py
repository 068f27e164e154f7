"""From answers to figures: means over seeds, with resamples of the groups of all seeds' splits together.

A group (a patient, a study) may be in the test split of several seeds, where it is asked about by several models. So
groups are resampled once, over the union of the seeds' groups of a source, and whoever is drawn is drawn for all seeds
and all runs: differences between runs are paired. Sources are resampled each by itself. Our design, after the Bayesian
bootstrap (Rubin 1981) and the cluster bootstrap (Field and Welsh 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medpclip.evaluation.metrics.bootstrap import bootstrap, percentile_interval, seed_of
from medpclip.evaluation.metrics.metrics import Metric, of_answers, value_of
from medpclip.evaluation.results.answers import Answers, Asked, Choices, common
from medpclip.evaluation.results.measures import metrics_of

DRAWS, LEVEL, SEED, BINS = 2000, 0.95, 0, 15
BySeed = Mapping[int, Mapping[Asked, Answers]]
MetricOf = Callable[[Answers], Metric | None]


@dataclass(frozen=True)
class Figure:
    """Attributes:
    value: the mean over seeds, a share.
    draws: (DRAWS,) its resamples.
    by_seed: each seed's own.
    """

    value: float
    draws: np.ndarray
    by_seed: Mapping[int, float]

    def __sub__(self, other: Figure) -> Figure:
        both = [seed for seed in self.by_seed if seed in other.by_seed]
        apart = {seed: self.by_seed[seed] - other.by_seed[seed] for seed in both}
        return Figure(self.value - other.value, self.draws - other.draws, apart)

    @property
    def interval(self) -> list[float] | None:
        """[low, high]."""
        return percentile_interval(self.draws, LEVEL)


def named(metric: str) -> MetricOf:
    """A metric by its name in results."""
    return lambda answers: metrics_of(answers, BINS).get(metric)


ACCURACY = named("balanced_accuracy")


def region(source: str, prompt: str, comparator: str = "prompted") -> Asked:
    """The region question of a source."""
    return Asked("region", source, prompt, comparator)


def minus(one: Figure | None, other: Figure | None) -> Figure | None:
    """Paired; None where either is."""
    return None if one is None or other is None else one - other


def recall_of(terms: Iterable[str]) -> MetricOf:
    """The mean recall of these classes among all candidates; None where no case is of them."""
    wanted = set(terms)

    def metric(answers: Answers) -> Metric | None:
        assert isinstance(answers, Choices)
        chosen = np.isin(answers.true, [i for i, name in enumerate(answers.classes) if name in wanted])
        if not chosen.any():
            return None
        true = np.where(chosen, answers.true, -1)
        return of_answers(true, answers.predicted, len(answers.classes))["balanced_accuracy"]

    return metric


def figure(run: BySeed, asked: Asked, metric: MetricOf) -> Figure | None:
    """A metric of one question; None where no seed's split has it."""
    cases = {seed: answers[asked] for seed, answers in run.items() if asked in answers and len(answers[asked])}
    numbers = {group: i for i, group in enumerate(sorted({g for answers in cases.values() for g in answers.groups}))}
    values, draws = {}, []
    for seed, answers in cases.items():
        measured = metric(answers)
        if measured is None:
            continue
        groups = np.array([numbers[group] for group in answers.groups], np.int64)
        values[seed] = value_of(measured, len(answers))
        draws.append(bootstrap(measured, groups, DRAWS, seed_of(SEED, asked.name), len(numbers)))
    return Figure(float(np.mean(list(values.values()))), np.mean(draws, axis=0), values) if values else None


def mean_figure(parts: Sequence[Figure]) -> Figure | None:
    """The plain mean over sources; None of none. A seed counts with the sources that its split has."""
    if not parts:
        return None
    seeds = sorted({seed for part in parts for seed in part.by_seed})
    by_seed = {s: float(np.mean([p.by_seed[s] for p in parts if s in p.by_seed])) for s in seeds}
    return Figure(float(np.mean([p.value for p in parts])), np.mean([p.draws for p in parts], axis=0), by_seed)


def over_sources(
    run: BySeed,
    sources: Iterable[str],
    prompt: str,
    metric: MetricOf,
    section: str = "region",
    comparator: str = "prompted",
) -> Figure | None:
    """The mean over the sources that can be asked so."""
    parts = [figure(run, Asked(section, source, prompt, comparator), metric) for source in sources]
    return mean_figure([part for part in parts if part is not None])


def paired(run: BySeed, pairs: Iterable[tuple[Asked, Asked]], metric: MetricOf) -> Figure | None:
    """The mean over pairs of questions of the first minus the second, on the cases that could be asked both ways."""
    parts = []
    for pair in pairs:
        both = {
            seed: common(*(given[asked] for asked in pair)) for seed, given in run.items() if set(pair) <= set(given)
        }
        one, other = (
            figure({seed: {asked: cases[i]} for seed, cases in both.items()}, asked, metric)
            for i, asked in enumerate(pair)
        )
        if one is not None and other is not None:
            parts.append(one - other)
    return mean_figure(parts)


def best(validation: Mapping[str, BySeed], names: Iterable[str], sources: Iterable[str], prompt: str) -> str | None:
    """Which run is best on validation, by the mean over sources; None where none was asked."""
    chosen = list(sources)
    scored = [
        (found.value, name)
        for name in names
        if name in validation and (found := over_sources(validation[name], chosen, prompt, ACCURACY)) is not None
    ]
    return max(scored)[1] if scored else None
