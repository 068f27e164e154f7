"""Sample schema 1: round trips, and one line for everything that breaks it."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpclip.data.schema import Region, Sample, encode_mask, region_problem, rle_bytes, run_lengths
from medpclip.errors import MedpclipError

WIDTH, HEIGHT = 40, 30
WORDS = st.text(min_size=1, max_size=8)
KNOWN = {
    "id",
    "category",
    "schema",
    "key",
    "extra",
    *vars(Region(1, "a")),
    *vars(Sample("k", "s", "train", "g", "m", 1, 1)),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=4,
)
EXTRA = st.dictionaries(WORDS.filter(lambda word: word not in KNOWN), JSON, max_size=3)
SCALAR = WORDS | st.integers(-9, 9)


@st.composite
def regions(draw: st.DrawFn, number: int) -> Region:
    x, y = draw(st.integers(0, WIDTH - 2)), draw(st.integers(0, HEIGHT - 2))
    box = [float(x), float(y), float(draw(st.integers(1, WIDTH - x))), float(draw(st.integers(1, HEIGHT - y)))]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + int(box[3]), x : x + int(box[2])] = True
    return Region(
        number,
        draw(WORDS),
        bbox=box,
        segmentation=draw(st.sampled_from([None, encode_mask(mask)])),
        points=draw(st.sampled_from([None, [[x + 0.5, y + 0.5]]])),
        attributes=draw(st.dictionaries(WORDS, SCALAR, max_size=2)),
        extra=draw(EXTRA),
    )


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    return Sample(
        "k",
        draw(WORDS),
        draw(st.sampled_from(["train", "val", "test"])),
        draw(WORDS),
        draw(WORDS),
        WIDTH,
        HEIGHT,
        anatomy=draw(st.none() | WORDS),
        captions=draw(st.lists(WORDS, max_size=2)),
        labels=draw(st.dictionaries(WORDS, SCALAR, max_size=2)),
        regions=[draw(regions(number)) for number in range(draw(st.integers(0, 3)))],
        extra=draw(EXTRA),
    )


@given(samples())
def test_round_trip_keeps_everything_and_unknown_keys(sample: Sample) -> None:
    again = Sample.from_json(json.loads(json.dumps(sample.to_json())), "k", "here")
    assert again == sample


def test_mask_round_trip() -> None:
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5
    assert np.array_equal(Region(1, "a", segmentation=encode_mask(mask)).mask(), mask)


def good() -> dict:
    region = {"id": 1, "category": "cell", "bbox": [1, 2, 3, 4]}
    return {
        "schema": 1,
        "source": "s",
        "split": "train",
        "group": "g",
        "modality": "m",
        "width": WIDTH,
        "height": HEIGHT,
        "regions": [region],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"split": "training"}, "'split' is 'training', expected one of train, val, test"),
        ({"width": 0}, "'width' is 0"),
        ({"width": "40"}, "'width' is '40'"),
        ({"source": None}, "'source' is None"),
        ({"captions": "a caption"}, "'captions'"),
        ({"labels": ["x"]}, "'labels'"),
        ({"regions": {}}, "'regions' is a dict, not a list"),
        ({"regions": [7]}, r"regions\[0\] is a int"),
        ({"regions": [{"id": 1}]}, r"regions\[0\]: key 'category' is missing"),
        ({"regions": [{"id": 1, "category": "a"}]}, "has neither box, mask nor points"),
        ({"regions": [{"id": 1, "category": "a", "bbox": [1, 2, 0, 4]}]}, "degenerate"),
        ({"regions": [{"id": 1, "category": "a", "bbox": "1234"}]}, "not four finite numbers"),
        ({"regions": [{"id": 1, "category": "a", "points": [[1, 99]]}]}, "point lies outside"),
        ({"regions": [{"id": 1, "category": "a", "segmentation": {"size": None, "counts": ""}}]}, "another size"),
        ({"regions": [{"id": 1, "category": "a", "segmentation": [1, 2]}]}, "not run lengths"),
        ({"regions": [{"id": 1, "category": "a", "bbox": [1, 2, 3, 4]}] * 2}, "unique"),
    ],
)
def test_broken_json_is_one_line_that_names_place_and_key(change: dict, message: str) -> None:
    with pytest.raises(MedpclipError, match=message) as caught:
        Sample.from_json(good() | change, "k", "train-000000.tar: k")
    assert str(caught.value).startswith("train-000000.tar: k: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["source", "split", "group", "modality", "width", "height"])
def test_missing_key_is_named(key: str) -> None:
    data = good()
    del data[key]
    with pytest.raises(MedpclipError, match=f"key '{key}' is missing"):
        Sample.from_json(data, "k", "here")


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_wrong_json_type(data: object) -> None:
    with pytest.raises(MedpclipError, match="not an object"):
        Sample.from_json(data, "k", "here")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([0, 0, WIDTH, HEIGHT], None),
        ([-0.5, 0, 10, 10], None),
        ([-0.6, 0, 10, 10], "box reaches outside the image"),
        ([30, 0, 11, 10], "box reaches outside the image"),
        ([0, 0, 5, -1], "box is degenerate"),
        ([math.nan, 0, 5, 5], "box is not four finite numbers"),
        ([0, 0, math.inf, 5], "box is not four finite numbers"),
        ([0, 0, True, 5], "box is not four finite numbers"),
        ([0, 0, 5], "box is not four finite numbers"),
    ],
)
def test_box_problems_have_a_reason_without_figures(box: list, reason: str | None) -> None:
    problem = region_problem(Region(1, "a", bbox=box), WIDTH, HEIGHT)
    assert problem is None if reason is None else problem is not None and problem.partition(": ")[0] == reason


def test_a_category_must_be_a_term() -> None:
    for category in ("", None, 3):
        problem = region_problem(Region(1, category, bbox=[0, 0, 1, 1]), WIDTH, HEIGHT)  # type: ignore[arg-type]
        assert problem is not None and problem.partition(": ")[0] == "category is not a term"


def counts(*runs: int) -> str:
    """Run lengths as a compressed COCO string, written from the format's description."""
    text = ""
    for i, run in enumerate(runs):
        value = run - (runs[i - 2] if i > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            done = value == (-1 if bits & 16 else 0)
            text += chr(48 + (bits if done else bits | 32))
            if done:
                break
    return text


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda runs: any(runs[1::2])))
def test_run_lengths_agree_with_the_format_and_with_pycocotools(runs: list[int]) -> None:
    from pycocotools import mask as coco_mask

    pixels = sum(runs)
    assert run_lengths(counts(*runs), pixels).tolist() == runs
    segmentation = {"size": [pixels, 1], "counts": counts(*runs)}
    assert np.array_equal(Region(1, "a", segmentation=segmentation).mask(), coco_mask.decode(rle_bytes(segmentation)))


