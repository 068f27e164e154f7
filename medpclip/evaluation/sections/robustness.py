"""The region question with worse prompts and worse pictures. What each disturbance is, is our definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from medpclip.data.lexicon.lexicon import Lexicon
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import PromptKind, RegionPrompt, available_kinds
from medpclip.evaluation.corpus import rng_for, unit_box
from medpclip.evaluation.embedding.features import Features
from medpclip.evaluation.embedding.texts import TextClassifier
from medpclip.evaluation.scores import Case, Scores
from medpclip.evaluation.sections.candidates import related_classes, without_related
from medpclip.evaluation.sections.cases import Way, embed_ways, region_prompt
from medpclip.evaluation.task import WRONG_REGION, Corruption, RobustnessTask, Task

_CASES = 500  # are asked in all variants together, so that a picture is decoded once
_LEAST = 1e-3  # of the window's side: no jittered box gets thinner


@dataclass(frozen=True)
class Variant:
    """A way to ask worse.

    Attributes:
        name: as rows and predictions call it; begins with the prompt kind whose plain form it is compared to.
        prompt: (case, mask grid, seed) -> the prompt; None where the case can't be asked so.
        corruption: what is done to the picture, and how much; None for nothing.
    """

    name: str
    prompt: Callable[[Case, int, int], RegionPrompt | None]
    corruption: tuple[Corruption, int] | None = None


def run(features: Features, task: Task, region_scores: Sequence[Scores], left_out: list[str]) -> list[Scores]:
    """The region section's cases, classes and texts, with the prompts and pictures of each variant.

    A variant that only some cases can be asked leaves rows of NaN for the others: compare it to the plain prompt on the
    cases that both answer.

    Args:
        region_scores: the region section's.
        left_out: gets a line for each variant that no case can be asked.
    """
    assert task.robustness is not None and task.region is not None
    wanted = task.robustness.comparators or task.comparators
    comparators = [str(name) for name in wanted if name in features.comparators]
    asked = variants(task.robustness)
    out = []
    for plain in region_scores:
        texts = TextClassifier(features.texts, plain.classes, task.region.templates)
        scores = replace(plain, section="robustness", values={}, pairs={})
        shape = (len(plain.cases), len(plain.classes))
        for way in ((variant.name, name) for variant in asked for name in comparators):
            scores.values[way] = np.full(shape, np.nan, np.float32)
        able: set[str] = set()
        for start in range(0, len(plain.cases), _CASES):
            part = plain.cases[start : start + _CASES]
            ways = [
                Way(v.name, [v.prompt(c, features.mask_grid, task.seed) for c in part], v.corruption) for v in asked
            ]
            modalities = [case.item.sample.modality for case in part]
            for way, rows in embed_ways(features, part, ways, comparators, f"robustness: {plain.name}").items():
                scores.values[way][start : start + len(part)] = texts.scores(rows, modalities, features.region_scale)
            able |= {own.name for own in ways if any(prompt is not None for prompt in own.prompts)}
        related = related_classes(plain.classes)
        for (variant, name), values in list(scores.values.items()):
            if variant in able:
                scores.values[variant, name] = without_related(values, scores.true, related)
            else:
                del scores.values[variant, name]
        left_out += [
            f"{plain.name}: {v.name!r}, which none of its regions can be asked" for v in asked if v.name not in able
        ]
        out.append(scores)
    return out


def variants(question: RobustnessTask) -> list[Variant]:
    """All that is asked: as "box jittered 10%", "box of wrong region", "box missing", "box of tiny regions", "box with
    noise 3", and "mask empty"."""
    out = []
    for kind in question.prompts:
        plain = partial(_plain, kind)
        out += [Variant(f"{kind} jittered {100 * j:g}%", partial(_jittered, kind, j)) for j in question.jitter]
        if question.wrong:
            out.append(Variant(f"{kind} {WRONG_REGION}", partial(_of_wrong_region, kind)))
        if question.missing:
            out.append(Variant(f"{kind} missing", partial(_missing, kind)))
        if question.tiny is not None:
            out.append(Variant(f"{kind} of tiny regions", partial(_of_tiny_region, kind, question.tiny)))
        worse = [(name, severity) for name in question.corruptions for severity in question.severities]
        out += [Variant(f"{kind} with {name} {severity}", plain, (name, severity)) for name, severity in worse]
    if question.empty_mask:
        out.append(Variant("mask empty", _empty_mask))
    return out


