"""What one comparator answered to the cases of one question: the form from which every metric is had.

It is made of scores (`of_scores` and its like), or of the lines of predictions.jsonl, with the same figures either way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar

import numpy as np

from medpclip.evaluation.metrics.calibration import brier_scores
from medpclip.evaluation.scores import Case, Evaluation, MultiLabelScores, Ranking, Scores

AnyAnswers = TypeVar("AnyAnswers", bound="Answers")


class CaseId(NamedTuple):
    """By what a case is found again in another evaluation of the same data.

    Attributes:
        region: the region's id; None for an image.
        nth: how many cases of the same question came before with the same source, key and region (texts of one image).
    """

    source: str
    key: str
    region: int | None
    nth: int


class Asked(NamedTuple):
    """Which question, and how it was asked."""

    section: str
    name: str
    prompt: str
    comparator: str


@dataclass
class Answers(ABC):
    """Answers to n cases.

    Attributes:
        ids: which cases.
        groups: (source, patient or study) of each: what is resampled.
    """

    ids: list[CaseId]
    groups: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self: AnyAnswers, chosen: np.ndarray | Sequence[int]) -> AnyAnswers:
        """Some of the cases: indices (m,) into them."""
        index = [int(i) for i in chosen]
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in given.items():
            if name in ("ids", "groups"):
                given[name] = [value[i] for i in index]
            elif isinstance(value, np.ndarray):
                given[name] = value[index]
            elif isinstance(value, dict):
                given[name] = {key: part[index] for key, part in value.items()}
        return type(self)(**given)

    @property
    @abstractmethod
    def occurring(self) -> list[str]:
        """The classes that some case has; empty where the question has no classes."""

    @property
    @abstractmethod
    def options(self) -> int:
        """How many answers there are to choose from."""

    @property
    def images(self) -> int:
        """How many images the cases are on."""
        return len({(case.source, case.key) for case in self.ids})

    @property
    def sources(self) -> list[str]:
        """Where the cases come from, sorted."""
        return sorted({case.source for case in self.ids})


@dataclass
class Choices(Answers):
    """One of C classes for each case.

    Attributes:
        classes: the candidates.
        true, predicted: (n,) int64 indices of classes; of equals the first is predicted.
        confidence: (n,) float32, the predicted class's probability.
        brier: (n,) float32, the squared distance of the probabilities from the truth, summed over the classes
            (Brier 1950).
        positive: which class is looked for; None for no such.
        score: (n,) float32, the log-probability of `positive`; None without one.
    """

    classes: list[str]
    true: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    brier: np.ndarray
    positive: int | None = None
    score: np.ndarray | None = None

    @property
    def occurring(self) -> list[str]:
        return [self.classes[i] for i in np.unique(self.true)]

    @property
    def options(self) -> int:
        return len(self.classes)


@dataclass
class Labels(Answers):
    """For each case and each of C labels, how much is said for it.

    Attributes:
        classes: the labels.
        truth: (n, C) int8: 1 true, 0 false, -1 unknown.
        score: (n, C) float32, the log-probability that it is true.
    """

    classes: list[str]
    truth: np.ndarray
    score: np.ndarray

    @property
    def occurring(self) -> list[str]:
        return [c for c, column in zip(self.classes, self.truth.T, strict=True) if (column == 1).any()]

    @property
    def options(self) -> int:
        return len(self.classes)


@dataclass
class Ranks(Answers):
    """Where the right candidates of each query stand.

    Attributes:
        candidates: how many there are.
        rank: (n,) int64, 0-based, of the best-placed right one.
        found: depth -> (n,) float32, the share of the right ones that are among the first so many.
    """

    candidates: int
    rank: np.ndarray
    found: dict[int, np.ndarray]

    @property
    def occurring(self) -> list[str]:
        return []

    @property
    def options(self) -> int:
        return self.candidates


def all_answers(evaluation: Evaluation) -> Iterator[tuple[Asked, Answers]]:
    """Every question by every prompt and comparator, in the sections' order; those that nothing answers are left out."""
    for section in ("image", "multi_label", "region", "retrieval", "probe", "robustness"):
        if section == "multi_label":
            for labels in evaluation.multi_label:
                for asked in labels.values:
                    yield Asked(section, labels.name, *asked), of_labels(labels, *asked)
        elif section == "retrieval":
            for ranking in evaluation.rankings:
                for asked in ranking.best_rank:
                    yield Asked(section, ranking.name, *asked), of_ranking(ranking, *asked)
        else:
            for scores in evaluation.scores:
                if scores.section == section:
                    for asked in scores.values:
                        yield Asked(section, scores.name, *asked), of_scores(scores, *asked)


def of_scores(scores: Scores, prompt: str, comparator: str, pair: tuple[str, str] | None = None) -> Choices:
    """The cases that can be asked so; with a pair of classes, only these cases and candidates."""
    values, true, classes, positive = scores.values[prompt, comparator], scores.true, scores.classes, scores.positive
    if pair is not None:
        columns = [classes.index(c) for c in pair]
        values, classes, positive = values[:, columns], list(pair), None
        true = np.select([true == c for c in columns], range(len(columns)), -1)
    used = np.flatnonzero((true >= 0) & ~np.isnan(values).any(axis=1))
    ids = case_ids(scores.cases)
    values, true = values[used], true[used]
    predicted = np.argmax(values, axis=1)
    return Choices(
        [ids[i] for i in used],
        [scores.cases[i].group for i in used],
        list(classes),
        true,
        predicted,
        np.exp(values[np.arange(len(used)), predicted]).astype(np.float32),
        brier_scores(values, true).astype(np.float32),
        positive,
        None if positive is None else values[:, positive].astype(np.float32),
    )


def of_labels(labels: MultiLabelScores, prompt: str, comparator: str) -> Labels:
    """The images that can be asked so."""
    values = labels.values[prompt, comparator]
    used = np.flatnonzero(~np.isnan(values).any(axis=1))
    ids = case_ids(labels.cases)
    return Labels(
        [ids[i] for i in used],
        [labels.cases[i].group for i in used],
        list(labels.classes),
        labels.truth[used],
        values[used].astype(np.float32),
    )


def of_ranking(ranking: Ranking, prompt: str, comparator: str) -> Ranks:
    """The queries that can be asked so."""
    rank = ranking.best_rank[prompt, comparator]
    used = np.flatnonzero(rank >= 0)
    ids = case_ids(ranking.cases)
    found = ranking.found.get((prompt, comparator), {})
    return Ranks(
        [ids[i] for i in used],
        [ranking.cases[i].group for i in used],
        ranking.candidates,
        rank[used],
        {k: share[used].astype(np.float32) for k, share in sorted(found.items())},
    )


def case_ids(cases: Sequence[Case]) -> list[CaseId]:
    """Names by which the cases of one question can be told apart."""
    seen: Counter[tuple[str, str, int | None]] = Counter()
    out = []
    for case in cases:
        name = (case.item.sample.source, case.item.sample.key, None if case.region is None else case.region.id)
        out.append(CaseId(*name, seen[name]))
        seen[name] += 1
    return out


def common(a: AnyAnswers, b: AnyAnswers) -> tuple[AnyAnswers, AnyAnswers]:
    """Both restricted to the cases that both have, in the order of `a`."""
    place = {case: i for i, case in enumerate(b.ids)}
    kept = [i for i, case in enumerate(a.ids) if case in place]
    return a.take(kept), b.take([place[a.ids[i]] for i in kept])
