"""From annotated regions to prompts: what a clinician might click or draw to point at them.

Everything is in unit coordinates of a `Window` (see `geometry`) and in numpy; `stack` pads prompts to arrays that
`medpclip.models.Prompts` takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from medpclip.data.loading.geometry import Window
from medpclip.data.schema import Region

PromptKind = Literal["point", "box", "mask"]
PROMPT_KINDS: tuple[PromptKind, ...] = ("box", "point", "mask")


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
        kinds: relative frequency of each prompt kind; a region that lacks a kind gets one of those it has.
        combine: chance that a second kind is given as well.
        max_points: up to so many clicks on the region (at least 1).
        negative: chance of one more click off the region, in its surroundings.
        box_jitter: each side moves by a normal draw with this standard deviation, as a share of the box's size.
        mask_noise: chance that a mask comes eroded or dilated by a cell of the prompt grid.
    """

    kinds: dict[PromptKind, float] = field(default_factory=lambda: {"box": 1.0, "point": 1.0, "mask": 1.0})
    combine: float = 0.1
    max_points: int = 3
    negative: float = 0.15
    box_jitter: float = 0.05
    mask_noise: float = 0.15

    def __post_init__(self) -> None:
        if self.max_points < 1:
            raise ValueError(f"'max_points' is {self.max_points}, expected at least 1")
        if min(self.kinds.values(), default=0.0) < 0 or not any(self.kinds.values()):
            raise ValueError(f"'kinds' is {self.kinds}, expected weights of at least 0, one of them more")


def available_kinds(region: Region) -> tuple[PromptKind, ...]:
    """The kinds of prompt that can be made from a region's annotation; a click needs a mask, a box or a point."""
    has: dict[PromptKind, bool] = {
        "box": region.bbox is not None,
        "point": True,
        "mask": region.segmentation is not None,
    }
    return tuple(kind for kind in PROMPT_KINDS if has[kind])


def exact_prompt(region: Region, window: Window, kind: PromptKind, grid: int, rng: np.random.Generator) -> RegionPrompt:
    """The prompt as annotated; a point is one click, uniform in the mask (else the box, else an annotated point).

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
    return RegionPrompt(points=_clicks(region, mask, window, 1, rng), labels=np.ones(1, np.int64))


def sample_prompt(
    region: Region, window: Window, grid: int, sampling: PromptSampling, rng: np.random.Generator
) -> RegionPrompt:
    """A prompt as a person might give it: kind, clicks and inaccuracies drawn from `sampling`."""
    kinds = available_kinds(region)
    weights = np.array([sampling.kinds.get(kind, 0.0) for kind in kinds])
    if not weights.any():
        weights = np.ones(len(kinds))
    share = weights / weights.sum()
    chosen = {str(rng.choice(kinds, p=share))}
    if rng.random() < sampling.combine:
        chosen.add(str(rng.choice(kinds, p=share)))
    mask = region.mask() if chosen & {"mask", "point"} else None
    prompt = RegionPrompt()
    if "box" in chosen:
        assert region.bbox is not None
        prompt.box = _jittered(window.unit_box(region.bbox), sampling.box_jitter, rng)
    if "mask" in chosen:
        assert mask is not None
        coverage = window.coverage(mask, grid)
        if rng.random() < sampling.mask_noise:
            coverage = _swollen(coverage) if rng.random() < 0.5 else 1 - _swollen(1 - coverage)
        prompt.mask = coverage if coverage.any() else window.coverage(mask, grid)
    if "point" in chosen:
        count = int(rng.integers(1, sampling.max_points + 1))
        prompt.points = _clicks(region, mask, window, count, rng)
        prompt.labels = np.ones(len(prompt.points), np.int64)
        if region.bbox is not None and rng.random() < sampling.negative:
            off = _click_off(region, mask, window, rng)
            prompt.points = np.concatenate([prompt.points, off])
            prompt.labels = np.concatenate([prompt.labels, np.zeros(len(off), np.int64)])
    return prompt


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
    out: dict[str, np.ndarray] = {
        "points": np.zeros((batch, regions, points, 2), np.float32),
        "point_labels": np.full((batch, regions, points), -1, np.int64),
        "boxes": np.zeros((batch, regions, 4), np.float32),
        "box_valid": np.zeros((batch, regions), bool),
        "masks": np.zeros((batch, regions, grid, grid), np.float32),
        "mask_valid": np.zeros((batch, regions), bool),
    }
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


def _clicks(
    region: Region, mask: np.ndarray | None, window: Window, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` unit points (count, 2) in the window, uniform over the part of the region that it shows."""
    if mask is not None:
        seen = window.cut(mask)
        inside = np.flatnonzero(seen)
        picked = inside[rng.integers(len(inside), size=count)]
        corner = np.stack([picked % window.side, picked // window.side], axis=1)
        return ((corner + rng.random((count, 2))) / window.side).astype(np.float32)
    if region.bbox is not None:
        box = window.unit_box(region.bbox)
        return (box[:2] + rng.random((count, 2)) * (box[2:] - box[:2])).astype(np.float32)
    assert region.points
    points = window.unit_points(np.array(region.points))
    points = points[((points >= 0) & (points <= 1)).all(1)]
    return points[rng.integers(len(points), size=count)]


def visible(region: Region, window: Window) -> bool:
    """Whether the window shows at least half of the region, or one of its points where it has no extent."""
    if region.bbox is not None:
        x1, y1, x2, y2 = window.unit_box(region.bbox)
        share = float((x2 - x1) * (y2 - y1)) * window.side**2 / (region.bbox[2] * region.bbox[3])
        if region.segmentation is None or share > 0.999:
            return share >= 0.5
    mask = region.mask()
    if mask is not None:
        return 2 * int(window.cut(mask).sum()) >= int(mask.sum())
    points = window.unit_points(np.array(region.points))
    return bool(((points >= 0) & (points <= 1)).all(1).any())


def _click_off(region: Region, mask: np.ndarray | None, window: Window, rng: np.random.Generator) -> np.ndarray:
    """One unit point (1, 2) near the region but not on it; (0, 2) where ten tries find none."""
    assert region.bbox is not None
    x, y, w, h = region.bbox
    for _ in range(10):
        px, py = x + w * rng.uniform(-0.6, 1.6), y + h * rng.uniform(-0.6, 1.6)
        if mask is not None:
            inside_image = 0 <= px < mask.shape[1] and 0 <= py < mask.shape[0]
            on = inside_image and bool(mask[int(py), int(px)])
        else:
            inside_image, on = True, x <= px <= x + w and y <= py <= y + h
        point = window.unit_points(np.array([[px, py]]))
        if inside_image and not on and point.min() >= 0 and point.max() <= 1:
            return point
    return np.zeros((0, 2), np.float32)


def _jittered(box: np.ndarray, jitter: float, rng: np.random.Generator) -> np.ndarray:
    size = np.tile(box[2:] - box[:2], 2)
    moved = np.clip(box + rng.normal(0.0, jitter, 4) * size, 0.0, 1.0).astype(np.float32)
    # A jitter that turns the box inside out is no prompt.
    return moved if (moved[2:] > moved[:2]).all() else box


def _swollen(coverage: np.ndarray) -> np.ndarray:
    """Grey dilation by one cell."""
    padded = np.pad(coverage, 1)
    return np.max([padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx]
                   for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)  # fmt: skip
