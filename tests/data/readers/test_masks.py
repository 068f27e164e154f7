"""Masks as regions: run lengths of a part equal those of the whole, no number is missed, components are a flood fill's."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.readers import RawSample
from medpclip.data.readers.masks import (
    ComponentOptions,
    add_label_map,
    crop_components,
    each_value,
    encode_part,
    whole_numbers,
)
from medpclip.data.schema import Region, encode_mask


@settings(deadline=None)  # the first example imports a library
@given(st.data())
def test_run_lengths_of_a_part_equal_those_of_the_whole(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(0, height - top)), data.draw(st.integers(0, width - left))
    pixels = data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    part = np.array(pixels, bool).reshape(rows, columns)
    whole = np.zeros((height, width), bool)
    whole[top : top + rows, left : left + columns] = part
    assert encode_part(part, (top, left), (height, width)) == encode_mask(whole)


@settings(deadline=None)  # the first example imports a library
@given(
    st.lists(st.sampled_from([0, 1, 2, 255]) | st.integers(0, 60), min_size=30, max_size=30),
    st.sampled_from(["uint8", ">u2", "int32", "int64"]),
    st.sampled_from([(1, 0), (70, 3), (10**7, -5)]),
)
def test_each_value_equals_brute_force(numbers: list[int], dtype: str, line: tuple[int, int]) -> None:
    values = np.array(numbers, np.int64).reshape(5, 6)
    values = values * line[0] + line[1] if dtype == "int64" else values
    stored = values.astype(dtype)
    found: dict[int, np.ndarray] = {}
    for value, (top, left), part in each_value(stored, {1}):
        found[value] = np.zeros(stored.shape, bool)
        found[value][top : top + part.shape[0], left : left + part.shape[1]] = part
        assert part.any(axis=0)[[0, -1]].all() and part.any(axis=1)[[0, -1]].all()
    assert list(found) == [value for value in np.unique(values).tolist() if value != 1]
    assert all(np.array_equal(mask, values == value) for value, mask in found.items())


@pytest.mark.parametrize(("step", "dtype"), [(1, "uint8"), (300, "uint16"), (10**8, "int64")])
def test_many_values_equal_brute_force(step: int, dtype: str) -> None:
    numbers = (np.arange(80).repeat(3).reshape(12, 20) * step - (7 if dtype == "int64" else 0)).astype(dtype)
    found = {value: (corner, part) for value, corner, part in each_value(numbers, {5 * step})}
    assert list(found) == [value for value in np.unique(numbers).tolist() if value != 5 * step]
    for value, ((top, left), part) in found.items():
        assert np.array_equal(np.argwhere(part) + np.array([top, left]), np.argwhere(numbers == value))


def test_label_map_with_components() -> None:
    numbers = np.zeros((30, 40), np.int16)
    numbers[3:6, 4:9], numbers[20:25, 30:33], numbers[8, 8] = 5, 5, 5
    sample = RawSample()
    options = ComponentOptions(components=True, min_pixels=2)
    add_label_map(sample, numbers, {5: "cyst"}, (), None, "m.png", options)
    assert [(r.label, r.key) for r in sample.regions] == [
        ("cyst", "value 5, component 0"),
        ("cyst", "value 5, component 1"),
    ]
    first, second = (Region(1, "x", segmentation=r.rle).mask() for r in sample.regions)
    assert first is not None and second is not None
    assert np.array_equal(np.argwhere(first | second), np.argwhere((numbers == 5) & (np.arange(30)[:, None] != 8)))
    assert [(f.key, f.regions) for f in sample.faults] == [("value 5", 1)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 2.0], [0, 2]), ([0.5], None), ([float("nan")], None), ([True, False], [1, 0]), (["a"], None)],
)
def test_whole_numbers(values: list[Any], expected: list[int] | None) -> None:
    found = whole_numbers(np.array(values))
    assert found is None if expected is None else found is not None and found.tolist() == expected


@settings(deadline=None)  # the first example imports a library
@given(st.lists(st.booleans(), min_size=48, max_size=48), st.sampled_from([4, 8]), st.integers(1, 4))
def test_components_equal_a_flood_fill(pixels: list[bool], connectivity: int, min_pixels: int) -> None:
    mask = np.array(pixels).reshape(6, 8)
    expected = flood_fill(mask, connectivity)
    kept, specks = crop_components(mask, connectivity, min_pixels)
    found = {frozenset(map(tuple, (np.argwhere(part) + np.array(corner)).tolist())) for corner, part in kept}
    assert found == {part for part in expected if len(part) >= min_pixels}
    assert len(found) == len(kept)
    assert specks == sum(len(part) < min_pixels for part in expected)


def flood_fill(mask: np.ndarray, connectivity: int) -> set[frozenset[tuple[int, int]]]:
    steps = [
        (y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if abs(y) + abs(x) in ((1,) if connectivity == 4 else (1, 2))
    ]
    left, out = {(int(y), int(x)) for y, x in np.argwhere(mask)}, set()
    while left:
        queue, part = [left.pop()], set()
        while queue:
            y, x = queue.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            queue += near
        out.add(frozenset(part))
    return out
