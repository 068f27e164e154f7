"""Outlines fill their box, pair shapes have the fill they are asked for, masks agree with a brute-force polygon test."""

from itertools import pairwise

import numpy as np
import pytest

from medpclip.data.phantom import shapes

ALL = [*shapes.FREE_SHAPES, *shapes.SOLVED_SHAPES]


def _inside(polygon: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Even-odd rule, one edge at a time."""
    odd = np.zeros(np.broadcast(x, y).shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return odd


@pytest.mark.parametrize("shape", ALL)
def test_outline_touches_all_sides(shape: str) -> None:
    for seed in range(8):
        polygon = shapes.outline(np.random.default_rng(seed), shape)
        np.testing.assert_allclose(polygon.min(axis=0), -1.0, atol=1e-9)
        np.testing.assert_allclose(polygon.max(axis=0), 1.0, atol=1e-9)


@pytest.mark.parametrize("shape", shapes.SOLVED_SHAPES)
def test_solved_shapes_have_the_wanted_fill(shape: str) -> None:
    low, high = shapes.SOLVED_SHAPES[shape][1]
    fills = [shapes.fill(shapes.outline(np.random.default_rng(seed), shape)) for seed in range(40)]
    assert low - 0.01 < min(fills) < max(fills) < high + 0.01
    assert np.ptp(fills) > 0.5 * (high - low)


@pytest.mark.parametrize("shape", shapes.SOLVED_SHAPES)
def test_fill_falls_with_depth(shape: str) -> None:
    family = shapes.SOLVED_SHAPES[shape][0]
    fills = [shapes.fill(family(depth)) for depth in np.linspace(0.1, 0.95, 12)]
    assert all(a > b for a, b in pairwise(fills)), fills


@pytest.mark.parametrize("shape", ALL)
def test_mask_equals_brute_force(shape: str) -> None:
    polygon = shapes.outline(np.random.default_rng(3), shape)
    rows, columns, cover, mask = shapes.rasterise(polygon, 40.3, 31.7, 44.0, 36.0, 0.5, (64, 80))
    whole = np.zeros((64, 80), dtype=bool)
    whole[rows, columns] = mask
    x, y = np.arange(80)[None, :] + 0.5, np.arange(64)[:, None] + 0.5
    expected = _inside(polygon * [22.0, 18.0] + [40.3, 31.7], x, y)
    union = (whole | expected).sum()
    assert (whole & expected).sum() / union > 0.93
    assert cover.min() >= 0.0 and cover.max() <= 1.0 and cover.shape == mask.shape


def test_window_stays_in_the_image() -> None:
    polygon = shapes.outline(np.random.default_rng(0), "blob")
    rows, columns, _, mask = shapes.rasterise(polygon, 6.0, 6.0, 11.0, 11.0, 1.0, (40, 40))
    assert rows.start == 0 and columns.start == 0 and mask.shape == (rows.stop, columns.stop)
