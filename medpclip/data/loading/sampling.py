"""From annotated regions to training's prompts: what a clinician might click or draw to point at them.

All regions of a batch are drawn at once: their masks as strips (see `strips`), their coordinates as arrays. What is
drawn for a region depends on the region's own random numbers only, so not on the batch it comes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medpclip.data.loading.draws import normals
from medpclip.data.loading.geometry import Windows
from medpclip.data.loading.prompting import PROMPT_KINDS, PromptSampling
from medpclip.data.loading.strips import Strips
from medpclip.data.loading.strokes import STROKE_DRAWS, STROKE_POINTS, stroke_in_box, stroke_in_mask

_CHOOSING, _TRIES, _FIXED = 3, 10, 8  # draws for a region's kinds; for a click off it; for all else but its clicks


@dataclass
class Pointed:
    """Regions to be pointed at, each in its image's window, all of a batch at once.

    Attributes:
        windows: one per region.
        boxes: (N, 4) float64 x y width height in pixels; NaN where a region has none.
        strips: of the regions' masks as their windows show them, before any mirroring, in the windows' pixels.
        has_mask: (N,) bool.
        points: annotated points [[x, y], ...] in pixels; only looked at where a region has neither box nor mask.
        image_sizes: (N, 2) int64 width, height of the image.
    """

    windows: Windows
    boxes: np.ndarray
    strips: Strips
    has_mask: np.ndarray
    points: Sequence[Any]
    image_sizes: np.ndarray

    @property
    def has_box(self) -> np.ndarray:
        """(N,) bool."""
        return ~np.isnan(self.boxes[:, 0])


@dataclass
class Choice:
    """What is given for each region: bool (N,) each. Depends on which parts regions have, not on what they look like."""

    box: np.ndarray
    point: np.ndarray
    mask: np.ndarray
    scribble: np.ndarray


def draws_per_region(sampling: PromptSampling) -> int:
    """Uniform numbers that `choose` and `sample_prompts` take for a region."""
    return _CHOOSING + _FIXED + 2 * _TRIES + 3 * sampling.max_points + STROKE_DRAWS * sampling.scribbles


def choose(has_box: np.ndarray, has_mask: np.ndarray, sampling: PromptSampling, draws: np.ndarray) -> Choice:
    """Draw kinds of prompt; a region that lacks the configured kinds gets a box, clicks or a mask, whichever it has.

    Args:
        has_box, has_mask: (N,) bool; a click can be made of anything.
        draws: (N, at least 3) uniform numbers; the first three are used.
    """
    available = np.stack([has_box, np.ones_like(has_box), has_mask, has_box | has_mask], 1)
    weights = available * np.array([sampling.kinds.get(kind, 0.0) for kind in PROMPT_KINDS])
    instead = available & (np.array(PROMPT_KINDS) != "scribble")
    weights = np.where(weights.any(1, keepdims=True), weights, instead)
    ends = weights.cumsum(1)
    rows = np.arange(len(ends))
    chosen = np.zeros(available.shape, bool)
    for draw, given in ((draws[:, 0], np.ones(len(ends), bool)), (draws[:, 1], draws[:, 2] < sampling.combine)):
        kind = (draw[:, None] * ends[:, -1:] >= ends[:, :-1]).sum(1)
        chosen[rows[given], kind[given]] = True
    return Choice(*chosen.T)


def sample_prompts(
    regions: Pointed,
    choice: Choice,
    sampling: PromptSampling,
    draws: np.ndarray,
    out: Mapping[str, np.ndarray],
    places: np.ndarray,
) -> None:
    """Prompts as a person might give them: clicks and inaccuracies drawn from `sampling`.

    Args:
        regions: N of them; those that are pointed at by mask or click have their strips.
        choice: of `choose`.
        draws: (N, draws_per_region(sampling)) uniform numbers.
        out: the arrays of `empty_arrays`, with its first two axes as one; written to.
        places: int64 (N,): where in `out` each region goes.
    """
    draws = draws[:, _CHOOSING:]
    unit = regions.windows.unit_boxes(regions.boxes)
    turned = np.flatnonzero(regions.has_mask & regions.has_box & (regions.windows.angle != 0) & choice.box)
    if len(turned):  # the upright box around a turned box is too large for what is in it
        side = regions.windows.side[turned, None]
        unit[turned] = (regions.strips.extents()[turned] / side).astype(np.float32)
    if choice.box.any():
        chosen = np.flatnonzero(choice.box)
        boxes = _jittered(unit[chosen], sampling.box_jitter, normals(draws[chosen, :4]).astype(np.float32))
        out["boxes"][places[chosen]] = _mirrored_boxes(boxes, regions.windows.flip[chosen])
        out["box_valid"][places[chosen]] = True
    if choice.mask.any():
        chosen = np.flatnonzero(choice.mask)
        into = places[chosen]
        regions.strips.select(chosen).add_coverage(regions.windows.side[chosen], out["masks"], into)
        _disturb(out["masks"], into, sampling.mask_noise, draws[chosen, 4:6])
        mirrored = into[regions.windows.flip[chosen]]
        out["masks"][mirrored] = out["masks"][mirrored, :, ::-1]
        out["mask_valid"][into] = True
    if choice.point.any():
        chosen = np.flatnonzero(choice.point)
        points, labels = _clicks(regions, unit, chosen, sampling, draws[chosen, 6:])
        points[..., 0] = np.where(
            regions.windows.flip[chosen, None] & (labels >= 0), 1 - points[..., 0], points[..., 0]
        )
        own = slice(sampling.max_points + 1)
        out["points"][places[chosen], own] = points
        out["point_labels"][places[chosen], own] = labels
    if choice.scribble.any():
        chosen = np.flatnonzero(choice.scribble)
        points = _strokes(regions, unit, chosen, draws[chosen, -STROKE_DRAWS:])
        points[..., 0] = np.where(regions.windows.flip[chosen, None], 1 - points[..., 0], points[..., 0])
        own = slice(sampling.max_points + 1, sampling.points)
        out["points"][places[chosen], own] = points
        out["point_labels"][places[chosen], own] = 1


def _clicks(
    regions: Pointed, unit: np.ndarray, chosen: np.ndarray, sampling: PromptSampling, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Unit points (M, max_points + 1, 2) and labels (M, max_points + 1) of the M chosen regions.

    Uniform over what the window shows of the mask, else of the box, else one of the annotated points; now and then one
    off the region, in its surroundings, follows them.
    """
    most = sampling.max_points
    count = 1 + (draws[:, 0] * most).astype(np.int64)
    wants_negative = draws[:, 1] < sampling.negative
    where = draws[:, 2 + 2 * _TRIES :][:, : 3 * most].reshape(len(chosen), most, 3)
    points = np.zeros((len(chosen), most + 1, 2))
    masked, boxed = regions.has_mask[chosen], regions.has_box[chosen]
    if (rows := np.flatnonzero(masked)).size:
        owners = np.repeat(chosen[rows], most)
        pixels = regions.strips.pick(owners, where[rows, :, 0].ravel()).reshape(-1, most, 2)
        points[rows, :most] = (pixels + where[rows, :, 1:]) / regions.windows.side[chosen[rows], None, None]
    if (rows := np.flatnonzero(boxed & ~masked)).size:
        box = unit[chosen[rows], None].astype(np.float64)
        points[rows, :most] = box[..., :2] + where[rows, :, 1:] * (box[..., 2:] - box[..., :2])
    for row in np.flatnonzero(~boxed & ~masked):
        region = int(chosen[row])
        given = regions.windows.pick([region]).unit_points(np.array(regions.points[region], np.float64)[None])[0]
        seen = given[((given >= 0) & (given <= 1)).all(1)]
        points[row, :most] = seen[(where[row, :, 0] * len(seen)).astype(np.int64)]
    labels = np.where(np.arange(most + 1) < count[:, None], 1, -1)
    if (rows := np.flatnonzero(wants_negative & boxed)).size:
        tries = draws[rows, 2 : 2 + 2 * _TRIES].reshape(-1, _TRIES, 2)
        off, found = _off_region(regions, chosen[rows], tries)
        rows = rows[found]
        points[rows, count[rows]], labels[rows, count[rows]] = off[found], 0
    points[labels < 0] = 0
    return points.astype(np.float32), labels