def jittered_box(box: np.ndarray, jitter: float, rng: np.random.Generator) -> np.ndarray:
    """A box x1 y1 x2 y2 with each side moved, uniformly within +- jitter of the box's size in that direction.

    Float64; sides may have changed places before they are put in order. Of one state of the generator, sides move in
    proportion to `jitter`.
    """
    sides = box.astype(np.float64)
    moved = sides + rng.uniform(-1, 1, 4) * jitter * np.tile(sides[2:] - sides[:2], 2)
    return np.sort(moved.reshape(2, 2), axis=0).reshape(4)


def stretched_mask(mask: np.ndarray, move: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A bool mask (height, width) moved and stretched so that its extent becomes another (nearest pixel).

    Args:
        mask: covers a pixel or more.
        move: its extent, float64 x1 y1 x2 y2 in pixels -> the new one; what lies beyond the image is lost.

    Returns:
        Bool of the same shape; the mask as it was where nothing would be left of it.
    """
    columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
    extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
    new = move(extent)
    out = mask
    for axis in (0, 1):
        first, last = extent[[1 - axis, 3 - axis]]
        low, high = new[[1 - axis, 3 - axis]]
        centres = np.arange(mask.shape[axis]) + 0.5
        inside = (centres >= low) & (centres < high)
        source = np.floor(first + (centres - low) / (high - low) * (last - first))
        taken = np.take(out, np.where(inside, source, 0).astype(np.int64).clip(0, mask.shape[axis] - 1), axis=axis)
        out = taken & np.expand_dims(inside, 1 - axis)
    return out if out.any() else mask


def _jittered(kind: PromptKind, jitter: float, case: Case, grid: int, seed: int) -> RegionPrompt | None:
    """A box with moved sides; a mask stretched to its extent with moved sides; clicks moved together by up to as much of the
    extent. None for clicks on a region without an extent."""
    sample, region = case.item.sample, case.region
    assert region is not None
    exact, extent = region_prompt(case, kind, grid, seed), unit_box(region, sample.width, sample.height)
    if exact is None or extent is None:
        return None
    rng = rng_for(seed, sample.key, region.id, "jitter")
    if exact.box is not None:
        moved = np.clip(jittered_box(exact.box, jitter, rng), 0, 1)
        low = np.minimum(moved[:2], 1 - _LEAST)
        return RegionPrompt(box=np.concatenate([low, np.maximum(moved[2:], low + _LEAST)]).astype(np.float32))
    if exact.mask is not None:
        mask = region.mask()
        assert mask is not None
        stretched = stretched_mask(mask, partial(jittered_box, jitter=jitter, rng=rng))
        return RegionPrompt(mask=Window.whole(sample.width, sample.height).coverage(stretched, grid))
    moved = exact.points + rng.uniform(-jitter, jitter, 2) * (extent[2:] - extent[:2])
    return RegionPrompt(points=np.clip(moved, 0, 1).astype(np.float32), labels=exact.labels)


def _of_wrong_region(kind: PromptKind, case: Case, grid: int, seed: int) -> RegionPrompt | None:
    """The prompt of another region of the image, drawn among those whose class excludes the case's; None without one."""
    sample, own = case.item.sample, case.region
    assert own is not None
    related = Lexicon.load().related
    others = [
        region
        for region in sample.regions
        if region.category != own.category and not related(region.category, own.category) and not region.iscrowd
    ]
    others = [region for region in others if kind in available_kinds(region)]
    if not others or not _has(case, kind):
        return None
    other = others[rng_for(seed, sample.key, own.id, "wrong region").integers(len(others))]
    return region_prompt(replace(case, region=other), kind, grid, seed)


def _missing(kind: PromptKind, case: Case, grid: int, seed: int) -> RegionPrompt | None:
    """A prompt that says nothing, for the cases that have one of this kind."""
    return RegionPrompt() if _has(case, kind) else None


def _of_tiny_region(kind: PromptKind, share: float, case: Case, grid: int, seed: int) -> RegionPrompt | None:
    """The plain prompt of a region that covers less than a share of its image."""
    area = case.area
    return None if area is None or area >= share else region_prompt(case, kind, grid, seed)


def _empty_mask(case: Case, grid: int, seed: int) -> RegionPrompt | None:
    """A mask that covers nothing, for the cases that have one."""
    return RegionPrompt(mask=np.zeros((grid, grid), np.float32)) if _has(case, "mask") else None


def _plain(kind: PromptKind, case: Case, grid: int, seed: int) -> RegionPrompt | None:
    return region_prompt(case, kind, grid, seed)


def _has(case: Case, kind: PromptKind) -> bool:
    assert case.region is not None
    return kind in available_kinds(case.region)
