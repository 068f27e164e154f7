"""What simple classifiers make of frozen embeddings, which they learn from on the train split."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medpclip.data.schema import Region
from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import Corpus, Item, label_of, rng_for
from medpclip.evaluation.embedding.features import Features, Request
from medpclip.evaluation.metrics.metrics import BALANCED_ACCURACY, of_answers, value_of
from medpclip.evaluation.scores import Case, Scores
from medpclip.evaluation.sections.candidates import askable, related_classes, related_notes, without_related
from medpclip.evaluation.sections.cases import Way, chosen_regions, embed_ways, region_prompt
from medpclip.evaluation.task import OWN, ProbeTask, Task

STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # scikit-learn's C of the linear probe, the strongest penalty first
DEFAULT_STRENGTH = 0.01  # where there is nothing to choose by
TEMPERATURE = 0.07  # of the nearest neighbours' votes, as Wu et al. 2018 have it
_ITERATIONS = 2000
_TOLERANCE = 1e-8  # of the fit's gradient; with scikit-learn's 1e-4 rounding in the embeddings moves answers by 0.002
_LEAST = 1e-12  # probability of a class that nothing speaks for
_DIGITS = 6  # of a cosine: what only rounding tells apart is equal
_CELLS = 2**22  # of cases x learned cases held at once

Labelled = tuple[Item, Region | None, str]


@dataclass(frozen=True)
class Learned:
    """Embeddings with their classes.

    Attributes:
        features: float32 (n, D), L2-normalised.
        true: int64 (n,) indices of C classes.
    """

    features: np.ndarray
    true: np.ndarray


def run(features: Features, task: Task, question: ProbeTask, corpus: Corpus, left_out: list[str]) -> list[Scores]:
    """A `Scores` for the label, or for each source where regions are asked; comparators are "linear_probe" and "knn".

    Classes are those of the train split. With `shots` the comparators' names say so; val, by which the strength of the
    linear probe is chosen, is used whole. Region embeddings are the model's own, else of the first comparator at hand.

    Args:
        left_out: gets a line for what is not asked.

    Raises:
        MedpclipError: the measured split is the one that is learned from, or shares a patient or study with it.
    """
    if task.split == "train":
        raise MedpclipError(
            f"task {task.name!r}: a probe learns from the split 'train'; set 'split' to 'val' or 'test'"
        )
    splits = ("train", "val", task.split)
    _check_apart(task, corpus)
    if question.label != "region":
        labelled = {split: _images(corpus.split_items(split), question.label) for split in splits}
        found = [_probe(features, task, question, question.label, labelled, left_out)]
    else:
        found = []
        for source in corpus.sources:
            labelled = {split: _regions(source.by_split.get(split, []), task) for split in splits}
            found.append(_probe(features, task, question, source.name, labelled, left_out))
    return [scores for scores in found if scores is not None]


def linear_probe(train: Learned, val: Learned | None, cases: np.ndarray, classes: int) -> np.ndarray:
    """Multinomial logistic regression on standardised features, all classes weighted alike.

    The strength of its penalty is the one of `STRENGTHS` with the best balanced accuracy on val, of equals the strongest;
    it isn't trained again with val.

    Args:
        train: two classes or more.
        val: None for `DEFAULT_STRENGTH`.
        cases: (m, D).

    Returns:
        Float32 (m, classes), log-probabilities.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, deviation = train.features.mean(axis=0, dtype=np.float64), train.features.std(axis=0, dtype=np.float64)
    deviation[deviation < 1e-8] = 1.0

    def fitted(strength: float) -> LogisticRegression:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=_ITERATIONS, tol=_TOLERANCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # so many iterations are part of the definition
            return model.fit((train.features - mean) / deviation, train.true)

    if val is None:
        best = fitted(DEFAULT_STRENGTH)
    else:
        models = [fitted(strength) for strength in STRENGTHS]
        answers = [model.predict((val.features - mean) / deviation) for model in models]
        reached = [value_of(of_answers(val.true, a, classes)[BALANCED_ACCURACY], len(a)) for a in answers]
        best = models[int(np.argmax(reached))]
    out = np.zeros((len(cases), classes))
    out[:, best.classes_] = best.predict_proba((cases - mean) / deviation)
    return np.log(np.maximum(out, _LEAST)).astype(np.float32)


