"""Runs a task on a model: scores of every candidate for every image and region."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import PromptKind, RegionPrompt, available_kinds, exact_prompt, stack
from medpclip.data.schema import Region
from medpclip.errors import MedpclipError
from medpclip.evaluation import box_geometry
from medpclip.evaluation.candidates import askable, related_classes, related_notes, without_related
from medpclip.evaluation.corpus import Corpus, Item, Source, label_of, rng_for, unit_box
from medpclip.evaluation.task import ImageTask, RegionTask, Task
from medpclip.evaluation.texts import TextClassifier
from medpclip.models.comparators import EMBEDDERS, RegionEmbedder
from medpclip.models.prompts import Prompts
from medpclip.models.region_clip import RegionCLIP


@dataclass
class Case:
    """What is classified: an image, or one region of it."""

    item: Item
    true: int
    region: Region | None = None

    @property
    def group(self) -> tuple[str, str]:
        """What is resampled: patient or study of a source."""
        return self.item.sample.source, self.item.sample.group


@dataclass
class Scores:
    """Log-probabilities of the candidates for n cases (logarithms, so that the smallest still compare).

    Attributes:
        name: the source (regions) or the label (images).
        classes: the candidates, C of them.
        values: (prompt kind, comparator) -> float32 (n, C); rows of NaN where a case can't be asked so. Embeddings give
            the log-softmax over candidates of cosine times the model's logit scale. -inf for a candidate that doesn't
            exclude the case's class, as `without_related` leaves it.
        mixed: regions: whether some image holds several classes, so that an image embedding can't answer for all.
        pairs: regions: kind of difference -> pairs of classes.
    """

    name: str
    classes: list[str]
    cases: list[Case]
    values: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    mixed: bool = False
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def true(self) -> np.ndarray:
        """(n,) class indices."""
        return np.array([case.true for case in self.cases], np.int64)


@dataclass
class Evaluation:
    """All scores of a task, and what was not measured and why."""

    image: list[Scores]
    region: list[Scores]
    left_out: list[str]


def run_task(
    model: RegionCLIP,
    task: Task,
    corpus: Corpus,
    device: torch.device | str = "cpu",
    extra: Sequence[RegionEmbedder] = (),
) -> Evaluation:
    """Evaluate a model; it is left in the mode (train or eval) in which it came.

    Args:
        model: on `device`.
        task: what to measure.
        corpus: the task's data, as `read_corpus` gives it.
        device: where to compute.
        extra: embedders besides the task's comparators.

    Raises:
        MedpclipError: nothing can be measured, an unreadable image.
    """
    left_out: list[str] = []
    with evaluating(model):
        images = [_image_level(model, task, q, corpus, device, left_out) for q in task.image]
        regions = []
        if task.region is not None:
            embedders = [EMBEDDERS[name](model) for name in task.comparators if name in EMBEDDERS]
            sources = [_cases(source, task, task.region, left_out) for source in corpus.sources]
            for source, scores in sources:
                if scores is not None:
                    _region_level(model, task, task.region, scores, [*embedders, *extra], device)
                    if box_geometry.NAME in task.comparators:
                        _box_geometry(source, scores, task, task.region, left_out)
                    related = related_classes(scores.classes)
                    for asked, values in scores.values.items():
                        scores.values[asked] = without_related(values, scores.true, related)
                    regions.append(scores)
            if not regions:
                why = "; ".join(left_out) or "no data"
                raise MedpclipError(
                    f"task {task.name!r}: no region to evaluate ({why}); check its keys 'data', 'split', 'region.classes'"
                )
    return Evaluation(images, regions, left_out)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def region_prompt(case: Case, kind: PromptKind, grid: int, seed: int) -> RegionPrompt:
    """The prompt of a case; a click depends on the seed, the image's key and the region's id alone."""
    assert case.region is not None
    sample = case.item.sample
    window = Window.whole(sample.width, sample.height)
    return exact_prompt(case.region, window, kind, grid, rng_for(seed, sample.key, case.region.id))


def _image_level(
    model: RegionCLIP,
    task: Task,
    question: ImageTask,
    corpus: Corpus,
    device: torch.device | str,
    left_out: list[str],
) -> Scores:
    classes = question.classes or corpus.labels[question.label]
    what = f"image label {question.label!r}"
    if len(classes) < 2:
        found = ", ".join(classes) or "none"
        raise MedpclipError(f"task {task.name!r}: {what} has fewer than two values in the data ({found}); drop it")
    index = {name: i for i, name in enumerate(classes)}
    related = related_classes(classes)
    asked = [(item, label_of(item.sample, question.label)) for item in corpus.items]
    cases = [Case(item, index[value]) for item, value in asked if value in index]
    if not cases:
        raise MedpclipError(f"task {task.name!r}: {what} has none of its classes in split {task.split!r}; drop it")
    if len(cases) < len(asked):
        left_out.append(f"{what}: {len(asked) - len(cases)} images without one of its classes")
    cases = _askable(cases, what, "images", classes, related, left_out)
    if not cases:
        raise MedpclipError(
            f"task {task.name!r}: {what} has only classes that are kinds of one another; name its 'classes'"
        )
    texts = TextClassifier(model, classes, question.templates, device)
    scores = Scores(question.label, list(classes), cases)
    values = np.empty((len(cases), len(classes)), np.float32)
    with _progress(f"image: {question.label}", len(cases), "image") as bar:
        for start in range(0, len(cases), task.batch_size):
            part = cases[start : start + task.batch_size]
            embedding = model.encode_image(_pixels(model, [c.item.image() for c in part], device)).float()
            weights = torch.stack([texts.weights(c.item.sample.modality) for c in part])
            values[start : start + len(part)] = _log_softmax(embedding[:, None], weights, model.clip.logit_scale)[:, 0]
            bar.update(len(part))
    scores.values["image", "unprompted"] = without_related(values, scores.true, related)
    return scores


def _askable(
    cases: list[Case], what: str, unit: str, classes: Sequence[str], related: np.ndarray, left_out: list[str]
) -> list[Case]:
    """The cases with something to tell apart once related candidates are gone; notes what is not asked."""
    left_out += related_notes(what, unit, classes, [case.true for case in cases], related)
    kept = askable(related)
    return [case for case in cases if kept[case.true]]


def _cases(source: Source, task: Task, regions: RegionTask, left_out: list[str]) -> tuple[Source, Scores | None]:
    """The regions of a source to evaluate; None, with a note, where there is nothing to tell apart."""
    classes = regions.classes or source.classes
    if len(classes) < 2:
        left_out.append(f"{source.name}: {len(classes)} region class, so there is nothing to tell apart")
        return source, None
    index = {name: i for i, name in enumerate(classes)}
    cases: list[Case] = []
    crowds = others = beyond = 0
    related = related_classes(classes)
    for item in source.items:
        own = [r for r in item.sample.regions if not r.iscrowd]
        crowds += len(item.sample.regions) - len(own)
        known = [r for r in own if r.category in index]
        others += len(own) - len(known)
        limit = regions.max_regions_per_image
        if limit is not None and len(known) > limit:
            chosen = rng_for(task.seed, item.sample.key, "regions").choice(len(known), limit, replace=False)
            beyond += len(known) - limit
            known = [known[i] for i in sorted(chosen)]
        cases += [Case(item, index[r.category], r) for r in known]
    reasons = {
        "crowd regions": crowds,
        "regions of other classes than the task's": others,
        f"regions beyond {regions.max_regions_per_image} of an image": beyond,
    }
    left_out += [f"{source.name}: {count} {reason}" for reason, count in reasons.items() if count]
    cases = _askable(cases, source.name, "regions", classes, related, left_out)
    if not cases:
        left_out.append(f"{source.name}: no region of the task's classes in split {task.split!r}")
        return source, None
    pairs = {
        kind: [(a, b) for a, b in rows if a in index and b in index and not related[index[a], index[b]]]
        for kind, rows in source.pairs.items()
    }
    mixed = len({(c.item.index, id(c.item.folder), c.true) for c in cases}) > len(
        {(c.item.index, id(c.item.folder)) for c in cases}
    )
    return source, Scores(source.name, list(classes), cases, mixed=mixed, pairs={k: v for k, v in pairs.items() if v})


@dataclass
class _Ask:
    """One prompt: which row of the scores it fills."""

    case: int
    kind: PromptKind
    prompt: RegionPrompt


def _region_level(
    model: RegionCLIP,
    task: Task,
    regions: RegionTask,
    scores: Scores,
    embedders: Sequence[RegionEmbedder],
    device: torch.device | str,
) -> None:
    """Fill `scores.values` for all embedders: all prompt kinds of an image's regions go through the trunk together."""
    texts = TextClassifier(model, scores.classes, regions.templates, device)
    shape = (len(scores.cases), len(scores.classes))
    for kind in regions.prompts:
        for embedder in embedders:
            scores.values[kind, embedder.name] = np.full(shape, np.nan, np.float32)
    units = _units(scores.cases, regions.prompts, model.mask_grid, task)
    total = sum(len(kinds) for kinds in (_kinds(c, regions.prompts) for c in scores.cases))
    with _progress(f"regions: {scores.name}", total, "prompt") as bar:
        for batch in _batched(units, task.batch_size):
            items = [scores.cases[unit[0].case].item for unit in batch]
            images = [item.image() for item in items]
            pixels = _pixels(model, images, device)
            prompts = Prompts.from_arrays(stack([[a.prompt for a in unit] for unit in batch], model.mask_grid)).to(
                device
            )
            weights = torch.stack([texts.weights(item.sample.modality) for item in items])
            for embedder in embedders:
                embedding = embedder.embed(images, pixels, prompts).float()
                values = _log_softmax(embedding, weights, model.region_logit_scale)
                for b, unit in enumerate(batch):
                    for r, ask in enumerate(unit):
                        scores.values[ask.kind, embedder.name][ask.case] = values[b, r]
            bar.update(sum(map(len, batch)))


