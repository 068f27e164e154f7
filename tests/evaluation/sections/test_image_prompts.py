"""Boxes that no annotation asked for lie where they should."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.loading.geometry import Window
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.evaluation.sections.image_prompts import SMALL_SIDE, image_prompt


def sample_of(width: int, height: int, regions: list[Region] | None = None, key: str = "k") -> Sample:
    return Sample(key, "s", "test", "g", "CT", width, height, regions=regions or [])


def pixels_of(sample: Sample, kind: str, seed: int = 0) -> tuple[float, float, float, float]:
    """x1 y1 x2 y2 in pixels of the image."""
    prompt = image_prompt(sample, kind, seed)  # type: ignore[arg-type]
    assert prompt is not None and prompt.box is not None and prompt.mask is None and not len(prompt.points)
    window = Window.whole(sample.width, sample.height)
    corners = prompt.box.astype(float) * window.side + np.tile([window.left, window.top], 2)
    return tuple(corners.tolist())


def test_a_full_box_is_around_the_image_and_not_its_padding() -> None:
    assert pixels_of(sample_of(120, 80), "full_box") == pytest.approx((0, 0, 120, 80), abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 5))
def test_a_small_box_is_inside_and_of_its_size(width: int, height: int, seed: int) -> None:
    x1, y1, x2, y2 = pixels_of(sample_of(width, height), "small_box", seed)
    side = max(1, round(SMALL_SIDE * max(width, height)))
    assert x2 - x1 == pytest.approx(min(side, width), abs=1e-3) and y2 - y1 == pytest.approx(
        min(side, height), abs=1e-3
    )
    assert x1 >= -1e-3 and y1 >= -1e-3 and x2 <= width + 1e-3 and y2 <= height + 1e-3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_irrelevant_box_meets_no_region_and_is_none_only_where_there_is_no_place(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(4, 40)), data.draw(st.integers(4, 40))
    taken = np.zeros((height, width), bool)
    regions = []
    for number in range(data.draw(st.integers(0, 3))):
        x, y = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
        w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
        mask = np.zeros((height, width), bool)
        mask[y : y + h, x : x + w : 2] = True
        if data.draw(st.booleans()):
            regions.append(Region(number, "r", [float(x), float(y), float(w), float(h)], encode_mask(mask)))
            taken |= mask
        else:
            regions.append(Region(number, "r", [x + 0.3, y + 0.3, w - 0.5, h - 0.5]))
            taken[y : y + h, x : x + w] = True
    sample = sample_of(width, height, regions)
    side = max(1, round(SMALL_SIDE * max(width, height)))
    w, h = min(side, width), min(side, height)
    places = [
        (x, y)
        for x in range(width - w + 1)
        for y in range(height - h + 1)
        if not taken[y : y + h, x : x + w].any()
    ]  # fmt: skip
    if not places:
        assert image_prompt(sample, "irrelevant_box", 0) is None
    else:
        x1, y1, x2, y2 = pixels_of(sample, "irrelevant_box")
        assert (round(x1), round(y1)) in places and (round(x2 - x1), round(y2 - y1)) == (w, h)


def test_a_point_is_avoided_and_places_are_drawn_evenly_by_seed_and_image() -> None:
    point = Region(0, "p", points=[[3.5, 0.5]])
    counts = Counter(round(pixels_of(sample_of(10, 1, [point]), "irrelevant_box", seed)[0]) for seed in range(400))
    assert 3 not in counts and set(counts) <= {0, 1, 4, 5, 6, 7, 8} and min(counts.values()) > 30
    one, other = (pixels_of(sample_of(300, 200, key=key), "small_box") for key in ("a", "b"))
    assert one != other and one == pixels_of(sample_of(300, 200, key="a"), "small_box")
    assert one != pixels_of(sample_of(300, 200, key="a"), "small_box", seed=1)