def nearest_neighbours(train: Learned, cases: np.ndarray, classes: int, neighbours: int) -> np.ndarray:
    """The k nearest by cosine vote with weight exp(cosine / TEMPERATURE) (Wu et al. 2018, section 3.4).

    Of equals at the edge all vote, with the weight of those that would still fit.

    Args:
        train, cases: L2-normalised; cases (m, D).

    Returns:
        Float32 (m, classes), the logarithms of the classes' shares of the votes.
    """
    of_class = np.eye(classes)[train.true]
    learned = train.features.astype(np.float64).T
    k = min(neighbours, len(train.true))
    step = max(1, _CELLS // len(train.true))
    shares = np.zeros((len(cases), classes))
    for start in range(0, len(cases), step):
        cosine = np.round(cases[start : start + step].astype(np.float64) @ learned, _DIGITS)
        last = -np.partition(-cosine, k - 1, axis=1)[:, k - 1 : k]
        above, level = cosine > last, cosine == last
        voting = above + level * (k - above.sum(axis=1, keepdims=True)) / level.sum(axis=1, keepdims=True)
        weights = voting * np.exp((cosine - cosine.max(axis=1, keepdims=True)) / TEMPERATURE)
        shares[start : start + step] = weights @ of_class / weights.sum(axis=1, keepdims=True)
    return np.log(np.maximum(shares, _LEAST)).astype(np.float32)


def few(cases: Sequence[Case], shots: int | None, seed: int, name: str) -> list[Case]:
    """A seeded choice of at most `shots` cases of each class, in their order; all where it is None."""
    if shots is None:
        return list(cases)
    true = np.array([case.true for case in cases])
    kept: list[int] = []
    for index in np.unique(true).tolist():
        own = np.flatnonzero(true == index)
        rng = rng_for(seed, "shots", name, index)
        kept += rng.choice(own, min(shots, len(own)), replace=False).tolist()
    return [cases[i] for i in sorted(kept)]


def _check_apart(task: Task, corpus: Corpus) -> None:
    """A split is made by group within a folder; several folders of one source may not agree."""
    for source in corpus.sources:
        groups = {split: {i.sample.group for i in source.by_split.get(split, [])} for split in ("train", task.split)}
        if both := groups["train"] & groups[task.split]:
            raise MedpclipError(
                f"task {task.name!r}: probe: {len(both)} groups of {source.name} are in 'train' and in {task.split!r}, so "
                "that it would be asked what it has learned; build that source's folders together"
            )


def _images(items: Sequence[Item], label: str) -> list[Labelled]:
    return [(item, None, value) for item in items if (value := label_of(item.sample, label)) is not None]


def _regions(items: Sequence[Item], task: Task) -> list[Labelled]:
    limit = None if task.region is None else task.region.max_regions_per_image
    return [
        (item, region, region.category)
        for item in items
        for region in chosen_regions(item, {r.category for r in item.sample.regions}, limit, task.seed)
    ]


def _probe(
    features: Features,
    task: Task,
    question: ProbeTask,
    name: str,
    labelled: Mapping[str, list[Labelled]],
    left_out: list[str],
) -> Scores | None:
    """One label or source; None, with a note, where there is nothing to learn or to ask."""
    what, unit = f"probe of {name}", "regions" if question.label == "region" else "images"
    classes = sorted({value for *_, value in labelled["train"]})
    index = {value: i for i, value in enumerate(classes)}
    related = related_classes(classes)
    cases = {
        split: [Case(item, index[value], region) for item, region, value in rows if value in index]
        for split, rows in labelled.items()
    }
    if unknown := len(labelled[task.split]) - len(cases[task.split]):
        left_out.append(f"{what}: {unknown} {unit} of classes that the train split doesn't have")
    left_out += related_notes(what, unit, classes, [case.true for case in cases[task.split]], related)
    asked = [case for case in cases[task.split] if askable(related)[case.true]]
    if len(classes) < 2 or not asked:
        left_out.append(f"{what}: fewer than two classes in the train split, or no case in {task.split!r}")
        return None
    if task.split == "val" or not cases["val"]:
        why = "val is what is measured" if task.split == "val" else "there is no val split"
        left_out.append(f"{what}: choice of the linear probe's penalty, since {why}; C is {DEFAULT_STRENGTH}")
        cases["val"] = []
    scores = Scores("probe", name, classes, asked)
    learned, chosen_by, measured = (
        _embedded(features, task, question, name, part)
        for part in (few(cases["train"], question.shots, task.seed, name), cases["val"], asked)
    )
    for prompt, (embeddings, _) in measured.items():
        train, val = _answered(*learned[prompt]), _answered(*chosen_by[prompt])
        known = ~np.isnan(embeddings).any(axis=1)
        if len(np.unique(train.true)) < 2 or not known.any():
            left_out.append(f"{what}: prompt {prompt!r}, which too few regions have")
            continue
        for method in question.methods:
            if method == "linear":
                found = linear_probe(train, val if len(val.true) else None, embeddings[known], len(classes))
            else:
                found = nearest_neighbours(train, embeddings[known], len(classes), question.neighbours)
            values = np.full((len(asked), len(classes)), np.nan, np.float32)
            values[known] = found
            scores.values[prompt, _name(method, question.shots)] = without_related(values, scores.true, related)
    return scores


def _embedded(
    features: Features, task: Task, question: ProbeTask, name: str, cases: Sequence[Case]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Prompt -> embeddings (n, D), rows of NaN where a case has no such prompt, and classes (n,)."""
    true = np.array([case.true for case in cases], np.int64)
    if question.label != "region":
        return {"image": (features.embed([Request(case.item, None) for case in cases], f"probe: {name}"), true)}
    own = [OWN[0], *task.comparators]
    comparator = next(str(one) for one in own if one in features.comparators)
    ways = [Way(k, [region_prompt(c, k, features.mask_grid, task.seed) for c in cases]) for k in question.prompts]
    found = embed_ways(features, cases, ways, [comparator], f"probe: {name}")
    return {prompt: (rows, true) for (prompt, _), rows in found.items()}


def _answered(embeddings: np.ndarray, true: np.ndarray) -> Learned:
    known = ~np.isnan(embeddings).any(axis=1)
    return Learned(embeddings[known], true[known])


def _name(method: str, shots: int | None) -> str:
    name = {"linear": "linear_probe", "knn": "knn"}[method]
    return name if shots is None else f"{name}, {shots} {'shot' if shots == 1 else 'shots'}"
