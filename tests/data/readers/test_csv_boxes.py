"""Tables of boxes: every order of sides, every dialect of CSV, rows matched to their images, and every fault told."""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medpclip.config import from_mapping
from medpclip.data.readers import Entry, Fault, RawSample, UnusableError
from medpclip.data.readers.csv_boxes import CsvBoxesOptions, CsvBoxesReader
from medpclip.errors import MedpclipError

DATA = os.environ.get("MEDPCLIP_DATA", "")
CORNERS = {name: name for name in ("xmin", "ymin", "xmax", "ymax")}
HEAD = "image,label,xmin,ymin,xmax,ymax"
OPTIONS = {"table": "boxes.csv", "columns": CORNERS, "label_column": "label"}


def image(folder: Path, name: str, size: tuple[int, int] = (200, 100)) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0]), np.uint8)).save(path)


def reader(folder: Path, content: str | bytes, files: tuple[str, ...] = ("a.png",), **options: Any) -> CsvBoxesReader:
    for name in files:
        image(folder, f"images/{name}")
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "boxes.csv").write_bytes(data)
    given_options = {key: value for key, value in (OPTIONS | options).items() if value is not None}
    return CsvBoxesReader(folder, from_mapping(CsvBoxesOptions, given_options, "test"))


def samples(of: CsvBoxesReader) -> dict[str, RawSample]:
    return {item.image: of.read(item) for item in of.scan() if isinstance(item, Entry)}


def only(of: CsvBoxesReader) -> RawSample:
    (sample,) = samples(of).values()
    return sample


def told(faults: Any) -> list[tuple[str, str, str, int, int]]:
    return [(f.file, f.key, f.reason, f.images, f.regions) for f in faults if isinstance(f, Fault)]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("10,20,40,60", {}),
        ("10,40,20,60", {"header": ["image", "label", "xmin", "xmax", "ymin", "ymax"]}),
        ("10,20,30,40", {"columns": {"x": "xmin", "y": "ymin", "width": "xmax", "height": "ymax"}}),
        ("25,40,30,40", {"columns": {"cx": "xmin", "cy": "ymin", "width": "xmax", "height": "ymax"}}),
        ("0.05,0.2,0.2,0.6", {"normalised": True}),
        ("11,21,40,60", {"corners": "inclusive"}),
        ('"[10, 20, 40, 60]",,,', {"columns": None, "box_column": "xmin"}),
        (
            "10 20 30 40,,,",
            {"columns": None, "box_column": "xmin", "box_order": ["x", "y", "width", "height"]},
        ),
    ],
)
def test_every_order_of_sides_means_the_same_box(tmp_path: Path, row: str, options: dict[str, Any]) -> None:
    header = "" if "header" in options else HEAD + "\n"
    region = only(reader(tmp_path, f"{header}a.png,WBC,{row}\n", **options)).regions[0]
    np.testing.assert_allclose(region.bbox, [10, 20, 30, 40])
    assert (region.label, region.file, region.key) == ("WBC", "boxes.csv", "row 1" if "header" in options else "row 2")


@pytest.mark.parametrize(
    "content",
    [
        f"\ufeff{HEAD}\r\na.png,white cell,10,20,40,60\r\n".encode(),
        f"{HEAD}\ra.png,white cell,10,20,40,60\r".encode(),
        f"{HEAD}\na.png,white cell,10,20,40,60".replace(",", ";").encode(),
        f"{HEAD}\na.png,white cell,10,20,40,60".replace(",", "\t").encode("utf-16"),
        f"{HEAD}\na.png,white cell,10,20,40,60".replace(",", "|").encode(),
        f"{HEAD},,\na.png,white cell,10,20,40,60,,\n,,,,,,,\n\n".encode(),
        b' image , label ,xmin,ymin,xmax,ymax\n"a.png","white cell","10",20, 4e1 ,60.0\n',
    ],
)
def test_dialects(tmp_path: Path, content: bytes) -> None:
    of = reader(tmp_path, content)
    assert not told(of.scan())
    (region,) = only(of).regions
    assert (region.label, region.bbox) == ("white cell", [10, 20, 30, 40])