def _strokes(regions: Pointed, unit: np.ndarray, chosen: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Unit points (M, STROKE_POINTS, 2) of the M chosen regions: in what the window shows of the mask, else the box."""
    points = np.zeros((len(chosen), STROKE_POINTS, 2), np.float32)
    for row, region in enumerate(chosen.tolist()):
        if regions.has_mask[region]:
            pixels = regions.strips.select(np.array([region])).pixels()
            points[row] = stroke_in_mask(pixels, draws[row]) / regions.windows.side[region]
        else:
            points[row] = stroke_in_box(unit[region], draws[row])
    return points


def _off_region(regions: Pointed, chosen: np.ndarray, tries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A unit point near each region but not on it, (M, 2), and whether one of the tries, (M, tries, 2), found it."""
    x, y, w, h = regions.boxes[chosen].T[:, :, None]
    px, py = x + w * (2.2 * tries[..., 0] - 0.6), y + h * (2.2 * tries[..., 1] - 0.6)
    windows = regions.windows.pick(chosen)
    unit = windows.unit_points(np.stack([px, py], -1))
    good = ((unit >= 0) & (unit < 1)).all(-1)
    masked = regions.has_mask[chosen, None]
    width, height = regions.image_sizes[chosen].T[:, :, None]
    inside_image = (px >= 0) & (px < width) & (py >= 0) & (py < height)
    pixel = np.clip((unit * windows.side[:, None, None]).astype(np.int64), 0, windows.side[:, None, None] - 1)
    on_mask = regions.strips.contains(chosen[:, None], pixel[..., 0], pixel[..., 1])
    on_box = (px >= x) & (px <= x + w) & (py >= y) & (py <= y + h)
    good &= np.where(masked, inside_image & ~on_mask, ~on_box)
    return unit[np.arange(len(chosen)), good.argmax(1)], good.any(1)


def _jittered(boxes: np.ndarray, jitter: float, normal: np.ndarray) -> np.ndarray:
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = np.clip(boxes + jitter * normal * size, 0.0, 1.0)
    # A jitter that turns the box inside out is no prompt.
    return np.where((moved[:, 2:] > moved[:, :2]).all(1, keepdims=True), moved, boxes)


def _mirrored_boxes(boxes: np.ndarray, flip: np.ndarray) -> np.ndarray:
    return np.where(flip[:, None], np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1), boxes)


def _disturb(masks: np.ndarray, into: np.ndarray, noise: float, draws: np.ndarray) -> None:
    """Dilate or erode some of masks[into] by a cell, in place; one that would vanish stays as it is."""
    noisy = draws[:, 0] < noise
    swell, shrink = into[noisy & (draws[:, 1] < 0.5)], into[noisy & (draws[:, 1] >= 0.5)]
    masks[swell] = _swollen(masks[swell])
    shrunk = 1 - _swollen(1 - masks[shrink])
    left = shrunk.any((1, 2))
    masks[shrink[left]] = shrunk[left]


def _swollen(coverage: np.ndarray) -> np.ndarray:
    """Grey dilation by one cell, (N, grid, grid)."""
    for _ in range(2):  # along one axis, then along the other
        two = np.maximum(coverage[:, 1:], coverage[:, :-1])
        out = np.empty_like(coverage)
        out[:, :1], out[:, -1:] = two[:, :1], two[:, -1:]
        np.maximum(two[:, 1:], two[:, :-1], out=out[:, 1:-1])
        coverage = out.transpose(0, 2, 1)
    return coverage
