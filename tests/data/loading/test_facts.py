"""Facts of images and regions: places of the window, sides of the patient, what is shown and what is known to be absent."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.loading.facts import Facts, image_facts, look, region_facts
from medpclip.data.loading.geometry import Window, Windows
from medpclip.data.loading.regions import RegionTable
from medpclip.data.schema import Region, Sample, encode_mask

WHOLE = Window.whole(200, 100)


def make(*regions: Region, **more: Any) -> Sample:
    return Sample("k", "s", "train", "g", "CT", 200, 100, regions=list(regions), **more)


def known(samples: list[Sample], windows: list[Window]) -> tuple[list[Facts], list[list[Facts]]]:
    """Facts of a batch's images, and of all regions of each."""
    facts = [sample.to_json() for sample in samples]
    table = RegionTable.read(facts, windows)
    shown = look(table)
    regions: list[list[Facts]] = [[] for _ in samples]
    for image, found in zip(table.image, region_facts(facts, table, shown, np.arange(len(table.image))), strict=True):
        regions[image].append(found)
    return image_facts(facts, table, shown), regions


def of_region(region: Region, window: Window = WHOLE, **more: Any) -> Facts:
    return known([make(region, **more)], [window])[1][0][0]


def of_image(sample: Sample, window: Window = WHOLE) -> Facts:
    return known([sample], [window])[0][0]


def test_places_are_those_of_the_window_that_is_seen() -> None:
    region = Region(0, "rib", bbox=[10, 10, 30, 20])
    whole = of_region(region)
    assert whole["place"] == ("upper left", "upper", "left") and whole["modality"] == ("CT",)
    # Seen in a window to its left, it lies in the middle, and large.
    close = of_region(region, Window(0, 0, 50))
    assert close["place"] == ("centre",) and close["size"] == ("large",)
    mirrored = of_region(region, Window(0, -50, 200, flip=True))
    assert mirrored["place"] == ("upper right", "upper", "right")


def unit_box(region: Region, window: Window) -> list[float] | None:
    """x1 y1 x2 y2 in the window, unclipped, of a region's box or else its points."""
    if region.bbox is not None:
        x, y, w, h = region.bbox
    elif region.points:
        (x, y), (right, bottom) = np.min(region.points, 0), np.max(region.points, 0)
        w, h = right - x, bottom - y
    else:
        return None
    x1, y1, x2, y2 = map(float, Windows.of([window]).unit_boxes(np.array([[x, y, w, h]], float), clip=False)[0])
    return [1 - x2, y1, 1 - x1, y2] if window.flip else [x1, y1, x2, y2]


def third(position: float, low: str, high: str) -> str:
    return low if position < 0.4 else high if position > 0.6 else ""


def one_by_one(sample: Sample, window: Window) -> tuple[set[str], set[str], list[Facts]]:
    """Terms present, terms absent, and each region's place, size, number and rank: found region by region."""
    shown: dict[str, list[tuple[float, int]]] = {}
    unsure, boxes = set(), {}
    for region in sample.regions:
        box = unit_box(region, window)
        if box is None:
            unsure.add(region.category)
            continue
        x1, y1, x2, y2 = boxes[region.id] = [min(max(v, 0.0), 1.0) for v in box]
        area = (box[2] - box[0]) * (box[3] - box[1])
        share = (x2 - x1) * (y2 - y1) / area if area > 0 else float([x1, y1] == box[:2])
        if region.iscrowd or 0 < share < 0.95:
            unsure.add(region.category)
        if share >= 0.5:
            shown.setdefault(region.category, []).append((area, region.id))
    found: list[Facts] = []
    for region in sample.regions:
        facts: dict[str, tuple[str, ...]] = {"term": (region.category,), "modality": ("CT",)}
        if region.id in boxes:
            x1, y1, x2, y2 = boxes[region.id]
            row, column = third((y1 + y2) / 2, "upper", "lower"), third((x1 + x2) / 2, "left", "right")
            facts["place"] = (f"{row} {column}", row, column) if row and column else (row or column or "centre",)
            size = (x2 - x1) * (y2 - y1)
            words = [(0, 0.01, "small"), (0.015, 0.1, "middle-sized"), (0.15, 1, "large")]
            stated = [word for low, high, word in words if low <= size <= high and region.bbox is not None]
            facts |= {"size": (stated[0],)} if stated else {}
        peers = sorted(shown.get(region.category, []))
        if peers and region.category in sample.annotated_terms and region.category not in unsure:
            count = ["only one", "one of two", "one of several"][min(len(peers), 3) - 1]
            if len(peers) > 1 or region.segmentation is None:
                facts["number"] = (count,)
            areas = [area for area, _ in peers]
            own = next((area for area, number in peers if number == region.id), 0.0)
            if len(peers) > 1 and areas[0] > 0:
                if own == areas[-1]:
                    facts |= {"rank": ("largest",)} if own >= 1.3 * areas[-2] else {}
                elif own == areas[0]:
                    facts |= {"rank": ("smallest",)} if areas[1] >= 1.3 * own else {}
                elif areas[-1] >= 1.3 * own >= 1.3 * 1.3 * areas[0]:
                    facts["rank"] = ("between",)
        found.append(facts)
    return set(shown), set(sample.annotated_terms) - set(shown) - unsure, found