def test_encoding_and_delimiter_by_option(tmp_path: Path) -> None:
    content = f"{HEAD}\na.png,Läsion,10,20,40,60".replace(",", "#").encode("cp1252")
    of = reader(tmp_path, content, delimiter="#", encoding="cp1252")
    assert only(of).regions[0].label == "Läsion"
    with pytest.raises(MedpclipError, match=r"line 2 is not utf-8 text; .*options.encoding"):
        reader(tmp_path, content, delimiter="#").scan()


def test_other_columns_and_what_all_rows_say_alike(tmp_path: Path) -> None:
    rows = f'{HEAD},patient,note\na.png,x,1,2,3,4,p1,"big, round"\na.png,y,1,2,3,4,p1,small\n'
    of = reader(tmp_path, rows)
    (entry,) = [item for item in of.scan() if isinstance(item, Entry)]
    assert entry.metadata == {"image": "a.png", "xmin": "1", "ymin": "2", "xmax": "3", "ymax": "4", "patient": "p1"}
    assert [r.metadata for r in of.read(entry).regions] == [
        {"patient": "p1", "note": "big, round"},
        {"patient": "p1", "note": "small"},
    ]


def test_broken_rows_each_with_its_reason(tmp_path: Path) -> None:
    rows = [
        "a.png,x,1,2,3,4",
        "a.png,,1,2,3,4",
        "a.png,x,,,,",
        "a.png,x,NaN,nan,None,NULL",
        "a.png,x,1,2,3,",
        "a.png,x,1,two,3,4",
        'a.png,x,"1,5",2,3,4',
        "a.png,x,1,2,3",
        "a.png,x,y,1,2,3,4",
        ",x,1,2,3,4",
        "zz.png,x,1,2,3,4",
        "zz.png,x,5,6,7,8",
    ]
    of = reader(tmp_path, "\n".join([HEAD, *rows]), files=("a.png", "b.png"))
    (sample,) = samples(of).values()
    assert len(sample.regions) == 1
    assert [(key, reason, regions) for _, key, reason, _, regions in told(sample.faults)] == [
        ("row 3", "region without a label", 1),
        ("row 4", "region without a box", 1),
        ("row 5", "region without a box", 1),
        ("row 6", "box is not four finite numbers", 1),
        ("row 7", "box is not four finite numbers", 1),
        ("row 8", "number has a decimal comma", 1),
        ("row 9", "row has another number of cells than the header", 1),
        ("row 10", "row has another number of cells than the header", 1),
    ]
    assert told(of.scan()) == [
        ("boxes.csv", "row 11", "row names no image", 0, 1),
        ("boxes.csv", "row 12", "image file is missing", 1, 2),
        ("images/b.png", "", "image without an annotation", 1, 0),
    ]


def test_rows_that_say_that_there_is_nothing(tmp_path: Path) -> None:
    rows = f"{HEAD}\na,No finding,,,,\na,No finding,0,0,1,1\nb,nodule,1,2,3,4\nc,odd,,,,\nd,No finding,,,,\n"
    options = {"files": ("a.png", "b.png", "c.png", "e.png"), "no_region_labels": ["No finding"]}
    strict = reader(tmp_path, rows, **options)
    found = samples(strict)
    assert {name: len(sample.regions) for name, sample in found.items()} == {
        "images/a.png": 0,
        "images/b.png": 1,
        "images/c.png": 0,
    }
    assert not found["images/a.png"].faults
    assert told(found["images/c.png"].faults) == [("boxes.csv", "row 5", "region without a box", 0, 1)]
    assert told(strict.scan()) == [
        ("boxes.csv", "row 6", "image file is missing", 1, 0),
        ("images/e.png", "", "image without an annotation", 1, 0),
    ]
    mild = reader(tmp_path, rows, empty_box="image_level", missing="empty", **options)
    assert all(not sample.faults for sample in samples(mild).values())
    labels = {item.image: item.metadata.get("label") for item in mild.scan() if isinstance(item, Entry)}
    assert labels["images/c.png"] == "odd" and labels["images/e.png"] is None


