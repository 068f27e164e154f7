"""What is known of an image and its regions: facts that texts can state. Our design.

Places, sizes and counts are those of the window that the model sees. "left" and "right" of a *place* are the picture's;
a *side* is the patient's, comes from the source's own geometry, and is only known where the recipe says what the
picture's left shows (`laterality`) and that both sides of the body are in it (`midline`). A term's own side ("left
kidney") is the lexicon's business: `texts.targets` knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medpclip.data.lexicon.terms import MIRRORED
from medpclip.data.loading.geometry import Window
from medpclip.data.schema import Region, Sample

# Fact -> all values that hold. A fact that is missing is unknown; one without values is known to have none. The one
# exception: of `present`, what isn't listed is only false if it is in `absent`.
Facts = Mapping[str, tuple[str, ...]]

# What the picture's left half shows of the patient.
_PICTURE_LEFT = {"radiological": "right", "mirrored": "left"}
_CORNERS = [[0, 1], [2, 1], [0, 3], [2, 3]]  # of x1 y1 x2 y2
_CLEARLY = 1.3  # so many times larger than the next is clearly larger

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Seen:
    """What a window shows of an image's regions.

    Attributes:
        boxes: region id -> unit [x1, y1, x2, y2], clipped to the window; regions without box and points have none.
        counts: term -> how many of its regions are shown by at least half.
        uncertain: terms with a region that is cut by the window's edge, has no box, or stands for a crowd.
        areas: term -> (area in the source, region id), largest first, of the regions that are shown.
    """

    boxes: dict[int, Box]
    counts: dict[str, int]
    uncertain: frozenset[str]
    areas: dict[str, list[tuple[float, int]]]


def seen_regions(sample: Sample, window: Window, boxes: Iterable[Iterable[float]] | None = None) -> Seen:
    """What a window shows of all regions of a sample.

    Args:
        sample, window: as the model gets them.
        boxes: the regions' unit boxes x1 y1 x2 y2 in the window, unclipped, for callers that have them already; a
            region without a box may have any.
    """
    given = _unit_boxes(sample.regions, window) if boxes is None else [_floats(box) for box in boxes]
    shown_boxes: dict[int, Box] = {}
    areas: dict[str, list[tuple[float, int]]] = {}
    uncertain = set()
    for region, box in zip(sample.regions, given, strict=True):
        if region.bbox is None and boxes is not None:
            [box] = _unit_boxes([region], window)
        if box is None:
            uncertain.add(region.category)
            continue
        x1, y1, x2, y2 = box
        left, top, right, bottom = _unit(x1), _unit(y1), _unit(x2), _unit(y2)
        shown_boxes[region.id] = (left, top, right, bottom)
        area = (x2 - x1) * (y2 - y1)
        share = (right - left) * (bottom - top) / area if area > 0 else float(x1 == left and y1 == top)
        if region.iscrowd or 0 < share < 0.95:
            uncertain.add(region.category)
        if share >= 0.5:
            areas.setdefault(region.category, []).append((area, region.id))
    for found in areas.values():
        found.sort(reverse=True)
    counts = {term: len(found) for term, found in areas.items()}
    return Seen(shown_boxes, counts, frozenset(uncertain), areas)


def image_facts(sample: Sample, seen: Seen | None = None) -> dict[str, tuple[str, ...]]:
    """What is known of an image: modality, anatomy, labels, captions, and which terms it shows.

    Args:
        sample: the image.
        seen: what the model's window shows of its regions; without it, all of them are taken as shown.
    """
    facts: dict[str, tuple[str, ...]] = {"modality": (sample.modality,)}
    if sample.anatomy is not None:
        facts["anatomy"] = (sample.anatomy,)
    for name, value in sample.labels.items():
        facts[f"label.{name}"] = tuple(value) if isinstance(value, list) else (str(value),)
    if sample.captions:
        facts["caption"] = tuple(sample.captions)
    present = set(seen.counts) if seen else {region.category for region in sample.regions}
    facts["present"] = tuple(sorted(present))
    facts["absent"] = tuple(sorted(set(sample.annotated_terms) - present - (seen.uncertain if seen else set())))
    return facts


def region_facts(
    region: Region, sample: Sample, window: Window, seen: Seen | None = None
) -> dict[str, tuple[str, ...]]:
    """What is known of a region: its term, modality, place, size, patient's side, number and rank.

    Args:
        region: one of the sample's.
        sample: its image.
        window: what the model sees of the image.
        seen: `seen_regions(sample, window)`, for callers with several regions of an image. Without it, number and rank
            stay unknown.
    """
    facts: dict[str, tuple[str, ...]] = {"term": (region.category,), "modality": (sample.modality,)}
    box = seen.boxes.get(region.id) if seen else _clipped(_unit_boxes([region], window)[0])
    if box is not None:
        x1, y1, x2, y2 = box
        row, column = _third((y1 + y2) / 2, "upper", "lower"), _third((x1 + x2) / 2, "left", "right")
        # Most specific first, which is what gets stated; "left" stays true of what is at the upper left.
        facts["place"] = (f"{row} {column}", row, column) if row and column else (row or column or "centre",)
        if region.bbox is not None and (size := _size((x2 - x1) * (y2 - y1))):
            facts["size"] = (size,)
    if side := _side(region, sample):
        facts["side"] = (side,)
    if seen is not None and region.category in sample.annotated_terms and region.category not in seen.uncertain:
        if number := _number(region, seen.counts.get(region.category, 0)):
            facts["number"] = (number,)
        if rank := _rank(region, seen.areas.get(region.category, [])):
            facts["rank"] = (rank,)
    return facts


def _size(area: float) -> str:
    """By the share of the picture that a region's box takes; "" near the limits, where nobody could tell."""
    if area >= 0.15:
        return "large"
    if 0.015 <= area <= 0.1:
        return "middle-sized"
    return "small" if area <= 0.01 else ""


