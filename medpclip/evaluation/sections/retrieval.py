"""Retrieval within each source: images and their captions, regions and the texts of their classes, both directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medpclip.evaluation.corpus import Corpus, Source
from medpclip.evaluation.embedding.features import Features, Request
from medpclip.evaluation.embedding.texts import TextClassifier
from medpclip.evaluation.scores import Case, Ranking
from medpclip.evaluation.sections.candidates import related_classes
from medpclip.evaluation.sections.cases import Way, chosen_regions, embed_ways, region_prompt
from medpclip.evaluation.task import RetrievalTask, Task, fill_ins

_CELLS = 2**22  # of queries x candidates held at once
_DIGITS = 6  # of a similarity: what only rounding tells apart is equal


def run(features: Features, task: Task, question: RetrievalTask, corpus: Corpus, left_out: list[str]) -> list[Ranking]:
    """Two rankings, one for each direction, of every source that has something to rank.

    Captions: an image's right candidates are its captions, a caption's are all images of the source that have it.
    Regions: a region's right candidate is the text of its class, among those of the source's classes; a text's are all
    regions of its class (where the templates speak of the modality, those of the text's modality). What is a kind of the
    query's class, or what it is a kind of, is neither right nor wrong and isn't ranked.

    Args:
        left_out: gets a line for what is not asked.
    """
    if question.kind == "caption":
        return [ranking for source in corpus.sources for ranking in _captions(features, question, source, left_out)]
    return [ranking for source in corpus.sources for ranking in _regions(features, task, question, source, left_out)]


@dataclass(frozen=True)
class Places:
    """Where the right candidates of Q queries stand.

    Attributes:
        best_rank: (Q,) int64, as `Ranking` has it.
        found: k -> (Q,) float32, as `Ranking` has it; NaN where there is no rank.
    """

    best_rank: np.ndarray
    found: dict[int, np.ndarray]


def places(similarity: np.ndarray, right: np.ndarray, ranked: np.ndarray, depths: Sequence[int]) -> Places:
    """Where the right candidates stand; equals are in no order.

    The best-placed right candidate has rank (better wrong ones) + (equal wrong ones) / 2, rounded up. The share of the
    right ones among the first k is its mean over all orders of equals.

    Args:
        similarity: (Q, M), the higher the better.
        right: (Q, M) bool.
        ranked: (Q, M) bool: the candidates that take part; the rest might as well not be there.
        depths: the k.
    """
    similarity = np.where(ranked, similarity, -np.inf)
    right, wrong = right & ranked, ranked & ~right
    counts = right.sum(axis=1)
    best = np.where(right, similarity, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
    better, equal = (wrong & (similarity > best)).sum(axis=1), (wrong & (similarity == best)).sum(axis=1)
    found = {}
    for k in depths:
        taken = np.full(len(similarity), 1.0)
        if k < similarity.shape[1]:
            last = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]
            above, level = similarity > last, similarity == last
            # Of the equals at the edge only so many fit as places are left.
            fitting = (k - above.sum(axis=1)) / level.sum(axis=1)
            amount = (right & above).sum(axis=1) + (right & level).sum(axis=1) * fitting
            taken = amount / np.maximum(counts, 1)
        found[k] = np.where(counts > 0, taken, np.nan).astype(np.float32)
    return Places(np.where(counts > 0, better + (equal + 1) // 2, -1).astype(np.int64), found)


def rank(
    queries: np.ndarray,
    candidates: np.ndarray,
    right: Sequence[np.ndarray],
    unranked: Sequence[np.ndarray],
    depths: Sequence[int],
) -> Places:
    """Where the right candidates of each query stand by cosine.

    Args:
        queries, candidates: (Q, D) and (M, D), L2-normalised; a row of NaN isn't asked, or isn't ranked.
        right, unranked: of each query, which candidates are right and which take no part: indices, int64.
        depths: the k.
    """
    answered = ~np.isnan(candidates).any(axis=1)
    asked = ~np.isnan(queries).any(axis=1)
    columns = np.nan_to_num(candidates.astype(np.float64)).T
    step = max(1, _CELLS // max(1, len(candidates)))
    parts = []
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        similarity = np.round(np.nan_to_num(queries[rows].astype(np.float64)) @ columns, _DIGITS)
        is_right, is_ranked = np.zeros(similarity.shape, bool), np.zeros(similarity.shape, bool)
        is_ranked[:] = asked[rows, None] & answered
        for i, (good, barred) in enumerate(zip(right[rows], unranked[rows], strict=True)):
            is_right[i, good] = True
            is_ranked[i, barred] = False
        parts.append(places(similarity, is_right, is_ranked, depths))
    ranks = [part.best_rank for part in parts] or [np.zeros(0, np.int64)]
    return Places(
        np.concatenate(ranks),
        {k: np.concatenate([part.found[k] for part in parts] or [np.zeros(0, np.float32)]) for k in depths},
    )


def _captions(features: Features, question: RetrievalTask, source: Source, left_out: list[str]) -> list[Ranking]:
    said = [
        list(dict.fromkeys(" ".join(c.split()) for c in item.sample.captions if c.strip())) for item in source.items
    ]
    items = [item for item, captions in zip(source.items, said, strict=True) if captions]
    said = [captions for captions in said if captions]
    numbers = {caption: n for n, caption in enumerate(dict.fromkeys(c for captions in said for c in captions))}
    if len(items) < len(source.items):
        left_out.append(
            f"{source.name}: caption retrieval of {len(source.items) - len(items)} images without a caption"
        )
    if len(numbers) < 2:
        left_out.append(f"{source.name}: caption retrieval, since there are fewer than two different captions")
        return []
    texts_of = [np.array([numbers[c] for c in captions], np.int64) for captions in said]
    having: list[list[int]] = [[] for _ in numbers]
    for i, own in enumerate(texts_of):
        for n in own.tolist():
            having[n].append(i)
    images_of = [np.array(rows, np.int64) for rows in having]
    images = features.embed([Request(item, None, "unprompted") for item in items])
    texts = features.texts(list(numbers))
    asked = ("image", "unprompted")
    to_text = Ranking(f"image to text: {source.name}", [Case(item, -1) for item in items], len(texts))
    to_image = Ranking(f"text to image: {source.name}", [to_text.cases[rows[0]] for rows in images_of], len(items))
    _fill(to_text, asked, rank(images, texts, texts_of, _none(items), question.k))
    _fill(to_image, asked, rank(texts, images, images_of, _none(images_of), question.k))
    return [to_text, to_image]


def _regions(
    features: Features, task: Task, question: RetrievalTask, source: Source, left_out: list[str]
) -> list[Ranking]:
    index = {name: i for i, name in enumerate(source.classes)}
    limit = None if task.region is None else task.region.max_regions_per_image
    cases = [
        Case(item, index[region.category], region)
        for item in source.items
        for region in chosen_regions(item, index, limit, task.seed)
    ]
    if len(index) < 2 or not cases:
        left_out.append(f"{source.name}: region retrieval, since it has fewer than two region classes or no region")
        return []
    weights, text_of, apart = _class_texts(features, question, source, cases)
    texts = np.unique(text_of)  # those that have a region
    regions_of = [np.flatnonzero(text_of == t) for t in texts]
    to_text = Ranking(f"region to text: {source.name}", cases, len(index))
    to_region = Ranking(f"text to region: {source.name}", [cases[rows[0]] for rows in regions_of], len(cases))
    apart_from_case = {t: np.flatnonzero(apart[t]) for t in texts.tolist()}
    barred_texts = [apart_from_case[t] for t in text_of.tolist()]
    barred_regions = [np.flatnonzero(apart[t][text_of]) for t in texts]
    names = [name for name in task.comparators if name in features.comparators]
    ways = [Way(k, [region_prompt(c, k, features.mask_grid, task.seed) for c in cases]) for k in question.prompts]
    for asked, regions in embed_ways(features, cases, ways, names, f"retrieval: {source.name}").items():
        _fill(to_text, asked, rank(regions, weights, list(text_of[:, None]), barred_texts, question.k))
        _fill(to_region, asked, rank(weights[texts], regions, regions_of, barred_regions, question.k))
    return [to_text, to_region]


def _class_texts(
    features: Features, question: RetrievalTask, source: Source, cases: Sequence[Case]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The classes in words, once for each modality where the templates speak of it: T texts.

    Returns:
        (T, D) their embeddings; (cases,) which of them is each case's; (T, T) bool, pairs of which one is not ranked for
        the other: classes that don't exclude one another, and texts of different modalities.
    """
    classifier = TextClassifier(features.texts, source.classes, question.templates)
    spoken_of = any("modality" in fill_ins(template) for template in question.templates)
    said = [case.item.sample.modality if spoken_of else "" for case in cases]
    modalities = sorted(set(said))
    weights = np.concatenate([classifier.weights(modality) for modality in modalities])
    count = len(source.classes)
    text_of = [modalities.index(m) * count + case.true for m, case in zip(said, cases, strict=True)]
    alike = np.kron(np.eye(len(modalities), dtype=bool), ~related_classes(source.classes))
    return weights, np.array(text_of, np.int64), ~alike


def _fill(ranking: Ranking, asked: tuple[str, str], found: Places) -> None:
    ranking.best_rank[asked], ranking.found[asked] = found.best_rank, found.found


def _none(queries: Sequence[object]) -> list[np.ndarray]:
    return [np.zeros(0, np.int64) for _ in queries]