def test_whole_picture_is_no_region_where_the_recipe_says_so(tmp_path: Path) -> None:
    rows = f"{HEAD},mask\na.png,x,0,0,200,100,\na.png,x,0,0,200,100,m.png\na.png,x,1,2,3,4,\na.png,x,0,0,199,99.5,\n"
    assert len(only(reader(tmp_path, rows)).regions) == 4
    every = only(reader(tmp_path, rows, drop_whole_picture=True))
    assert [f.key for f in every.faults] == ["row 2", "row 3", "row 5"]
    some = only(reader(tmp_path, rows, drop_whole_picture=True, drop_only_without="mask"))
    assert told(some.faults) == [
        ("boxes.csv", "row 2", "box is the whole picture", 0, 1),
        ("boxes.csv", "row 5", "box is the whole picture", 0, 1),
    ]


def test_unreadable_image_takes_its_boxes_with_it(tmp_path: Path) -> None:
    of = reader(tmp_path, f"{HEAD}\na.png,x,.1,.2,.3,.4\na.png,x,.1,.2,.3,.4\n", normalised=True)
    (tmp_path / "images/a.png").write_bytes(b"x")
    with pytest.raises(UnusableError) as caught:
        samples(of)
    assert told([caught.value.fault]) == [("images/a.png", "", "image can't be decoded", 1, 2)]


def test_ambiguous_images_are_lost_once(tmp_path: Path) -> None:
    of = reader(tmp_path, f"{HEAD}\n1.png,x,1,2,3,4\n", files=("x/1.png", "y/1.png"), missing="empty")
    assert told(of.scan()) == [
        ("images/x/1.png", "", "several files share one name", 1, 0),
        ("images/y/1.png", "", "several files share one name", 1, 0),
        ("boxes.csv", "row 2", "several files share one name", 0, 1),
    ]


