"""Prompts as annotated; `test_sampling` has the drawn ones."""

import numpy as np
import pytest

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import RegionPrompt, available_kinds, exact_prompt, stack
from medpclip.data.loading.strokes import STROKE_POINTS
from medpclip.data.schema import Region, encode_mask

WINDOW = Window.whole(80, 60)


def disc(x: float = 30, y: float = 20, radius: float = 8) -> tuple[Region, np.ndarray]:
    rows, columns = np.mgrid[:60, :80] + 0.5
    mask = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    ys, xs = np.where(mask)
    bbox = [float(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)]
    return Region(0, "disc", bbox=bbox, segmentation=encode_mask(mask)), mask


def pixel(point: np.ndarray) -> tuple[int, int]:
    x, y = point * WINDOW.side + (WINDOW.left, WINDOW.top)
    return int(y), int(x)


def test_one_exact_click_is_uniform_in_the_mask() -> None:
    region, mask = disc()
    rng = np.random.default_rng(0)
    counts = np.zeros(mask.shape)
    for _ in range(4000):
        counts[pixel(exact_prompt(region, WINDOW, "point", 16, rng).points[0])] += 1
    expected = 4000 / mask.sum()
    assert (counts[~mask] == 0).all()
    chi2 = ((counts[mask] - expected) ** 2 / expected).sum()
    assert chi2 < mask.sum() + 5 * np.sqrt(2 * mask.sum())


def test_exact_box_and_mask_are_the_annotation() -> None:
    region, mask = disc()
    rng = np.random.default_rng(0)
    assert region.bbox is not None
    x, y, w, h = region.bbox
    expected = (np.array([x, y + 10, x + w, y + h + 10]) / 80).astype(np.float32)
    assert np.allclose(exact_prompt(region, WINDOW, "box", 16, rng).box, expected)
    coverage = exact_prompt(region, WINDOW, "mask", 16, rng).mask
    assert coverage is not None and np.isclose(coverage.mean() * 80 * 80, mask.sum(), rtol=1e-3)


def test_a_region_has_the_kinds_that_its_annotation_allows() -> None:
    box_only, point_only = Region(0, "a", bbox=[1, 2, 3, 4]), Region(1, "a", points=[[5, 6]])
    assert available_kinds(box_only) == ("box", "point", "scribble") and available_kinds(point_only) == ("point",)
    assert available_kinds(disc()[0]) == ("box", "point", "mask", "scribble")
    for kind in ("mask", "scribble"):
        with pytest.raises(KeyError):
            exact_prompt(point_only, WINDOW, kind, 16, np.random.default_rng(0))


def test_an_exact_scribble_is_a_row_of_clicks_on_the_region() -> None:
    region, mask = disc()
    prompt = exact_prompt(region, WINDOW, "scribble", 16, np.random.default_rng(0))
    assert prompt.points.shape == (STROKE_POINTS, 2) and prompt.points.dtype == np.float32
    assert prompt.box is None and prompt.mask is None and prompt.labels.tolist() == [1] * STROKE_POINTS
    assert all(mask[pixel(point)] for point in prompt.points)
    again = exact_prompt(region, WINDOW, "scribble", 16, np.random.default_rng(0))
    other = exact_prompt(region, WINDOW, "scribble", 16, np.random.default_rng(1))
    assert np.array_equal(prompt.points, again.points) and not np.array_equal(prompt.points, other.points)
    box_only = Region(0, "a", bbox=[10, 20, 40, 6])
    points = exact_prompt(box_only, WINDOW, "scribble", 16, np.random.default_rng(0)).points * 80
    assert (points[:, 1] == 33).all() and points[0, 0] < 19 and points[-1, 0] > 41  # the window begins 10 rows above


def test_stack_pads() -> None:
    a = RegionPrompt(points=np.array([[0.1, 0.2]], np.float32), labels=np.array([1]))
    b = RegionPrompt(box=np.array([0, 0, 1, 1], np.float32), mask=np.ones((4, 4), np.float32))
    out = stack([[a, b], []], grid=4, regions=3, points=2)
    assert out["point_labels"][0, 0].tolist() == [1, -1] and (out["point_labels"][1] == -1).all()
    assert out["box_valid"].tolist() == [[False, True, False], [False] * 3]
    assert out["masks"].shape == (2, 3, 4, 4) and out["masks"].sum() == 16