def _units(cases: Sequence[Case], kinds: Sequence[PromptKind], grid: int, task: Task) -> Iterator[list[_Ask]]:
    """Prompts of one image each, at most `prompts_per_pass` together. Cases of an image follow one another."""
    unit: list[_Ask] = []
    item: Item | None = None
    for i, case in enumerate(cases):
        for kind in _kinds(case, kinds):
            if unit and (case.item is not item or len(unit) == task.prompts_per_pass):
                yield unit
                unit = []
            item = case.item
            unit.append(_Ask(i, kind, region_prompt(case, kind, grid, task.seed)))
    if unit:
        yield unit


def _kinds(case: Case, kinds: Sequence[PromptKind]) -> list[PromptKind]:
    assert case.region is not None
    available = available_kinds(case.region)
    return [kind for kind in kinds if kind in available]


def _batched(units: Iterator[list[_Ask]], size: int) -> Iterator[list[list[_Ask]]]:
    batch: list[list[_Ask]] = []
    for unit in units:
        batch.append(unit)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _box_geometry(source: Source, scores: Scores, task: Task, regions: RegionTask, left_out: list[str]) -> None:
    """Fill the scores of the classifier that sees boxes only; the same for each prompt kind."""
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
        asked = np.array([kind in _kinds(c, [kind]) for c in scores.cases])
        scores.values[kind, box_geometry.NAME] = np.where(asked[:, None], values, np.nan).astype(np.float32)


def _pixels(model: RegionCLIP, images: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    squares = np.stack([model.preprocess.pad_resize(image) for image in images])
    return model.preprocess.to_pixels(torch.from_numpy(squares).to(device))


def _log_softmax(embedding: Tensor, weights: Tensor, log_scale: Tensor) -> np.ndarray:
    """(B, R, D) embeddings and (B, C, D) classes -> (B, R, C) log-probabilities."""
    logits = log_scale.float().exp() * embedding @ weights.transpose(1, 2)
    return logits.log_softmax(-1).cpu().numpy()


def _progress(what: str, total: int, unit: str) -> tqdm:
    # A log file gets a line every ten seconds, not ten a second.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit=unit, mininterval=interval, file=sys.stderr, dynamic_ncols=True)