@pytest.mark.parametrize(
    ("content", "options", "match"),
    [
        (HEAD, {"label_column": "lable"}, "did you mean 'label'.*options.label_column"),
        (HEAD, {"image_column": "filename"}, "it has: image, label.*options.image_column"),
        (HEAD, {"columns": CORNERS | {"xmin": "XMin"}}, "did you mean 'xmin'.*options.columns.xmin"),
        (HEAD + ",label", {}, "'label' is there 2 times"),
        ("", {}, "is empty"),
        (HEAD + '\na.png,"x,1,2,3,4\na.png,x,1,2,3,4', {}, "row 2 or after: a quote is never closed"),
        (HEAD + '\na.png,"x"y,1,2,3,4\n', {}, "quote"),
        (HEAD, {"table": "none.csv"}, "options.table"),
        (HEAD, {"table": "../boxes.csv"}, "options.table"),
        (HEAD, {"columns": {"xmin": "xmin"}}, "expected one of"),
        (HEAD, {"columns": None}, "give one of"),
        (HEAD, {"label": "x"}, "give one of 'label_column'"),
        (HEAD, {"corners": "inclusive", "normalised": True}, "inclusive"),
        (HEAD, {"encoding": "utf-99"}, "encoding"),
        (HEAD, {"delimiter": "comma,"}, "delimiter"),
        (HEAD, {"images": "nowhere"}, "options.images"),
        (HEAD, {"table": "boxes.parquet"}, "Parquet"),
    ],
)
def test_what_ends_the_run(tmp_path: Path, content: str, options: dict[str, Any], match: str) -> None:
    (tmp_path / "boxes.parquet").write_bytes(b"PAR1")
    with pytest.raises(MedpclipError, match=match) as caught:
        reader(tmp_path, content, **options).scan()
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(*[st.floats(0, 1000)] * 4), min_size=1, max_size=5), st.sampled_from(",;\t|"))
def test_boxes_survive_the_way_through_a_table(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[float, ...]], delimiter: str
) -> None:
    folder = tmp_path_factory.mktemp("boxes")
    with open(folder / "out.csv", "w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(HEAD.split(","))
        for x, y, w, h in boxes:
            writer.writerow(["a.png", f"a{delimiter}label", repr(x), repr(y), repr(x + w), repr(y + h)])
    of = reader(folder, (folder / "out.csv").read_bytes())
    found = only(of).regions
    np.testing.assert_allclose([r.bbox for r in found], boxes, atol=1e-9)
    assert {r.label for r in found} == {f"a{delimiter}label"}


def test_parquet_and_several_tables(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": [1.0, 2.0], "label": ["x", None], "xmin": [1, 2], "ymin": [2, 3.5]})
    frame.assign(xmax=[9, 9], ymax=[9, 9]).to_parquet(tmp_path / "more.parquet")
    of = reader(tmp_path, f"{HEAD}\n2.png,y,1,2,3,4\n", files=("1.png", "2.png"), table=["boxes.csv", "*.parquet"])
    found = samples(of)
    assert [(r.bbox, r.file, r.key) for r in found["images/1.png"].regions] == [([1, 2, 8, 7], "more.parquet", "row 1")]
    # "2" and "2.png" are one image for the path without extension, but the exact name was first.
    assert [r.file for r in found["images/2.png"].regions] == ["boxes.csv"]
    assert told(of.scan()) == [("more.parquet", "row 2", "image file is missing", 1, 1)]


@pytest.mark.skipif(not Path(DATA, "bccd_blood").is_dir(), reason="MEDPCLIP_DATA doesn't name the real data")
def test_real_boxes_in_their_own_order() -> None:
    columns = ["filename", "cell_type", "xmin", "xmax", "ymin", "ymax"]
    options = {"images": "JPEGImages", "image_column": "filename", "label_column": "cell_type"}
    of = CsvBoxesReader(Path(DATA, "bccd_blood"), from_mapping(CsvBoxesOptions, OPTIONS | options, "test"))
    found = samples(of)
    regions = [region for sample in found.values() for region in sample.regions]
    assert not told(of.scan()) and not any(sample.faults for sample in found.values())
    assert (len(found), Counter(r.label for r in regions)) == (272, {"RBC": 3074, "WBC": 279, "Platelets": 272})
    boxes = np.array([region.bbox for region in regions])
    assert boxes.min() >= 0 and (boxes[:, 0] + boxes[:, 2]).max() <= 640 and (boxes[:, 1] + boxes[:, 3]).max() <= 480
    declared = from_mapping(CsvBoxesOptions, OPTIONS | options | {"header": columns}, "test")
    headless = CsvBoxesReader(Path(DATA, "bccd_blood"), declared)
    assert [f[1:] for f in told(headless.scan())] == [("row 1", "image file is missing", 1, 1)]  # the header's line


@pytest.mark.skipif(not Path(DATA, "cxr_structures").is_dir(), reason="MEDPCLIP_DATA doesn't name the real data")
def test_real_rows_without_a_mask() -> None:
    options = {
        "table": "structure.csv",
        "image_column": "Filename",
        "columns": {"x": "Left", "y": "Top", "width": "Width", "height": "Height"},
        "label_column": "Class",
        "drop_whole_picture": True,
        "drop_only_without": "Mask",
    }
    of = CsvBoxesReader(Path(DATA, "cxr_structures"), from_mapping(CsvBoxesOptions, options, "test"))
    found = samples(of)
    assert not told(of.scan())
    assert (len(found), sum(len(sample.regions) for sample in found.values())) == (29, 175)
    faults = Counter(fault.reason for sample in found.values() for fault in sample.faults)
    assert faults == {"box is the whole picture": 6}
    labels = Counter(region.label.removeprefix("COVID-19 ") for sample in found.values() for region in sample.regions)
    assert labels["Cardiomediastinum"] == 29 and labels["Monitoring Probes"] == 5


def test_tables_with_other_columns_about_one_image(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("image,label,xmin,ymin,xmax,ymax\na.png,node,1,2,3,4\n")
    of = reader(tmp_path, f"{HEAD},sex\na.png,node,1,2,3,4,F\n", table=["boxes.csv", "more.csv"])
    (entry,) = [item for item in of.scan() if isinstance(item, Entry)]
    assert "sex" not in entry.metadata and entry.metadata["label"] == "node"


@pytest.mark.parametrize(("pattern", "match"), [("(", "no regular expression"), ("a", "into")])
def test_image_key_needs_a_group(tmp_path: Path, pattern: str, match: str) -> None:
    with pytest.raises(MedpclipError, match=match):
        reader(tmp_path, f"{HEAD}\n", image_key=pattern)
