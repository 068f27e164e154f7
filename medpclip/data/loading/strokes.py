"""Scribbles: a stroke along a region's middle, as a row of clicks on it (our design).

The stroke follows the region's longest direction: that in which its pixels spread most. Across it, it keeps to the middle
of the branch that it is on, so it bends with the region, and its points never leave it. Where it begins and ends is drawn.
"""

from __future__ import annotations

import math

import numpy as np

STROKE_POINTS = 8
STROKE_DRAWS = 2 + 2 * STROKE_POINTS  # uniform numbers that a stroke takes
_LEFT_OUT = 0.2  # of the region's length at each end, at most
_REACH = 0.75  # pixels along the stroke; half a pixel's diagonal and a little, so that no connected region has gaps


def stroke_in_mask(mask_pixels: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Points on a mask, float64 (STROKE_POINTS, 2) xy in pixels.

    Args:
        mask_pixels: (N, 2) whole numbers xy, N >= 1: the mask's pixels.
        draws: (STROKE_DRAWS,) uniform numbers.
    """
    direction = _longest_direction(mask_pixels.astype(np.int64))
    pixels = mask_pixels.astype(np.float64)
    along, across = pixels @ direction, pixels @ np.array([-direction[1], direction[0]])
    low, high = along.min(), along.max()
    points, previous = np.empty((STROKE_POINTS, 2)), None
    for i, target in enumerate(low + (high - low) * _shares(draws)):
        near = np.flatnonzero(np.abs(along - target) <= _REACH)
        if not near.size:  # a gap between a mask's parts
            near = np.array([np.abs(along - target).argmin()])
        branch = _branch(near, across[near], previous)
        previous = float(across[branch[0]] + across[branch[-1]]) / 2
        off = np.square(along[branch] - target) + np.square(across[branch] - previous)
        points[i] = pixels[branch[off.argmin()]]
    return points + draws[2:].reshape(-1, 2)


def stroke_in_box(box: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Points along the middle of a box's longer side, float64 (STROKE_POINTS, 2) xy.

    Args:
        box: (4,) x1 y1 x2 y2, in any unit.
        draws: (STROKE_DRAWS,) uniform numbers.
    """
    low, size = box[:2].astype(np.float64), (box[2:] - box[:2]).astype(np.float64)
    points = np.tile(low + size / 2, (STROKE_POINTS, 1))
    longer = int(size[1] > size[0])
    points[:, longer] = low[longer] + size[longer] * _shares(draws)
    return points


def _shares(draws: np.ndarray) -> np.ndarray:
    """Where along the region the points lie, from 0 to 1."""
    return np.linspace(_LEFT_OUT * draws[0], 1 - _LEFT_OUT * draws[1], STROKE_POINTS)


def _longest_direction(pixels: np.ndarray) -> np.ndarray:
    """Unit vector (2,) of the largest variance, pointing right, or down."""
    # In whole numbers: of a disc, rounding would decide.
    count, x, y = len(pixels), int(pixels[:, 0].sum()), int(pixels[:, 1].sum())
    xx, yy, xy = (int((pixels[:, i] * pixels[:, j]).sum()) for i, j in ((0, 0), (1, 1), (0, 1)))
    angle = math.atan2(2 * (count * xy - x * y), (count * xx - x * x) - (count * yy - y * y)) / 2
    return np.array([math.cos(angle), math.sin(angle)])


def _branch(near: np.ndarray, across: np.ndarray, previous: float | None) -> np.ndarray:
    """Of pixels in a line across the stroke, those that lie together nearest to the stroke's last place, in order.

    At the stroke's beginning, the most that lie together.
    """
    order = np.argsort(across, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(across[order]) > 2 * _REACH) + 1)
    if previous is None:
        return near[max(parts, key=len)]
    return near[min(parts, key=lambda part: abs(float(across[part[0]] + across[part[-1]]) / 2 - previous))]