@pytest.mark.parametrize("seed", range(5))
def test_masks_decode_as_pycocotools_has_them(seed: int) -> None:
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(seed)
    mask = rng.random((HEIGHT * 9, WIDTH * 7)) < rng.uniform(0.001, 0.999)
    segmentation = encode_mask(mask)
    assert np.array_equal(Region(1, "a", segmentation=segmentation).mask(), mask)
    assert np.array_equal(coco_mask.decode(rle_bytes(segmentation)).astype(bool), mask)


BROKEN_COUNTS = [
    ("", "run lengths are broken"),
    ("ä", "run lengths are broken"),
    (" ", "run lengths are broken"),
    ("P", "run lengths are broken"),  # says that more follows
    (counts(600, 601), "run lengths are broken"),
    (counts(600, 599), "run lengths are broken"),
    (counts(1200), "mask is empty"),
    (counts(1300, -200, 100), "run lengths are broken"),
    ("oooooooooo0", "run lengths are broken"),
    (None, "mask is not run lengths"),
    (b"abc", "mask is not run lengths"),
    ([600, 600], "mask is not run lengths"),
]


@pytest.mark.parametrize(("text", "reason"), BROKEN_COUNTS)
def test_broken_run_lengths_are_refused_where_they_are_read_and_decoded(text: object, reason: str) -> None:
    region = Region(7, "cell", segmentation={"size": [HEIGHT, WIDTH], "counts": text})
    problem = region_problem(region, WIDTH, HEIGHT)
    assert problem is not None and problem.partition(": ")[0] == reason
    with pytest.raises(MedpclipError, match=rf"region 7 \(cell\): {reason}.*; rebuild the shard"):
        region.mask()
    data = good() | {"regions": [{"id": 7, "category": "cell", "segmentation": region.segmentation}]}
    with pytest.raises(MedpclipError, match=rf"here: regions\[0\]: {reason}"):
        Sample.from_json(data, "k", "here")


@given(st.text(max_size=12))
def test_any_string_is_a_mask_or_refused(text: str) -> None:
    region = Region(1, "a", segmentation={"size": [3, 4], "counts": text})
    try:
        mask = region.mask()
    except MedpclipError:
        return
    assert mask is not None and mask.shape == (3, 4) and mask.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": 0.5}, "'spacing'"),
        ({"spacing": [0.5, 0]}, "'spacing'"),
        ({"spacing": [0.5, "1"]}, "'spacing'"),
        ({"volume": 3}, "'volume'"),
        ({"intensity": [0, 255]}, "'intensity'"),
        ({"labels": {"finding": ["x", 3]}}, "'labels'"),
        ({"labels": {"finding": None}}, "'labels'"),
        ({"width": True}, "'width' is True"),
        ({"regions": [{"id": True, "category": "a", "points": [[1, 1]]}]}, r"'regions\[0\]\.id'"),
        ({"regions": [{"id": 1, "category": "a", "points": [[1, 1]], "attributes": ["left"]}]}, "attributes"),
        ({"regions": [{"id": 1, "category": "a", "points": [[1, 1]], "attributes": {"side": {}}}]}, "attributes"),
        ({"regions": [{"id": 1, "category": "a", "points": [[1, 1]], "iscrowd": "no"}]}, "iscrowd"),
    ],
)
def test_wrong_types_are_named(change: dict, message: str) -> None:
    with pytest.raises(MedpclipError, match=message):
        Sample.from_json(good() | change, "k", "here")


def test_extra_keys_can_not_replace_the_schemas_own() -> None:
    sample = Sample.from_json(good(), "k", "here")
    sample.extra = {"regions": []}
    with pytest.raises(MedpclipError, match="'extra'"):
        sample.validate("here")
    sample.extra, sample.regions[0].extra = {}, {"category": "other"}
    with pytest.raises(MedpclipError, match=r"'regions\[0\]\.extra'"):
        sample.validate("here")
