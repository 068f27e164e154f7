"""Facts of images and regions: places of the window, sides of the patient, what is shown and what is known to be absent."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpclip.data.loading.facts import image_facts, region_facts, seen_regions
from medpclip.data.loading.geometry import Window
from medpclip.data.schema import Region, Sample, encode_mask

WHOLE = Window.whole(200, 100)


def make(*regions: Region, **more: Any) -> Sample:
    return Sample("k", "s", "train", "g", "CT", 200, 100, regions=list(regions), **more)


def test_places_are_those_of_the_window_that_is_seen() -> None:
    region = Region(0, "rib", bbox=[10, 10, 30, 20])
    sample = make(region)
    whole = region_facts(region, sample, WHOLE)
    assert whole["place"] == ("upper left", "upper", "left") and whole["modality"] == ("CT",)
    # Seen in a window to its left, it lies in the middle, and large.
    close = region_facts(region, sample, Window(0, 0, 50))
    assert close["place"] == ("centre",) and close["size"] == ("large",)
    mirrored = region_facts(region, sample, Window(0, -50, 200, flip=True))
    assert mirrored["place"] == ("upper right", "upper", "right")


@given(
    st.tuples(st.floats(0, 150), st.floats(0, 70), st.floats(1, 50), st.floats(1, 30)),
    st.tuples(st.integers(-60, 100), st.integers(-60, 60), st.integers(40, 260)),
    st.sampled_from([0.0, 10.0, -35.0]),
    st.booleans(),
)
def test_with_and_without_what_the_image_shows_facts_agree(
    box: tuple[float, ...], corner: tuple[int, int, int], angle: float, flip: bool
) -> None:
    region = Region(3, "rib", bbox=list(box))
    sample, window = make(region), Window(*corner, angle, flip)
    seen = seen_regions(sample, window)
    assert region_facts(region, sample, window) == region_facts(region, sample, window, seen)
    np.testing.assert_allclose(seen.boxes[3], window.unit_box(list(box)), atol=1e-4)
    x, y, w, h = box
    corners = window.unit_points(np.array([[x, y], [x + w, y], [x, y + h], [x + w, y + h]]))
    given_box = [*corners.min(0), *corners.max(0)]
    np.testing.assert_allclose(seen_regions(sample, window, [given_box]).boxes[3], seen.boxes[3], atol=1e-4)


@pytest.mark.parametrize(
    ("side", "expected"),
    [(90, "large"), (70, None), (50, "middle-sized"), (25, "middle-sized"), (22, None), (19, "small")],
)
def test_sizes_near_a_limit_are_not_stated(side: float, expected: str | None) -> None:
    region = Region(0, "rib", bbox=[0, 0, side, side])
    assert region_facts(region, make(region), WHOLE).get("size") == (None if expected is None else (expected,))


RIGHT_OF_PICTURE = Region(0, "kidney", bbox=[140, 10, 40, 20])
LEFT_OF_PICTURE = Region(0, "kidney", bbox=[20, 10, 40, 20])


@pytest.mark.parametrize(
    ("laterality", "midline", "on_left", "on_right"),
    [
        ("radiological", True, "right", "left"),
        ("mirrored", True, "left", "right"),
        ("none", True, None, None),
        ("radiological", False, None, None),
        ("radiological", None, None, None),
        (None, True, None, None),
        ("radiological", 1, None, None),
    ],
)
def test_the_patients_side_needs_laterality_and_midline(
    laterality: str | None, midline: Any, on_left: str | None, on_right: str | None
) -> None:
    extra = {k: v for k, v in {"laterality": laterality, "midline": midline}.items() if v is not None}
    for region, expected in ((LEFT_OF_PICTURE, on_left), (RIGHT_OF_PICTURE, on_right)):
        facts = region_facts(region, make(region, extra=extra), WHOLE)
        assert facts.get("side") == (None if expected is None else (expected,))


BOTH = {"laterality": "radiological", "midline": True}


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([0, 0, 100, 50], "right"),  # up to the midline
        ([0, 0, 103, 50], "right"),  # a little over it
        ([0, 0, 110, 50], None),  # over it
        ([70, 0, 30, 50], None),  # beside it, but close
        ([80, 0, 40, 50], None),
        ([0, 0, 200, 100], None),
        ([97, 0, 100, 50], "left"),
    ],
)
def test_only_what_lies_clearly_in_one_half_has_a_side(bbox: list[float], expected: str | None) -> None:
    region = Region(0, "rib", bbox=bbox)
    assert region_facts(region, make(region, extra=BOTH), WHOLE).get("side") == (expected and (expected,))


def test_the_side_is_the_sources_whatever_the_window() -> None:
    sample = make(RIGHT_OF_PICTURE, extra=BOTH)
    for window in (WHOLE, Window(130, 0, 60), Window(150, -20, 100, 20.0), Window(0, -50, 200, flip=True)):
        assert region_facts(RIGHT_OF_PICTURE, sample, window)["side"] == ("left",)
    assert region_facts(RIGHT_OF_PICTURE, sample, Window(130, 0, 60))["place"][-1] != "right"


def test_a_stated_side_goes_before_geometry_and_needs_none() -> None:
    region = Region(0, "kidney", bbox=[140, 10, 40, 20], attributes={"side": "right"})
    assert region_facts(region, make(region, extra=BOTH), WHOLE)["side"] == ("right",)
    assert region_facts(region, make(region), WHOLE)["side"] == ("right",)
    odd = Region(0, "kidney", bbox=[140, 10, 40, 20], attributes={"side": 1})
    assert "side" not in region_facts(odd, make(odd), WHOLE)


def test_points_have_place_and_side_but_no_size() -> None:
    region = Region(0, "kidney", points=[[150, 90], [160, 95]])
    facts = region_facts(region, make(region, extra=BOTH), WHOLE)
    assert facts["side"] == ("left",) and facts["place"] == ("lower right", "lower", "right") and "size" not in facts


def number(regions: list[Region], which: int = 0, window: Window = WHOLE, **more: Any) -> tuple[Any, Any]:
    sample = make(*regions, **({"annotated_terms": ["rib"]} | more))
    facts = region_facts(sample.regions[which], sample, window, seen_regions(sample, window))
    return facts.get("number", (None,))[0], facts.get("rank", (None,))[0]


def ribs(*widths: float, **more: Any) -> list[Region]:
    return [Region(i, "rib", bbox=[60.0 * i, 10, w, 10], **more) for i, w in enumerate(widths)]


def test_numbers_are_known_where_a_term_is_annotated_exhaustively() -> None:
    assert number(ribs(30)) == ("only one", None)
    assert number(ribs(30, 30)) == ("one of two", None)
    assert number(ribs(30, 30, 30)) == ("one of several", None)
    assert number(ribs(30, 30), annotated_terms=["lung"]) == (None, None)
    assert number([*ribs(30), Region(7, "lung", bbox=[0, 0, 9, 9])]) == ("only one", None)
    crowd = Region(7, "rib", bbox=[100, 0, 9, 9], iscrowd=1)
    assert number([*ribs(30), crowd]) == (None, None)
    mask = np.zeros((100, 200), bool)
    mask[10:20, :10] = mask[10:20, 20:30] = True  # two ribs, maybe, in the one mask of the class
    assert number(ribs(30, segmentation=encode_mask(mask))) == (None, None)


def test_numbers_are_those_of_the_window() -> None:
    assert number(ribs(30, 30), window=Window(0, 0, 50)) == ("only one", None)  # the other is wholly outside
    assert number(ribs(30, 30), window=Window(0, 0, 75)) == (None, None)  # cut by the edge
    assert number(ribs(30, 30), window=Window(0, -30, 100)) == ("one of two", None)


def test_ranks() -> None:
    assert [number(ribs(10, 20, 40), i)[1] for i in range(3)] == ["smallest", "between", "largest"]
    assert [number(ribs(38, 20, 40), i)[1] for i in range(3)] == [None, "smallest", None]
    assert [number(ribs(20, 20), i)[1] for i in range(2)] == [None, None]
    assert number(ribs(10, 40), annotated_terms=[])[1] is None


def test_facts_of_an_image() -> None:
    labels = {"finding": ["effusion", "cardiomegaly"], "view": "PA", "none": [], "grade": 2}
    sample = make(anatomy="chest", labels=labels, captions=["one", "two"])
    facts = image_facts(sample)
    assert facts["label.finding"] == ("effusion", "cardiomegaly") and facts["label.none"] == ()
    assert facts["label.view"] == ("PA",) and facts["label.grade"] == ("2",)
    assert facts["anatomy"] == ("chest",) and facts["caption"] == ("one", "two")
    assert "anatomy" not in image_facts(make())


def test_what_an_image_shows_and_does_not() -> None:
    near, far = Region(0, "rib", bbox=[0, 0, 20, 20]), Region(1, "polyp", bbox=[150, 50, 40, 40])
    sample = make(near, far, annotated_terms=["rib", "polyp", "lung"])
    everything = image_facts(sample)
    assert everything["present"] == ("polyp", "rib") and everything["absent"] == ("lung",)
    left = image_facts(sample, seen_regions(sample, Window(0, 0, 100)))
    assert left["present"] == ("rib",) and left["absent"] == ("lung", "polyp")
    cut = image_facts(sample, seen_regions(sample, Window(60, 0, 100)))
    assert cut["present"] == () and cut["absent"] == ("lung", "rib")  # of the polyp a quarter is seen: unknown
    assert image_facts(make(near))["absent"] == ()
