"""Strokes: on the region, along all of it, in its middle."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.loading.strokes import STROKE_DRAWS, STROKE_POINTS, stroke_in_box, stroke_in_mask

MIDDLE = np.full(STROKE_DRAWS, 0.5)
ENDS = np.concatenate([[0.0, 0.0], np.full(STROKE_DRAWS - 2, 0.5)])


def stroke(mask: np.ndarray, draws: np.ndarray = MIDDLE) -> np.ndarray:
    y, x = np.nonzero(mask)
    return stroke_in_mask(np.stack([x, y], 1), draws)


def line(mask: np.ndarray, points: np.ndarray) -> float:
    """Share of the polyline through the points that lies on the mask."""
    steps = np.linspace(0, 1, 50)[:, None]
    between = np.concatenate([a + (b - a) * steps for a, b in pairwise(points)]).astype(int)
    return float(mask[between[:, 1], between[:, 0]].mean())


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 24), st.integers(1, 24), st.floats(0.02, 1.0))
def test_points_are_on_any_mask(seed: int, width: int, height: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share
    mask[rng.integers(height), rng.integers(width)] = True
    points = stroke(mask, rng.random(STROKE_DRAWS))
    assert points.shape == (STROKE_POINTS, 2)
    x, y = np.floor(points).astype(int).T
    assert mask[y, x].all()


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_a_bar_is_followed_from_end_to_end_in_its_middle(degrees: int) -> None:
    rows, columns = np.mgrid[:200, :200] - 99.5
    turn = np.radians(degrees)
    along = columns * np.cos(turn) + rows * np.sin(turn)
    across = rows * np.cos(turn) - columns * np.sin(turn)
    points = stroke((np.abs(along) < 80) & (np.abs(across) < 8), ENDS) - 100
    off = np.abs(points @ [-np.sin(turn), np.cos(turn)])
    assert off[1:-1].max() < 2 and off.max() < 4  # the outermost pixels are few
    at = np.sort(points @ [np.cos(turn), np.sin(turn)])
    assert at == pytest.approx(np.linspace(-80, 80, STROKE_POINTS), abs=3)


def test_a_bent_region_is_followed_on_one_branch() -> None:
    rows, columns = np.mgrid[:120, :120] + 0.5
    radius = np.hypot(columns - 60, rows - 20)
    crescent = (radius > 60) & (radius < 80) & (rows > 20)
    points = stroke(crescent)
    assert np.hypot(points[:, 0] - 60, points[:, 1] - 20) == pytest.approx(np.full(STROKE_POINTS, 70), abs=8)
    assert line(crescent, points) > 0.9
    two = np.zeros((60, 120), bool)
    two[5:15], two[40:55] = True, True
    assert (stroke(two)[:, 1] > 40).all(), "the thicker of two parallel bars"


def test_ends_are_drawn_and_at_most_a_fifth_is_left_out() -> None:
    bar = np.zeros((10, 100), bool)
    bar[4:6] = True
    for first, last in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        draws = np.concatenate([[first, last], np.full(STROKE_DRAWS - 2, 0.5)])
        x = stroke(bar, draws)[:, 0]
        assert x[0] == pytest.approx(20 * first, abs=1.5) and x[-1] == pytest.approx(100 - 20 * last, abs=1.5)


def test_a_disc_is_crossed_from_left_to_right() -> None:
    """Its directions are alike; which one is taken must not hang on rounding."""
    rows, columns = np.mgrid[:41, :41] - 20
    points = stroke(rows**2 + columns**2 <= 400, ENDS)
    assert points[:, 1] == pytest.approx(np.full(STROKE_POINTS, 20.5)) and points[0, 0] < 2 and points[-1, 0] > 39


def test_a_box_is_followed_along_its_longer_side() -> None:
    wide, tall = (stroke_in_box(np.array(box, np.float32), ENDS) for box in ([0, 1, 7, 2], [0.25, 0, 0.5, 1]))
    assert wide == pytest.approx(np.stack([np.arange(8.0), np.full(8, 1.5)], 1))
    assert tall == pytest.approx(np.stack([np.full(8, 0.375), np.arange(8) / 7], 1))
