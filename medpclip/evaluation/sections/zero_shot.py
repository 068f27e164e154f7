"""Classification by the words of the classes: of whole images, and of regions against the classes of their source."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches

import numpy as np

from medpclip.data.lexicon.lexicon import Lexicon
from medpclip.data.loading.prompting import available_kinds
from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import Corpus, Source, label_of, unit_box
from medpclip.evaluation.embedding.embedders import PROMPTED, UNPROMPTED
from medpclip.evaluation.embedding.features import Features, Request
from medpclip.evaluation.embedding.texts import TextClassifier
from medpclip.evaluation.scores import Case, Scores
from medpclip.evaluation.sections import box_geometry
from medpclip.evaluation.sections.candidates import askable, related_classes, related_notes, without_related
from medpclip.evaluation.sections.cases import Way, chosen_regions, embed_ways, region_prompt
from medpclip.evaluation.sections.image_prompts import image_prompt
from medpclip.evaluation.task import ImageTask, RegionTask, Task

_TOGETHER = 65536  # embeddings that lie in memory at once


def image_level(features: Features, task: Task, question: ImageTask, corpus: Corpus, left_out: list[str]) -> Scores:
    """A multi-class question to whole images.

    Raises:
        MedpclipError: fewer than two classes, or no image of one of them.
    """
    classes = classes_of(task, question, corpus)
    terms = terms_of(task, question, classes)
    what = what_of(question)
    index = {name: i for i, name in enumerate(classes)}
    if question.positive is not None and (len(classes) != 2 or question.positive not in index):
        raise MedpclipError(
            f"task {task.name!r}: {what} has the positive class {question.positive!r}, which must be one of two classes "
            f"({', '.join(classes)}); name both in 'classes'"
        )
    related = related_classes(terms)
    asked = [(item, label_of(item.sample, question.label)) for item in corpus.items]
    cases = [Case(item, index[value]) for item, value in asked if value in index]
    if not corpus.labels[question.label]:
        raise MedpclipError(
            f"task {task.name!r}: {what} is in no sample; its key in their 'labels' is misspelt, or drop it"
        )
    if not cases:
        raise MedpclipError(f"task {task.name!r}: {what} has none of its classes in split {task.split!r}; drop it")
    check_classes(task, what, dict(zip(classes, terms, strict=True)), corpus.labels[question.label])
    if len(cases) < len(asked):
        left_out.append(f"{what}: {len(asked) - len(cases)} images without one of its classes")
    left_out += _absent(what, "image", classes, cases, task.split)
    cases = _askable(cases, what, "images", classes, related, left_out)
    if not cases:
        raise MedpclipError(
            f"task {task.name!r}: {what} has only classes that are kinds of one another; name its 'classes'"
        )
    positive = None if question.positive is None else index[question.positive]
    scores = Scores("image", question.label, classes, cases, positive=positive)
    texts = TextClassifier(features.texts, terms, question.templates)
    modalities = [case.item.sample.modality for case in cases]
    for (prompt, comparator), (embeddings, scale) in embedded_images(features, task, question, cases, left_out):
        values = texts.scores(embeddings, modalities, scale)
        scores.values[prompt, comparator] = without_related(values, scores.true, related)
    return scores


def region_level(features: Features, task: Task, corpus: Corpus, left_out: list[str]) -> list[Scores]:
    """The region question: a `Scores` for each source that has something to tell apart.

    Raises:
        MedpclipError: there is no such source.
    """
    assert task.region is not None
    there = {name for source in corpus.sources for name in source.classes}
    check_classes(task, "key 'region.classes'", {name: name for name in task.region.classes or ()}, there)
    out = []
    for source in corpus.sources:
        scores = _region_cases(source, task, task.region, left_out)
        if scores is None:
            continue
        _ask_regions(features, task, task.region, scores)
        left_out += _unaskable(scores, task.region)
        if box_geometry.NAME in task.comparators:
            _box_geometry(source, scores, task, task.region, left_out)
        related = related_classes(scores.classes)
        for asked, values in scores.values.items():
            scores.values[asked] = without_related(values, scores.true, related)
        out.append(scores)
    if not out:
        why = "; ".join(left_out) or "no data"
        raise MedpclipError(
            f"task {task.name!r}: no region to evaluate ({why}); check its keys 'data', 'split', 'region.classes'"
        )
    return out


def classes_of(task: Task, question: ImageTask, corpus: Corpus) -> list[str]:
    """The candidates of an image-level question: those it names, or all values in the data.

    Raises:
        MedpclipError: fewer than two.
    """
    classes = question.classes or corpus.labels[question.label]
    if len(classes) < 2:
        found = ", ".join(classes) or "none"
        raise MedpclipError(
            f"task {task.name!r}: {what_of(question)} has fewer than two values in the data ({found}); drop it"
        )
    return list(classes)


def terms_of(task: Task, question: ImageTask, classes: Sequence[str]) -> list[str]:
    """The words of the candidates.

    Raises:
        MedpclipError: two have the same, or a term is given for a class that isn't there.
    """
    terms = [question.terms.get(name, name) for name in classes]
    for i, term in enumerate(terms):
        if term in terms[:i]:
            raise MedpclipError(
                f"task {task.name!r}: {what_of(question)}: classes {classes[terms.index(term)]!r} and {classes[i]!r} have "
                f"the same term {term!r}; give each its own in 'terms'"
            )
    return terms


def what_of(question: ImageTask) -> str:
    """How messages name an image-level question."""
    return f"image label {question.label!r}"


def embedded_images(
    features: Features, task: Task, question: ImageTask, cases: Sequence[Case], left_out: list[str]
) -> Iterator[tuple[tuple[str, str], tuple[np.ndarray, float]]]:
    """For each way to ask of `question.prompts`: (prompt, comparator), and (n, D) embeddings with their scale."""
    name = f"images: {question.label}"
    for kind in question.prompts:
        if kind == "none":
            requests = [Request(case.item, None) for case in cases]
            yield ("image", UNPROMPTED), (features.embed(requests, name), features.image_scale)
            continue
        if PROMPTED not in features.comparators:
            left_out.append(f"{what_of(question)}: prompt {kind}, since the model was never trained with prompts")
            continue
        prompts = [image_prompt(case.item.sample, kind, task.seed) for case in cases]
        there = [i for i, prompt in enumerate(prompts) if prompt is not None]
        if len(there) < len(cases):
            left_out.append(
                f"{what_of(question)}: prompt {kind} for {len(cases) - len(there)} images, which annotated regions fill"
            )
        if not there:
            continue
        found = features.embed([Request(cases[i].item, prompts[i], PROMPTED) for i in there], f"{name}, {kind}")
        embeddings = np.full((len(cases), found.shape[1]), np.nan, np.float32)
        embeddings[there] = found
        yield (kind, PROMPTED), (embeddings, features.region_scale)


def _askable(
    cases: list[Case], what: str, unit: str, classes: Sequence[str], related: np.ndarray, left_out: list[str]
) -> list[Case]:
    """The cases with something to tell apart once related candidates are gone; notes what is not asked."""
    left_out += related_notes(what, unit, classes, [case.true for case in cases], related)
    kept = askable(related)
    return [case for case in cases if kept[case.true]]


def _region_cases(source: Source, task: Task, regions: RegionTask, left_out: list[str]) -> Scores | None:
    """The regions of a source to evaluate; None, with a note, where there is nothing to tell apart."""
    classes = regions.classes or source.classes
    if len(classes) < 2:
        left_out.append(f"{source.name}: {len(classes)} region class, so there is nothing to tell apart")
        return None
    index = {name: i for i, name in enumerate(classes)}
    cases: list[Case] = []
    crowds = others = beyond = 0
    related = related_classes(classes)
    for item in source.items:
        own = [r for r in item.sample.regions if not r.iscrowd]
        crowds += len(item.sample.regions) - len(own)
        known = sum(r.category in index for r in own)
        others += len(own) - known
        chosen = chosen_regions(item, index, regions.max_regions_per_image, task.seed)
        beyond += known - len(chosen)
        cases += [Case(item, index[r.category], r) for r in chosen]
    reasons = {
        "crowd regions": crowds,
        "regions of other classes than the task's": others,
        f"regions beyond {regions.max_regions_per_image} of an image": beyond,
    }
    left_out += [f"{source.name}: {count} {reason}" for reason, count in reasons.items() if count]
    cases = _askable(cases, source.name, "regions", classes, related, left_out)
    if not cases:
        left_out.append(f"{source.name}: no region of the task's classes in split {task.split!r}")
        return None
    left_out += _absent(source.name, "region", classes, cases, task.split)
    pairs = {
        kind: [(a, b) for a, b in rows if a in index and b in index and not related[index[a], index[b]]]
        for kind, rows in source.pairs.items()
    }
    images = {(c.item.index, id(c.item.folder)) for c in cases}
    mixed = len({(c.item.index, id(c.item.folder), c.true) for c in cases}) > len(images)
    return Scores("region", source.name, list(classes), cases, mixed=mixed, pairs={k: v for k, v in pairs.items() if v})


def check_classes(task: Task, what: str, terms: Mapping[str, str], there: Collection[str]) -> None:
    """A class that is named must be in the data, or be a term that could be.

    Args:
        terms: class -> its words.
        there: all classes of the data, in any split.

    Raises:
        MedpclipError: one is neither; it is misspelt.
    """
    lexicon = Lexicon.load()
    for name, term in terms.items():
        if name not in there and lexicon.find(term) is None:
            near = get_close_matches(name, there, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(there)) or 'none'}"
            raise MedpclipError(
                f"task {task.name!r}: {what}: class {name!r} is in no split of the data, nor in the lexicon; {hint}"
            )


def _absent(what: str, unit: str, classes: Sequence[str], cases: Sequence[Case], split: str) -> list[str]:
    """A note on the classes that no case has; they are candidates all the same."""
    found = {case.true for case in cases}
    absent = [repr(name) for i, name in enumerate(classes) if i not in found]
    if not absent:
        return []
    which = ", ".join(absent) if len(absent) <= 3 else f"{len(absent)} of the {len(classes)} classes"
    return [f"{what}: no {unit} of {which} in split {split!r}"]


def _unaskable(scores: Scores, regions: RegionTask) -> list[str]:
    """A note on each prompt kind by which none of the regions can be asked."""
    there = {kind for case in scores.cases if case.region is not None for kind in available_kinds(case.region)}
    return [
        f"{scores.name}: prompt {kind}, by which none of its regions can be asked"
        for kind in regions.prompts
        if kind not in there
    ]


def _ask_regions(features: Features, task: Task, regions: RegionTask, scores: Scores) -> None:
    """Fill `scores.values` for all comparators at hand and all prompt kinds."""
    names = [name for name in task.comparators if name in features.comparators]
    texts = TextClassifier(features.texts, scores.classes, regions.templates)
    for kind in regions.prompts:
        for name in names:
            scores.values[kind, name] = np.full((len(scores.cases), len(scores.classes)), np.nan, np.float32)
    size = max(1, _TOGETHER // max(1, len(scores.values)))
    slabs = range(0, len(scores.cases) if names else 0, size)
    for number, start in enumerate(slabs, 1):
        cases = scores.cases[start : start + size]
        ways = [Way(k, [region_prompt(c, k, features.mask_grid, task.seed) for c in cases]) for k in regions.prompts]
        what = f"regions: {scores.name}" + (f" ({number} of {len(slabs)})" if len(slabs) > 1 else "")
        modalities = [case.item.sample.modality for case in cases]
        for asked, embeddings in embed_ways(features, cases, ways, names, what).items():
            rows = texts.scores(embeddings, modalities, features.region_scale)
            scores.values[asked][start : start + len(cases)] = rows


def _box_geometry(source: Source, scores: Scores, task: Task, regions: RegionTask, left_out: list[str]) -> None:
    """Fill the scores of the classifier that sees boxes only; the same for each prompt kind."""
    if task.split == "train":
        left_out.append(f"{source.name}: {box_geometry.NAME}, since it learns from the train split, which is measured")
        return
    learnable = [(box, category) for box, category in source.train_boxes if category in scores.classes]
    if not learnable:
        left_out.append(f"{source.name}: {box_geometry.NAME}, since its train split has no region with an extent")
        return
    boxes, categories = np.stack([box for box, _ in learnable]), [category for _, category in learnable]
    classifier = box_geometry.BoxGeometry(boxes, categories, scores.classes, task.seed)
    sizes = [(c.item.sample.width, c.item.sample.height) for c in scores.cases]
    own = [unit_box(c.region, *size) for c, size in zip(scores.cases, sizes, strict=True) if c.region is not None]
    values = np.full((len(own), len(scores.classes)), np.nan, np.float32)
    known = [i for i, box in enumerate(own) if box is not None]
    if known:
        given = classifier.probabilities(np.stack([box for box in own if box is not None]))
        values[known] = np.log(np.maximum(given, 1e-12))
    for kind in regions.prompts:
        asked = np.array([c.region is not None and kind in available_kinds(c.region) for c in scores.cases])
        scores.values[kind, box_geometry.NAME] = np.where(asked[:, None], values, np.nan).astype(np.float32)
