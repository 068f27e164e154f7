"""Prompts: how a region is pointed at, and what training draws them by.

Everything is in unit coordinates of a `Window` (see `geometry`) and in numpy; `stack` pads prompts to arrays that
`medpclip.models.Prompts` takes over. `sampling` draws training's prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.strokes import STROKE_DRAWS, STROKE_POINTS, stroke_in_box, stroke_in_mask
from medpclip.data.schema import Region

PromptKind = Literal["point", "box", "mask", "scribble"]
PROMPT_KINDS: tuple[PromptKind, ...] = ("box", "point", "mask", "scribble")


@dataclass
class RegionPrompt:
    """One region, pointed at. Any of the parts may be missing, not all.

    Attributes:
        points: (n, 2) float32 xy in [0, 1].
        labels: (n,) int64: 1 on the region, 0 off it.
        box: (4,) float32 x1 y1 x2 y2 in [0, 1].
        mask: (grid, grid) float32 in [0, 1], the covered share of each cell.
    """

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    box: np.ndarray | None = None
    mask: np.ndarray | None = None


@dataclass
class PromptSampling:
    """How training draws prompts (our design).

    Attributes:
        kinds: relative frequency of each prompt kind: box, point (clicks), mask, scribble (clicks along a stroke); a
            region that lacks them gets a box, clicks or a mask, whichever it has.
        combine: chance that a second kind is given as well.
        max_points: up to so many clicks on the region (at least 1).
        negative: chance of one more click off the region, in its surroundings.
        box_jitter: each side moves by a normal draw with this standard deviation, as a share of the box's size.
        mask_noise: chance that a mask comes eroded or dilated by a cell of the prompt grid.
        whole: chance that an image's last place for a region goes to a box around all of the image, which the image's
            texts are true of: so a prompted embedding answers for whole images too; 0 for never.
    """

    kinds: dict[PromptKind, float] = field(default_factory=lambda: {"box": 1.0, "point": 1.0, "mask": 1.0})
    combine: float = 0.1
    max_points: int = 3
    negative: float = 0.15
    box_jitter: float = 0.05
    mask_noise: float = 0.15
    whole: float = 0.25

    @property
    def scribbles(self) -> bool:
        """Whether any are drawn."""
        return self.kinds.get("scribble", 0.0) > 0

    @property
    def points(self) -> int:
        """Places for clicks that a region takes: on it, off it, and along a stroke."""
        return self.max_points + 1 + STROKE_POINTS * self.scribbles

    def __post_init__(self) -> None:
        if self.max_points < 1:
            raise ValueError(f"'max_points' is {self.max_points}, expected at least 1")
        if not 0 <= self.whole <= 1:
            raise ValueError(f"'whole' is {self.whole}, expected a chance from 0 to 1")
        if min(self.kinds.values(), default=0.0) < 0 or not any(self.kinds.values()):
            raise ValueError(f"'kinds' is {self.kinds}, expected weights of at least 0, one of them more")


def available_kinds(region: Region) -> tuple[PromptKind, ...]:
    """The kinds of prompt that can be made from a region's annotation; a click needs a mask, a box or a point, a scribble
    one of the first two."""
    has: dict[PromptKind, bool] = {
        "box": region.bbox is not None,
        "point": True,
        "mask": region.segmentation is not None,
        "scribble": region.segmentation is not None or region.bbox is not None,
    }
    return tuple(kind for kind in PROMPT_KINDS if has[kind])


def exact_prompt(region: Region, window: Window, kind: PromptKind, grid: int, rng: np.random.Generator) -> RegionPrompt:
    """The prompt as annotated; a point is one click, uniform in the mask (else the box, else an annotated point), a
    scribble a row of clicks along the middle of the mask (else the box).

    Raises:
        KeyError: the region can't be prompted so; ask `available_kinds` first.
    """
    if kind not in available_kinds(region):
        raise KeyError(kind)
    if kind == "box":
        assert region.bbox is not None
        return RegionPrompt(box=window.unit_box(region.bbox))
    mask = region.mask()
    if kind == "mask":
        assert mask is not None
        return RegionPrompt(mask=window.coverage(mask, grid))
    points = _one_click(region, mask, window, rng) if kind == "point" else _scribble(region, mask, window, rng)
    return RegionPrompt(points=points, labels=np.ones(len(points), np.int64))


def _one_click(region: Region, mask: np.ndarray | None, window: Window, rng: np.random.Generator) -> np.ndarray:
    if mask is not None:
        inside = _pixels(mask, window)
        corner = inside[rng.integers(len(inside), size=1)]
        return ((corner + rng.random((1, 2))) / window.side).astype(np.float32)
    if region.bbox is not None:
        box = window.unit_box(region.bbox)
        return (box[:2] + rng.random((1, 2)) * (box[2:] - box[:2])).astype(np.float32)
    assert region.points
    points = window.unit_points(np.array(region.points))
    points = points[((points >= 0) & (points <= 1)).all(1)]
    return points[rng.integers(len(points), size=1)]


def _scribble(region: Region, mask: np.ndarray | None, window: Window, rng: np.random.Generator) -> np.ndarray:
    draws = rng.random(STROKE_DRAWS)
    if mask is not None:
        return (stroke_in_mask(_pixels(mask, window), draws) / window.side).astype(np.float32)
    assert region.bbox is not None
    return stroke_in_box(window.unit_box(region.bbox), draws).astype(np.float32)


def _pixels(mask: np.ndarray, window: Window) -> np.ndarray:
    """What a window shows of a mask, int64 (N, 2) xy in the window's pixels, row by row."""
    inside = np.flatnonzero(window.cut(mask))
    return np.stack([inside % window.side, inside // window.side], axis=1)


def empty_arrays(batch: int, regions: int, points: int, grid: int) -> dict[str, np.ndarray]:
    """No prompts: arrays named as the fields of `medpclip.models.Prompts`, for B images and R regions each."""
    return {
        "points": np.zeros((batch, regions, points, 2), np.float32),
        "point_labels": np.full((batch, regions, points), -1, np.int64),
        "boxes": np.zeros((batch, regions, 4), np.float32),
        "box_valid": np.zeros((batch, regions), bool),
        "masks": np.zeros((batch, regions, grid, grid), np.float32),
        "mask_valid": np.zeros((batch, regions), bool),
    }


def stack(
    prompts: Sequence[Sequence[RegionPrompt]], grid: int, regions: int | None = None, points: int | None = None
) -> dict[str, np.ndarray]:
    """Pad the prompts of B images to arrays named as the fields of `medpclip.models.Prompts`.

    Args:
        prompts: for each image, its regions' prompts.
        grid: side of the mask grid.
        regions, points: pad to so many; by default to the largest number there is (at least 1).
    """
    batch = len(prompts)
    regions = regions or max([1, *map(len, prompts)])
    points = points or max([1, *(len(p.points) for row in prompts for p in row)])
    out = empty_arrays(batch, regions, points, grid)
    for b, row in enumerate(prompts):
        for r, prompt in enumerate(row):
            count = len(prompt.points)
            out["points"][b, r, :count] = prompt.points
            out["point_labels"][b, r, :count] = prompt.labels
            if prompt.box is not None:
                out["boxes"][b, r], out["box_valid"][b, r] = prompt.box, True
            if prompt.mask is not None:
                out["masks"][b, r], out["mask_valid"][b, r] = prompt.mask, True
    return out
