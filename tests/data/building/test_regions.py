"""Raw regions: what is right becomes a region with a tight box, what is wrong a fault with its reason."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from medpclip.data.building.regions import make_region
from medpclip.data.readers import Fault, RawRegion
from medpclip.data.schema import Region, encode_mask, run_lengths

WIDTH, HEIGHT = 20, 10


def make(**geometry: object) -> Region | Fault:
    return make_region(RawRegion("RBC", "a.xml", "object[0]", **geometry), 1, "red blood cell", (WIDTH, HEIGHT), "voc")


def disc() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (x - 8) ** 2 + (y - 5) ** 2 <= 9


def runs(mask: np.ndarray) -> list[int]:
    """Run lengths by brute force: column by column, background first."""
    out, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            out.append(0)
            value = bool(pixel)
        out[-1] += 1
    return out


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([0, 0, WIDTH, HEIGHT], [0, 0, WIDTH, HEIGHT]),
        ([-1, -0.4, 5, 5], [0, 0, 4, 4.6]),
        ([15, 5, 6, 6], [15, 5, 5, 5]),
    ],
)
def test_boxes_are_clipped_by_rounding_at_most(bbox: list, expected: list) -> None:
    region = make(bbox=bbox)
    assert isinstance(region, Region)
    assert region.bbox == pytest.approx(expected)
    assert (region.category, region.source_format) == ("red blood cell", "voc")


@pytest.mark.parametrize(
    ("geometry", "reason"),
    [
        ({"bbox": [-1.1, 0, 5, 5]}, "box reaches outside the image"),
        ({"bbox": [16, 5, 6, 5]}, "box reaches outside the image"),
        ({"bbox": [100, 100, 5, 5]}, "box reaches outside the image"),
        ({"bbox": [19.5, 0, 0, 5]}, "box is degenerate"),
        ({"bbox": [5, 5, -2, 2]}, "box is degenerate"),
        ({"bbox": [math.nan, 0, 5, 5]}, "box is not four finite numbers"),
        ({"bbox": [0, 0, "5", 5]}, "box is not four finite numbers"),
        ({"bbox": {"x": 1}}, "box is not four finite numbers"),
        ({"bbox": 7}, "box is not four finite numbers"),
        ({}, "has neither box, mask nor points"),
        ({"rle": encode_mask(np.zeros((HEIGHT, WIDTH)))}, "mask is empty"),
        ({"rle": encode_mask(np.ones((WIDTH, HEIGHT)))}, "mask is of another size than the image"),
        ({"rle": {"size": [HEIGHT, WIDTH]}}, "mask is not run lengths"),
        ({"rle": "n0"}, "mask is not run lengths"),
        ({"rle": {"size": [HEIGHT, WIDTH], "counts": "n0\n"}}, "run lengths are broken"),
        ({"rle": {"size": [HEIGHT, WIDTH], "counts": "oooooooo"}}, "run lengths are broken"),
        ({"rle": {"size": [HEIGHT, WIDTH], "counts": "o"}}, "run lengths are broken"),
        ({"rle": {"size": [HEIGHT, WIDTH], "counts": 12}}, "mask is not run lengths"),
        ({"rle": {"size": [HEIGHT, WIDTH], "counts": [1, 2]}}, "run lengths are broken"),
        ({"rle": {"size": [HEIGHT, WIDTH], "counts": [300, -100]}}, "run lengths are broken"),
        ({"rle": {"size": [HEIGHT, WIDTH], "counts": [1.5, 198.5]}}, "run lengths are broken"),
        ({"polygons": [[1, 1, 5, 5]]}, "polygon has fewer than three points"),
        ({"polygons": [[1, 1, 5, 5, 1, 5, 3]]}, "polygon has fewer than three points"),
        ({"polygons": [[1, 1, 5, math.nan, 1, 5]]}, "polygon is not a list of numbers"),
        ({"polygons": ["abcdef"]}, "polygon is not a list of numbers"),
        ({"polygons": [[1, 1, 5, 1, 5, 30]]}, "polygon reaches outside the image"),
        ({"polygons": [[1, 1, 5, 5, 1, 5]], "bbox": [1, 1, 0, 0]}, "box is degenerate"),
        ({"points": [[1, 1], [2, "3"]]}, "point is not two finite numbers"),
        ({"points": "here"}, "points are not a list"),
        ({"points": [[WIDTH + 1, 1]]}, "point lies outside the image"),
    ],
)
def test_faults_have_their_reason(geometry: dict, reason: str) -> None:
    fault = make(**geometry)
    assert isinstance(fault, Fault)
    assert (fault.reason, fault.regions, fault.images) == (reason, 1, 0)
    assert (fault.file, fault.key) == ("a.xml", "object[0]")


def test_masks_of_all_forms_agree_and_get_a_tight_box() -> None:
    mask = disc()
    compressed = make(rle=encode_mask(mask))
    plain = make(rle={"size": [HEIGHT, WIDTH], "counts": runs(mask)}, bbox=[0, 0, 9, 9])
    for region in (compressed, plain):
        assert isinstance(region, Region)
        assert np.array_equal(region.mask(), mask)
        assert region.bbox == [5, 2, 7, 7]


def test_polygon_follows_pixel_edges() -> None:
    region = make(polygons=[[2, 3, 7, 3, 7, 8, 2, 8], [12, 1, 15, 1, 15, 2, 12, 2]])
    assert isinstance(region, Region)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3:8, 2:7] = expected[1:2, 12:15] = True
    assert np.array_equal(region.mask(), expected)
    assert region.bbox == [2, 1, 13, 7]


@given(st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH))
def test_run_lengths_equal_brute_force(pixels: list[bool]) -> None:
    mask = np.array(pixels).reshape(HEIGHT, WIDTH)
    if mask.any():
        assert run_lengths(encode_mask(mask)["counts"], mask.size).tolist() == runs(mask)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30))
def test_run_lengths_of_large_masks(values: list[int]) -> None:
    rle = coco_mask.frPyObjects({"size": [sum(values), 1], "counts": values}, sum(values), 1)
    if len(values) > 1:
        assert run_lengths(rle["counts"].decode(), sum(values)).tolist() == values