def random_sample(rng: np.random.Generator) -> Sample:
    regions = []
    for number in range(int(rng.integers(12))):
        w, h = rng.integers(1, 60, 2).tolist()
        x, y = int(rng.integers(0, 200 - w)), int(rng.integers(0, 100 - h))
        kind = rng.random()
        region = Region(number, str(rng.choice(["rib", "lung", "polyp"])), iscrowd=int(rng.random() < 0.1))
        if kind < 0.7:
            region.bbox = [x, y, w, h]
        if 0.6 < kind < 0.8:
            mask = np.zeros((100, 200), bool)
            mask[y : y + h, x : x + w] = True
            region.segmentation = encode_mask(mask)
        if kind >= 0.8:
            region.points = rng.integers(0, 100, (int(rng.integers(1, 4)), 2)).tolist()
        regions.append(region)
    return make(*regions, annotated_terms=[term for term in ("rib", "lung", "nodule") if rng.random() < 0.7])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_batch_is_known_as_if_region_by_region(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [random_sample(rng) for _ in range(3)]
    windows = [
        Window(left, top, int(rng.integers(40, 260)), angle, bool(rng.random() < 0.5))
        for angle, (left, top) in zip(
            rng.choice([0.0, 0.0, 10.0, -35.0], 3).tolist(), rng.integers(-60, 100, (3, 2)).tolist(), strict=True
        )
    ]
    images, regions = known(samples, windows)
    for sample, window, image, found in zip(samples, windows, images, regions, strict=True):
        present, absent, expected = one_by_one(sample, window)
        assert (set(image["present"]), set(image["absent"])) == (present, absent)
        assert found == expected


@pytest.mark.parametrize(
    ("side", "expected"),
    [(90, "large"), (70, None), (50, "middle-sized"), (25, "middle-sized"), (22, None), (19, "small")],
)
def test_sizes_near_a_limit_are_not_stated(side: float, expected: str | None) -> None:
    region = Region(0, "rib", bbox=[0, 0, side, side])
    assert of_region(region).get("size") == (None if expected is None else (expected,))


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
        facts = of_region(region, extra=extra)
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
    assert of_region(region, extra=BOTH).get("side") == (expected and (expected,))


def test_the_side_is_the_sources_whatever_the_window() -> None:
    for window in (WHOLE, Window(130, 0, 60), Window(150, -20, 100, 20.0), Window(0, -50, 200, flip=True)):
        assert of_region(RIGHT_OF_PICTURE, window, extra=BOTH)["side"] == ("left",)
    assert of_region(RIGHT_OF_PICTURE, Window(130, 0, 60), extra=BOTH)["place"][-1] != "right"


def test_a_stated_side_goes_before_geometry_and_needs_none() -> None:
    region = Region(0, "kidney", bbox=[140, 10, 40, 20], attributes={"side": "right"})
    assert of_region(region, extra=BOTH)["side"] == ("right",)
    assert of_region(region)["side"] == ("right",)
    odd = Region(0, "kidney", bbox=[140, 10, 40, 20], attributes={"side": 1})
    assert "side" not in of_region(odd)


def test_points_have_place_and_side_but_no_size() -> None:
    region = Region(0, "kidney", points=[[150, 90], [160, 95]])
    facts = of_region(region, extra=BOTH)
    assert facts["side"] == ("left",) and facts["place"] == ("lower right", "lower", "right") and "size" not in facts


def number(regions: list[Region], which: int = 0, window: Window = WHOLE, **more: Any) -> tuple[Any, Any]:
    sample = make(*regions, **({"annotated_terms": ["rib"]} | more))
    facts = known([sample], [window])[1][0][which]
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
    facts = of_image(sample)
    assert facts["label.finding"] == ("effusion", "cardiomegaly") and facts["label.none"] == ()
    assert facts["label.view"] == ("PA",) and facts["label.grade"] == ("2",)
    assert facts["anatomy"] == ("chest",) and facts["caption"] == ("one", "two")
    assert "anatomy" not in of_image(make())


def test_what_an_image_shows_and_does_not() -> None:
    near, far = Region(0, "rib", bbox=[0, 0, 20, 20]), Region(1, "polyp", bbox=[150, 50, 40, 40])
    sample = make(near, far, annotated_terms=["rib", "polyp", "lung"])
    everything = of_image(sample)
    assert everything["present"] == ("polyp", "rib") and everything["absent"] == ("lung",)
    left = of_image(sample, Window(0, 0, 100))
    assert left["present"] == ("rib",) and left["absent"] == ("lung", "polyp")
    cut = of_image(sample, Window(60, 0, 100))
    assert cut["present"] == () and cut["absent"] == ("lung", "rib")  # of the polyp a quarter is seen: unknown
    assert of_image(make(near))["absent"] == ()