def _side(region: Region, sample: Sample) -> str:
    """The patient's side as the source states it, or of what lies clearly in one half of the picture; "" unknown."""
    stated = region.attributes.get("side")
    if isinstance(stated, str) and stated in MIRRORED:
        return stated
    left = _PICTURE_LEFT.get(sample.extra.get("laterality", "none"))
    if left is None or sample.extra.get("midline") is not True:
        return ""
    edges = _edges(region)
    if edges is None:
        return ""
    x1, x2 = edges[0] / sample.width, edges[2] / sample.width
    if x2 <= 0.52 and x1 + x2 < 0.8:
        return left
    return MIRRORED[left] if x1 >= 0.48 and x1 + x2 > 1.2 else ""


def _number(region: Region, count: int) -> str:
    if count == 1:  # a single mask may hold several things, where the source has one mask per class
        return "only one" if region.segmentation is None else ""
    return {0: "", 2: "one of two"}.get(count, "one of several")


def _rank(region: Region, areas: list[tuple[float, int]]) -> str:
    """The largest or smallest of its term by its box, or "between"; "" where that is not clear."""
    if len(areas) < 2 or areas[-1][0] <= 0:
        return ""
    own = next((area for area, number in areas if number == region.id), 0.0)
    if own == areas[0][0]:
        return "largest" if own >= _CLEARLY * areas[1][0] else ""
    if own == areas[-1][0]:
        return "smallest" if areas[-2][0] >= _CLEARLY * own else ""
    return "between" if areas[0][0] >= _CLEARLY * own and own >= _CLEARLY * areas[-1][0] else ""


def _unit_boxes(regions: Sequence[Region], window: Window) -> list[Box | None]:
    """Unit x1 y1 x2 y2, unclipped, of the regions' boxes, or else of their points."""
    edges = [_edges(region) for region in regions]
    if not (window.angle or window.flip):  # in Python: numpy takes ten times longer for four numbers
        x, y, scale = window.left, window.top, 1 / window.side
        return [e and ((e[0] - x) * scale, (e[1] - y) * scale, (e[2] - x) * scale, (e[3] - y) * scale) for e in edges]
    there = [i for i, edge in enumerate(edges) if edge]
    boxes: list[Box | None] = [None] * len(edges)
    if there:
        corners = window.unit_points(np.array([edges[i] for i in there])[:, _CORNERS])
        for i, box in zip(there, np.concatenate([corners.min(1), corners.max(1)], 1).tolist(), strict=True):
            boxes[i] = _floats(box)
    return boxes


def _edges(region: Region) -> Box | None:
    """x1 y1 x2 y2 in pixels."""
    if region.bbox is not None:
        x, y, w, h = region.bbox
        return x, y, x + w, y + h
    if region.points:
        xs, ys = [p[0] for p in region.points], [p[1] for p in region.points]
        return min(xs), min(ys), max(xs), max(ys)
    return None


def _floats(box: Iterable[float]) -> Box:
    x1, y1, x2, y2 = map(float, box)
    return x1, y1, x2, y2


def _clipped(box: Box | None) -> Box | None:
    return box and (_unit(box[0]), _unit(box[1]), _unit(box[2]), _unit(box[3]))


def _unit(value: float) -> float:
    return 0.0 if value < 0.0 else 1.0 if value > 1.0 else value


def _third(position: float, low: str, high: str) -> str:
    return low if position < 0.4 else high if position > 0.6 else ""
