"""Prompts that are drawn lie where the region is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import (
    PromptSampling,
    RegionPrompt,
    available_kinds,
    exact_prompt,
    sample_prompt,
    stack,
    visible,
)
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


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_clicks_lie_on_the_region_and_negative_ones_off_it(seed: int) -> None:
    region, mask = disc()
    sampling = PromptSampling(kinds={"point": 1.0}, combine=0.0, max_points=4, negative=1.0)
    prompt = sample_prompt(region, WINDOW, 16, sampling, np.random.default_rng(seed))
    assert 1 <= (prompt.labels == 1).sum() <= 4 and prompt.box is None and prompt.mask is None
    for point, label in zip(prompt.points, prompt.labels, strict=True):
        assert mask[pixel(point)] == bool(label)


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


def test_jitter_has_the_stated_size_and_never_inverts_a_box() -> None:
    region, _ = disc()
    sampling = PromptSampling(kinds={"box": 1.0}, combine=0.0, box_jitter=0.1)
    rng = np.random.default_rng(0)
    boxes = np.array([sample_prompt(region, WINDOW, 16, sampling, rng).box for _ in range(2000)])
    side = boxes[0, 2:] - boxes[0, :2]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert np.allclose(boxes.std(0) / (16 / 80), 0.1, rtol=0.15), side


def test_a_region_is_only_prompted_by_what_it_has() -> None:
    box_only, point_only = Region(0, "a", bbox=[1, 2, 3, 4]), Region(1, "a", points=[[5, 6]])
    assert available_kinds(box_only) == ("box", "point") and available_kinds(point_only) == ("point",)
    with pytest.raises(KeyError):
        exact_prompt(point_only, WINDOW, "mask", 16, np.random.default_rng(0))
    for seed in range(20):
        prompt = sample_prompt(point_only, WINDOW, 16, PromptSampling(kinds={"mask": 1.0}), np.random.default_rng(seed))
        assert prompt.box is None and prompt.mask is None and (prompt.labels == 1).all()


def test_kinds_come_as_often_as_configured() -> None:
    region, _ = disc()
    sampling = PromptSampling(kinds={"box": 3.0, "mask": 1.0}, combine=0.0)
    rng = np.random.default_rng(0)
    drawn = [sample_prompt(region, WINDOW, 16, sampling, rng) for _ in range(2000)]
    assert np.isclose(np.mean([p.box is not None for p in drawn]), 0.75, atol=0.03)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(-20, 30), st.integers(-20, 30), st.integers(30, 70))
def test_a_region_half_in_the_window_is_only_prompted_where_it_is_seen(
    seed: int, left: int, top: int, side: int
) -> None:
    region, mask = disc()
    window = Window(left, top, side)
    seen = int(window.cut(mask).sum())
    assert visible(region, window) == (2 * seen >= mask.sum())
    if visible(region, window):
        sampling = PromptSampling(kinds={"point": 1.0, "mask": 1.0}, combine=1.0, max_points=4)
        prompt = sample_prompt(region, window, 16, sampling, np.random.default_rng(seed))
        assert ((prompt.points >= 0) & (prompt.points <= 1)).all()
        assert prompt.mask is None or prompt.mask.any()


def test_the_second_kind_is_drawn_from_the_configured_ones_too() -> None:
    region, _ = disc()
    sampling = PromptSampling(kinds={"box": 1.0}, combine=1.0)
    for seed in range(50):
        prompt = sample_prompt(region, WINDOW, 16, sampling, np.random.default_rng(seed))
        assert prompt.box is not None and prompt.mask is None and not len(prompt.points)


def test_stack_pads() -> None:
    a = RegionPrompt(points=np.array([[0.1, 0.2]], np.float32), labels=np.array([1]))
    b = RegionPrompt(box=np.array([0, 0, 1, 1], np.float32), mask=np.ones((4, 4), np.float32))
    out = stack([[a, b], []], grid=4, regions=3, points=2)
    assert out["point_labels"][0, 0].tolist() == [1, -1] and (out["point_labels"][1] == -1).all()
    assert out["box_valid"].tolist() == [[False, True, False], [False] * 3]
    assert out["masks"].shape == (2, 3, 4, 4) and out["masks"].sum() == 16
