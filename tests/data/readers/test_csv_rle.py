"""Tables of run lengths: runs in every convention give the mask they were made from; broken ones are told apart."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medpclip.data.readers import Entry, Fault, RawSample, UnusableError
from medpclip.data.readers.csv_rle import CsvRleOptions, CsvRleReader, RunsError, decode_runs
from medpclip.data.schema import Region, encode_mask
from medpclip.errors import MedpclipError

WIDE = {"classes": {"Left Lung": "left lung", "Heart": "heart"}, "order": "row"}
LONG = {"rle_column": "EncodedPixels", "label_column": "class", "order": "column", "image_column": "ImageId"}
MASK = np.zeros((20, 30), bool)
MASK[3:9, 4:11] = True
MASK[19, 25:] = True


def runs_of(mask: np.ndarray, order: str = "row", pairs: str = "start_length", base: int = 1) -> str:
    """Run lengths of a mask, pixel by pixel."""
    flat = mask.ravel() if order == "row" else mask.T.ravel()
    out, inside, last = [], False, 0
    for i, value in enumerate([*flat.tolist(), False]):
        if value and not inside:
            begin = i
        if inside and not value:
            first = begin if pairs == "start_length" else begin - last
            offset = base if pairs == "start_length" or not out else 0
            out += [first + offset, i - begin]
            last = i
        inside = value
    return " ".join(map(str, out))


def save(folder: Path, rows: list[dict[str, Any]], images: tuple[str, ...] = ("a.png",), mark: bool = False) -> None:
    (folder / "images").mkdir(exist_ok=True)
    for name in images:
        Image.fromarray(np.zeros(MASK.shape, np.uint8)).save(folder / "images" / name)
    with open(folder / "t.csv", "w", newline="", encoding="utf-8-sig" if mark else "utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def wide(image: str = "a", **cells: Any) -> dict[str, Any]:
    return {"image_id": image, "Left Lung": runs_of(MASK), "Heart": "", "Height": 20, "Width": 30, "Dice": 0.9} | cells


def reader(folder: Path, options: dict[str, Any], **more: Any) -> CsvRleReader:
    return CsvRleReader(folder, CsvRleOptions(**({"table": "t.csv"} | options | more)))


def read(folder: Path, options: dict[str, Any], **more: Any) -> RawSample:
    found = [entry for entry in reader(folder, options, **more).scan() if isinstance(entry, Entry)]
    # By a reader that hasn't scanned, as in another process.
    return reader(folder, options, **more).read(found[0])


def faults(folder: Path, options: dict[str, Any], **more: Any) -> list[tuple[str, str, int, int]]:
    found = reader(folder, options, **more).scan()
    return [(f.key or f.file, f.reason, f.images, f.regions) for f in found if isinstance(f, Fault)]


@settings(deadline=None)  # the first example imports a library
@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.data(),
    st.sampled_from(["row", "column"]),
    st.sampled_from(["start_length", "gap_length"]),
    st.sampled_from([0, 1]),
)
def test_runs_give_the_mask_they_were_made_from(
    height: int, width: int, data: st.DataObject, order: str, pairs: str, base: int
) -> None:
    size = height * width
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(height, width)
    mask.flat[data.draw(st.integers(0, size - 1))] = True
    text = runs_of(mask, order, pairs, base)
    assert decode_runs(text, height, width, order, pairs, base) == encode_mask(mask)


def test_golden_runs() -> None:
    """Counted by hand: pixels 2, 3 and 5 of a 3 x 2 picture, from 1."""
    by_row = np.array([[0, 1], [1, 0], [1, 0]])
    by_column = np.array([[0, 0], [1, 1], [1, 0]])
    assert decode_runs("2 2 5 1", 3, 2, "row", "start_length", 1) == encode_mask(by_row)
    assert decode_runs("2 2 5 1", 3, 2, "column", "start_length", 1) == encode_mask(by_column)
    assert decode_runs(" 1 2\n1 1", 3, 2, "column", "gap_length", 0) == encode_mask(by_column)
    assert decode_runs("2 1 3 1 5 1", 3, 2, "row", "start_length", 1) == encode_mask(by_row)  # runs that touch


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 2 3", "run lengths are not in pairs"),
        ("1 x", "run lengths are not whole numbers"),
        ("1 2.5", "run lengths are not whole numbers"),
        ("1 1_0", "run lengths are not whole numbers"),
        ("1 99999999999999999999", "run lengths are not whole numbers"),
        ("3 2 1 1", "run lengths overlap or are out of order"),
        ("1 3 3 1", "run lengths overlap or are out of order"),
        ("1 0", "run lengths overlap or are out of order"),
        ("3 -1", "run lengths overlap or are out of order"),
        ("0 1", "run lengths reach outside the image"),
        ("5 3", "run lengths reach outside the image"),
        ("1 9223372036854775807", "run lengths reach outside the image"),
    ],
)
def test_broken_runs(text: str, reason: str) -> None:
    with pytest.raises(RunsError) as caught:
        decode_runs(text, 3, 2, "row", "start_length", 1)
    assert caught.value.reason == reason


@pytest.mark.parametrize("mark", [False, True])
def test_one_row_per_image(tmp_path: Path, mark: bool) -> None:
    save(tmp_path, [wide(Heart=runs_of(~MASK))], mark=mark)
    for size in ({}, {"width_column": "Width", "height_column": "Height"}):
        sample = read(tmp_path, WIDE, **size)
        assert [(r.label, r.key, r.file) for r in sample.regions] == [
            ("left lung", "row 2, Left Lung", "t.csv"),
            ("heart", "row 2, Heart", "t.csv"),
        ]
        for region, mask in zip(sample.regions, (MASK, ~MASK), strict=True):
            assert np.array_equal(Region(1, "x", segmentation=region.rle).mask(), mask)
    (entry,) = reader(tmp_path, WIDE, metadata=["Dice"]).scan()
    assert isinstance(entry, Entry)
    assert entry.metadata == {"Dice": "0.9"}


def test_one_row_per_region(tmp_path: Path) -> None:
    def row(image: str, label: str, runs: str) -> dict[str, str]:
        return {"ImageId": image, "class": label, "EncodedPixels": runs, "n": label[:1]}

    runs = runs_of(MASK, "column")
    rows = [row("b", "nodule", runs), row("a", "mass", ""), row("b", "mass", runs), row("b", "x", "-1")]
    save(tmp_path, rows, ("a.png", "b.png"))
    own = reader(tmp_path, LONG, metadata=["n"])
    first, second = own.scan()
    assert isinstance(first, Entry) and isinstance(second, Entry)
    assert own.read(first).regions == []
    sample = own.read(second)
    assert [(r.label, r.key, r.metadata) for r in sample.regions] == [
        ("nodule", "row 2, EncodedPixels", {"n": "n"}),
        ("mass", "row 4, EncodedPixels", {"n": "m"}),
    ]
    assert all(r.rle == encode_mask(MASK) for r in sample.regions)


def test_cells_longer_than_python_expects_and_rows_over_several_lines(tmp_path: Path) -> None:
    dots = np.zeros((400, 400), bool)
    dots[:, ::2] = True
    cells = {"Left Lung": runs_of(dots), "Dice": "[1\n 2,\n 3]"}
    assert len(cells["Left Lung"]) > 131072
    save(tmp_path, [wide("a", **cells), wide("b")], ("a.png", "b.png"))
    Image.fromarray(np.zeros(dots.shape, np.uint8)).save(tmp_path / "images" / "a.png")
    before = csv.field_size_limit()
    own = reader(tmp_path, WIDE)
    found = [entry for entry in own.scan() if isinstance(entry, Entry)]
    for entry, mask in zip(found, (dots, MASK), strict=True):
        (region,) = own.read(entry).regions
        assert region.rle == encode_mask(mask)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("cells", "size", "reason"),
    [
        ({"Left Lung": "1 2 3"}, {}, "run lengths are not in pairs"),
        ({"Left Lung": "600 2"}, {}, "run lengths reach outside the image"),
        ({"Left Lung": "none"}, {}, "run lengths are not whole numbers"),
        ({"Left Lung": "5 2 1 1"}, {}, "run lengths overlap or are out of order"),
        ({"Width": "x"}, {"width_column": "Width", "height_column": "Height"}, "stated size is not two whole numbers"),
        (
            {"Width": 10**9},
            {"width_column": "Width", "height_column": "Height"},
            "stated size is not two whole numbers",
        ),
        ({"Height": 0}, {"width_column": "Width", "height_column": "Height"}, "stated size is not two whole numbers"),
    ],
)
def test_broken_cells(tmp_path: Path, cells: dict[str, Any], size: dict[str, str], reason: str) -> None:
    save(tmp_path, [wide(**cells)])
    sample = read(tmp_path, WIDE, **size)
    assert not sample.regions
    assert [(f.reason, f.images, f.regions) for f in sample.faults] == [(reason, 0, 1)]


def test_region_without_a_label(tmp_path: Path) -> None:
    save(tmp_path, [{"ImageId": "a", "class": "", "EncodedPixels": "1 2"}])
    assert [(f.reason, f.regions) for f in read(tmp_path, LONG).faults] == [("region without a label", 1)]


def test_rows_and_images_that_stay_alone(tmp_path: Path) -> None:
    rows = [wide("a"), wide("gone", Heart="1 2"), wide("twice"), wide("twice", Heart="1 2"), wide("")]
    save(tmp_path, rows, ("a.png", "twice.png", "lonely.png"))
    with open(tmp_path / "t.csv", "a") as stream:
        stream.write("moved,1 2\n\n")
    assert faults(tmp_path, WIDE) == [
        ("row 6", "row names no image", 0, 1),
        ("row 7", "row has another number of cells than the header", 0, 2),
        ("row 3", "image file is missing", 1, 2),
        ("images/lonely.png", "image without an annotation", 1, 0),
        ("images/twice.png", "image is listed several times", 1, 3),
    ]


def test_image_that_cannot_be_opened(tmp_path: Path) -> None:
    save(tmp_path, [wide(Heart="1 2")])
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    with pytest.raises(UnusableError) as caught:
        read(tmp_path, WIDE)
    assert (caught.value.fault.images, caught.value.fault.regions) == (1, 2)
    assert len(read(tmp_path, WIDE, width_column="Width", height_column="Height").regions) == 2  # the build opens it


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"", "no column 'image_id'"),
        (b"image_id,Left Lung\n", "no column 'Heart'"),
        (b"image_id,Left Lung,Heart\n\xff\xfe,1 2,\n", "not UTF-8"),
        (b'image_id,Left Lung,Heart\na,"1 2,\n', "row 2 or after: .*correct the quotes"),
        (b"\x1f\x8b\x08\x00", "is compressed; unpack it"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, content: bytes | None, problem: str) -> None:
    save(tmp_path, [wide()])
    (tmp_path / "t.csv").unlink()
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(MedpclipError, match=problem) as caught:
        reader(tmp_path, WIDE).scan()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"order": "row"}, "give one of 'classes'"),
        (WIDE | {"rle_column": "x", "label": "y"}, "give one of 'classes'"),
        (WIDE | {"label": "y"}, "'classes' has the labels itself"),
        ({"rle_column": "x", "order": "row"}, "needs one of 'label' and 'label_column'"),
        (WIDE | {"width_column": "w"}, "both or none"),
        (WIDE | {"delimiter": ""}, "expected one character"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        CsvRleOptions(**({"table": "t.csv"} | options))


def test_an_expression_joins_folder_and_name(tmp_path: Path) -> None:
    save(tmp_path, [wide("case1_slice2")])
    (tmp_path / "images/case1").mkdir()
    (tmp_path / "images/a.png").rename(tmp_path / "images/case1/slice2_30_20.png")
    of = reader(tmp_path, WIDE, image_key="(case[0-9]+)/(slice[0-9]+)")
    assert [item.image for item in of.scan() if isinstance(item, Entry)] == ["images/case1/slice2_30_20.png"]
