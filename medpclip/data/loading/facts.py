"""What is known of a batch's images and regions: facts that texts can state. Our design.

Places, sizes and counts are those of the window that the model sees. "left" and "right" of a *place* are the picture's;
a *side* is the patient's, comes from the source's own geometry, and is only known where the recipe says what the
picture's left shows (`laterality`) and that both sides of the body are in it (`midline`). A term's own side ("left
kidney") is the lexicon's business: `texts.targets` knows it.

All regions of a batch are looked at at once; each fact is a code first, and becomes words where it is handed out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from medpclip.data.loading.regions import RegionTable

# Fact -> all values that hold. A fact that is missing is unknown; one without values is known to have none. The one
# exception: of `present`, what isn't listed is only false if it is in `absent`.
Facts = Mapping[str, tuple[str, ...]]

_CLEARLY = 1.3  # so many times larger than the next is clearly larger
_PICTURE_LEFT = {"radiological": "right", "mirrored": "left"}  # what the picture's left half shows of the patient

# The words of each code; nothing is stated for code 0. Of places the most specific comes first, which is what gets
# stated; "left" stays true of what is at the upper left.
_SIZES = ((), ("small",), ("middle-sized",), ("large",))
_SIDES = ((), ("left",), ("right",))
_NUMBERS = ((), ("only one",), ("one of two",), ("one of several",))
_RANKS = ((), ("largest",), ("between",), ("smallest",))
_PLACES: tuple[tuple[str, ...], ...] = (
    (),
    ("centre",), ("left",), ("right",),
    ("upper",), ("upper left", "upper", "left"), ("upper right", "upper", "right"),
    ("lower",), ("lower left", "lower", "left"), ("lower right", "lower", "right"),
)  # fmt: skip
_WORDS = {"place": _PLACES, "size": _SIZES, "side": _SIDES, "number": _NUMBERS, "rank": _RANKS}
_SIDE_CODES = {words[0]: code for code, words in enumerate(_SIDES) if words}


@dataclass
class Shown:
    """What windows show of a table's N regions, by their boxes, or else by their points' extents.

    Attributes:
        edges: (N, 4) x1 y1 x2 y2 in the source's pixels; NaN for regions with neither box nor points.
        unit: the same in the window, clipped to it, mirrored where it is.
        area: (N,) in the window's units, unclipped, of the regions shown by at least half; 0 of the others.
        group: int64 (N,): the regions of an image's term; row * terms + column of the next two.
        count: int64 (images, terms): of how many regions at least half is shown.
        uncertain: bool (images, terms): a region is cut by the window's edge, has neither box nor points, or stands for
            a crowd.
    """

    edges: np.ndarray
    unit: np.ndarray
    area: np.ndarray
    group: np.ndarray
    count: np.ndarray
    uncertain: np.ndarray


def look(table: RegionTable) -> Shown:
    """What the table's windows show of all its regions."""
    edges = _edges(table)
    located = ~np.isnan(edges[:, 0])
    boxes = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], 1)
    unit = table.windows.unit_boxes(boxes, clip=False).astype(np.float64)
    unit[table.windows.flip] = unit[table.windows.flip][:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    clipped = np.clip(unit, 0.0, 1.0)
    area, visible = (np.prod(box[:, 2:] - box[:, :2], 1) for box in (unit, clipped))
    inside = (unit[:, :2] == clipped[:, :2]).all(1)
    share = np.divide(visible, area, out=inside.astype(np.float64), where=area > 0)
    shown = located & (share >= 0.5)
    images, terms = len(table.image_windows), len(table.terms)
    group = table.image * terms + table.category
    uncertain = group[~located | table.crowd | ((share > 0) & (share < 0.95))]
    return Shown(
        edges=edges,
        unit=clipped,
        area=np.where(shown, area, 0.0),
        group=group,
        count=np.bincount(group[shown], minlength=images * terms).reshape(images, terms),
        uncertain=np.bincount(uncertain, minlength=images * terms).reshape(images, terms) > 0,
    )


def image_facts(samples: Sequence[Mapping[str, Any]], table: RegionTable, shown: Shown) -> list[Facts]:
    """What is known of each image: modality, anatomy, labels, captions, and which terms its window shows.

    Args:
        samples: the images' JSON.
        table, shown: their regions.
    """
    known: list[Facts] = []
    for sample, count, uncertain in zip(samples, shown.count, shown.uncertain, strict=True):
        facts: dict[str, tuple[str, ...]] = {"modality": (sample["modality"],)}
        if sample.get("anatomy") is not None:
            facts["anatomy"] = (sample["anatomy"],)
        for name, value in sample.get("labels", {}).items():
            facts[f"label.{name}"] = tuple(value) if isinstance(value, list) else (str(value),)
        if sample.get("captions"):
            facts["caption"] = tuple(sample["captions"])
        present, doubted = ({table.terms[j] for j in np.flatnonzero(of_term)} for of_term in (count, uncertain))
        facts["present"] = tuple(sorted(present))
        facts["absent"] = tuple(sorted(set(sample.get("annotated_terms", ())) - present - doubted))
        known.append(facts)
    return known


def region_facts(
    samples: Sequence[Mapping[str, Any]], table: RegionTable, shown: Shown, chosen: np.ndarray
) -> list[Facts]:
    """What is known of some regions: each one's term, modality, place, size, patient's side, number and rank.

    Args:
        samples: the images' JSON.
        table, shown: all their regions.
        chosen: int64 (M,): which of them.
    """
    sure = (_annotated(samples, table.terms) & ~shown.uncertain).ravel()[shown.group[chosen]]
    boxed = ~np.isnan(table.boxes[chosen, 0])
    codes = (
        _places(shown.unit[chosen]),
        np.where(boxed, _sizes(shown.unit[chosen]), 0),
        _sides(samples, table, shown, chosen),
        np.where(sure, _numbers(table, shown, chosen), 0),
        np.where(sure, _ranks(shown, chosen), 0),
    )
    groups = shown.group[chosen].tolist()
    terms = len(table.terms)
    subjects = {
        group: {"term": (table.terms[group % terms],), "modality": (samples[group // terms]["modality"],)}
        for group in set(groups)
    }
    combined = np.ravel_multi_index(codes, [len(words) for words in _WORDS.values()]).tolist()
    known: list[Facts] = [{**subjects[group], **_stated(code)} for group, code in zip(groups, combined, strict=True)]
    return known


@cache
def _stated(combined: int) -> Facts:
    """The facts in the words of their codes, which were combined in the order of `_WORDS`."""
    codes = np.unravel_index(combined, [len(words) for words in _WORDS.values()])
    return {name: words[code] for (name, words), code in zip(_WORDS.items(), codes, strict=True) if code}


def _edges(table: RegionTable) -> np.ndarray:
    edges = table.boxes.copy()
    edges[:, 2:] += edges[:, :2]
    for i in np.flatnonzero(np.isnan(edges[:, 0])).tolist():
        if points := table.stated[i].get("points"):
            edges[i] = [*np.min(points, 0), *np.max(points, 0)]
    return edges


def _annotated(samples: Sequence[Mapping[str, Any]], terms: Sequence[str]) -> np.ndarray:
    """Whether each term was annotated exhaustively in each image, bool (images, terms)."""
    column = {term: j for j, term in enumerate(terms)}
    annotated = np.zeros((len(samples), len(terms)), bool)
    for row, sample in zip(annotated, samples, strict=True):
        row[[column[term] for term in sample.get("annotated_terms", ()) if term in column]] = True
    return annotated


def _places(unit: np.ndarray) -> np.ndarray:
    """By the box's middle, in thirds of the picture of which the inner ones are narrower."""
    middle = (unit[:, :2] + unit[:, 2:]) / 2
    third = np.where(middle < 0.4, 1, np.where(middle > 0.6, 2, 0))
    return np.where(np.isnan(middle[:, 0]), 0, 1 + third[:, 0] + 3 * third[:, 1])


def _sizes(unit: np.ndarray) -> np.ndarray:
    """By the share of the picture that the box takes; nothing near the limits, where nobody could tell."""
    area = np.prod(unit[:, 2:] - unit[:, :2], 1)
    return np.select([area >= 0.15, (area >= 0.015) & (area <= 0.1), area <= 0.01], [3, 2, 1], 0)


def _sides(samples: Sequence[Mapping[str, Any]], table: RegionTable, shown: Shown, chosen: np.ndarray) -> np.ndarray:
    """The patient's side as the source states it, or of what lies clearly in one half of the picture."""
    attributes = [table.stated[i].get("attributes") for i in chosen.tolist()]
    sides = np.array([_SIDE_CODES.get(stated.get("side"), 0) if stated else 0 for stated in attributes], np.int64)
    left = [
        _SIDE_CODES[_PICTURE_LEFT[sample["laterality"]]]
        if sample.get("midline") is True and sample.get("laterality") in _PICTURE_LEFT
        else 0
        for sample in samples
    ]
    if not any(left):
        return sides
    on_left = np.array(left)[table.image[chosen]]
    x1, x2 = (shown.edges[chosen, i] / table.sizes[chosen, 0] for i in (0, 2))
    is_left, is_right = (x2 <= 0.52) & (x1 + x2 < 0.8), (x1 >= 0.48) & (x1 + x2 > 1.2)
    found = np.select([is_left, is_right], [on_left, 3 - on_left], 0)
    return np.where((sides == 0) & (on_left > 0), found, sides)


def _numbers(table: RegionTable, shown: Shown, chosen: np.ndarray) -> np.ndarray:
    """How many there are of its term."""
    count = np.minimum(shown.count.ravel()[shown.group[chosen]], 3)
    # A single mask may hold several things, where the source has one mask per class.
    return np.where((count == 1) & table.has_mask[chosen], 0, count)


def _ranks(shown: Shown, chosen: np.ndarray) -> np.ndarray:
    """The largest or smallest of its term by its box, or between; nothing where that is not clear."""
    own, group = shown.area[chosen], shown.group[chosen]
    count = shown.count.ravel()[group]
    # All areas by group, smallest first: those shown are the last `count` of their group.
    areas = shown.area[np.lexsort((shown.area, shown.group))]
    end = np.cumsum(np.bincount(shown.group))[group]
    start = end - count
    largest, next_largest = areas[end - 1], areas[end - 2]
    smallest, next_smallest = (np.take(areas, start + i, mode="clip") for i in (0, 1))
    return np.select(
        [
            (count < 2) | (smallest <= 0),
            own == largest,
            own == smallest,
            (largest >= _CLEARLY * own) & (own >= _CLEARLY * smallest),
        ],
        [0, np.where(own >= _CLEARLY * next_largest, 1, 0), np.where(next_smallest >= _CLEARLY * own, 3, 0), 2],
        0,
    )
