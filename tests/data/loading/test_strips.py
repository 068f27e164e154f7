"""Masks as strips: the same areas, coverage and pixels as of the drawn masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.loading.strips import Strips, strips_of_masks, strips_of_runs
from medpclip.data.schema import encode_mask

FIELDS = ("owner", "x", "top", "bottom")


def draw_masks(seed: int, count: int, largest: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        mask = rng.random(rng.integers(1, largest, 2)) < rng.random() ** 2
        mask[rng.integers(mask.shape[0]), rng.integers(mask.shape[1])] = True
        masks.append(np.ones_like(mask) if rng.random() < 0.2 else mask)
    return masks


def strips_of(masks: list[np.ndarray]) -> Strips:
    sizes = np.array([mask.shape for mask in masks])
    return strips_of_runs([encode_mask(mask)["counts"] for mask in masks], *sizes.T)


def drawn(strips: Strips, mask: int, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, int)
    for i in np.flatnonzero(strips.owner == mask):
        out[strips.top[i] : strips.bottom[i], strips.x[i]] += 1
    return out


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_run_lengths_and_drawn_masks_give_the_same_strips(seed: int, count: int) -> None:
    masks = draw_masks(seed, count)
    strips, expected = strips_of(masks), strips_of_masks(masks)
    assert all(np.array_equal(getattr(strips, name), getattr(expected, name)) for name in FIELDS)
    assert all(np.array_equal(drawn(strips, i, mask.shape), mask) for i, mask in enumerate(masks))
    assert strips.areas().tolist() == [mask.sum() for mask in masks]
    extents = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] for ys, xs in map(np.nonzero, masks)]
    assert strips.extents().tolist() == extents


def brute_coverage(mask: np.ndarray, grid: int) -> np.ndarray:
    """Area-resized by its definition: every pixel's overlap with every cell."""
    side = len(mask)
    edges, pixels = np.arange(grid + 1) * side / grid, np.arange(side)
    shares = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares = np.maximum(shares, 0) * grid / side
    return shares @ mask @ shares.T


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_coverage_is_the_area_resized_mask(seed: int, grid: int, sides: list[int]) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random((side, side)) < rng.random() for side in sides]
    got = strips_of_masks(masks).coverage(np.array(sides), grid)
    assert got.dtype == np.float32
    for mask, coverage in zip(masks, got, strict=True):
        assert np.abs(coverage - brute_coverage(mask, grid)).max() < 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(-20, 30), st.integers(-20, 30), st.integers(5, 60))
def test_clipping_is_cutting(seed: int, left: int, top: int, side: int) -> None:
    masks = draw_masks(seed, 3)
    clipped = strips_of(masks).clip(*(np.full(3, value) for value in (left, top, side)))
    for i, mask in enumerate(masks):
        expected = np.zeros((side, side), int)
        for y, x in np.argwhere(mask):
            if 0 <= y - top < side and 0 <= x - left < side:
                expected[y - top, x - left] = 1
        assert np.array_equal(drawn(clipped, i, (side, side)), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_picks_are_on_the_mask_and_contains_is_looking(seed: int) -> None:
    masks = draw_masks(seed, 4)
    strips = strips_of(masks)
    owners = np.random.default_rng(seed).integers(4, size=50)
    picked = strips.pick(owners, np.random.default_rng(seed + 1).random(50))
    assert all(masks[o][y, x] for o, (x, y) in zip(owners, picked, strict=True))
    for i, mask in enumerate(masks):
        y, x = np.mgrid[: mask.shape[0] + 3, : mask.shape[1] + 3]
        assert np.array_equal(strips.contains(np.array(i), x, y), np.pad(mask, ((0, 3), (0, 3))))


def test_every_pixel_is_picked_by_its_own_part_of_the_draws() -> None:
    (mask,) = draw_masks(3, 1)
    area = int(mask.sum())
    picked = strips_of([mask]).pick(np.zeros(area, int), (np.arange(area) + 0.5) / area)
    assert len({tuple(p) for p in picked.tolist()}) == area
    assert strips_of([mask]).pick(np.zeros(1, int), np.array([1 - 1e-17])).tolist() == [picked[-1].tolist()]


def test_no_masks_and_selected_ones() -> None:
    none = strips_of_runs([], np.zeros(0, int), np.zeros(0, int))
    assert none.coverage(np.zeros(0, int), 4).shape == (0, 4, 4) and none.areas().shape == (0,)
    masks = draw_masks(5, 4)
    some = strips_of(masks).select(np.array([1, 3]))
    assert some.areas().tolist() == [masks[1].sum(), masks[3].sum()]


@pytest.mark.parametrize("broken", ["", "P", "~~~", "9e", "0é4", None, 7, "1" * 9, "ooooooooo1"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_string_among_others_is_said(broken: object, place: int) -> None:
    counts: list[object] = [encode_mask(mask)["counts"] for mask in draw_masks(0, 2, 4)]
    sizes = [mask.shape for mask in draw_masks(0, 2, 4)]
    counts.insert(place, broken)
    sizes.insert(place, (4, 4))
    with pytest.raises(ValueError, match="mask|run lengths"):
        strips_of_runs(counts, *np.array(sizes).T)  # type: ignore[arg-type]
