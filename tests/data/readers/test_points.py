"""Points: the declared order, dialects of lines, tables of all points, and every fault told."""

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
from medpclip.data.readers.points import PointsOptions, PointsReader
from medpclip.errors import MedpclipError

DATA = os.environ.get("MEDPCLIP_DATA", "")
CLASSES = {"1": "lymphocyte", "2": "tumour cell"}


def image(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((100, 200), np.uint8)).save(path)


def text(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def reader(folder: Path, **options: Any) -> PointsReader:
    return PointsReader(folder, from_mapping(PointsOptions, options, "test"))


def one(folder: Path, content: str | bytes, **options: Any) -> RawSample:
    image(folder, "images/a.png")
    text(folder, "labels/a.txt", content)
    of = reader(folder, **options)
    (entry,) = [item for item in of.scan() if isinstance(item, Entry)]
    return of.read(entry)


def samples(of: PointsReader) -> dict[str, RawSample]:
    return {item.image: of.read(item) for item in of.scan() if isinstance(item, Entry)}


def told(faults: Any) -> list[tuple[str, str, str, int, int]]:
    return [(f.file, f.key, f.reason, f.images, f.regions) for f in faults if isinstance(f, Fault)]


def test_the_declared_order_decides(tmp_path: Path) -> None:
    lines = "12 30 1\n40 50.5 2\n"
    usual = one(tmp_path, lines, classes=CLASSES)
    assert [(r.label, r.points, r.bbox) for r in usual.regions] == [
        ("lymphocyte", [[12, 30]], None),
        ("tumour cell", [[40, 50.5]], None),
    ]
    row_first = one(tmp_path, lines, columns=["y", "x", "class"])
    assert [(r.label, r.points, r.key) for r in row_first.regions] == [
        ("1", [[30, 12]], "line 1"),
        ("2", [[50.5, 40]], "line 2"),
    ]
    assert one(tmp_path, lines, offset=1).regions[0].points == [[11, 29]]


@pytest.mark.parametrize(
    "content",
    [
        b"12 30 Normal cell\r\n",
        b"\xef\xbb\xbf12,30,Normal cell\n\n",
        b'12\t30\t"Normal cell"\n',
        b"12.0; 30.0 ;Normal cell;\n",
        "  12   3e1   Normal cell".encode("utf-16"),
    ],
)
def test_dialects_of_lines(tmp_path: Path, content: bytes) -> None:
    (region,) = one(tmp_path, content).regions
    assert (region.label, region.points) == ("Normal cell", [[12, 30]])


def test_columns_beyond_the_point_and_one_label_for_all(tmp_path: Path) -> None:
    (region,) = one(tmp_path, "0.9,12,30", columns=["score", "x", "y"], label="nucleus").regions
    assert (region.label, region.points, region.metadata) == ("nucleus", [[12, 30]], {"score": "0.9"})
    columns = {"columns": ["col", "row", "type"], "x_column": "col", "y_column": "row", "label_column": "type"}
    assert one(tmp_path, "12 30 1.0", classes=CLASSES, **columns).regions[0].label == "lymphocyte"


def test_a_line_of_names_must_not_contradict(tmp_path: Path) -> None:
    assert one(tmp_path, "X,Y,Class\n12,30,1\n", header_line=True).regions[0].points == [[12, 30]]
    assert one(tmp_path, "centroid 0 type\n12 30 1\n", header_line=True).regions[0].points == [[12, 30]]
    with pytest.raises(UnusableError) as caught:
        one(tmp_path, "y,x,class\n12,30,1\n13,31,1\n", header_line=True)
    assert told([caught.value.fault]) == [("labels/a.txt", "line 1", "header contradicts the declared columns", 1, 2)]


def test_broken_lines_each_with_its_reason(tmp_path: Path) -> None:
    lines = ["12 30 1", "x y class", "12 30", "12 30 9", "12 30 cell", "12;30;", "12,5;30;1", "12;30;1;2", "12 nil 1"]
    sample = one(tmp_path, "\n".join(lines), classes=CLASSES)
    assert len(sample.regions) == 1
    assert [(key, reason, regions) for _, key, reason, _, regions in told(sample.faults)] == [
        ("line 2", "number is missing or is none", 1),
        ("line 3", "line has another number of values than declared", 1),
        ("line 4", "class has no name in the recipe", 1),
        ("line 5", "class has no name in the recipe", 1),
        ("line 6", "region without a label", 1),
        ("line 7", "number has a decimal comma", 1),
        ("line 8", "line has another number of values than declared", 1),
        ("line 9", "number is missing or is none", 1),
    ]


def test_files_that_stay_alone(tmp_path: Path) -> None:
    image(tmp_path, "images/a.png")
    text(tmp_path, "labels/b_coords.txt", "1 2 3\n4 5\n")
    options = {"annotation_suffix": "_coords"}
    assert told(reader(tmp_path, **options).scan()) == [
        ("images/a.png", "", "image without an annotation", 1, 0),
        ("labels/b_coords.txt", "", "annotation without an image", 0, 2),
    ]
    assert [len(s.regions) for s in samples(reader(tmp_path, missing="empty", **options)).values()] == [0]
    with pytest.raises(UnusableError) as caught:
        one(tmp_path, b"1 2 \xff")
    assert told([caught.value.fault]) == [("labels/a.txt", "", "annotation file can't be read as text", 1, 0)]


def test_a_file_without_the_suffix_does_not_vanish(tmp_path: Path) -> None:
    image(tmp_path, "images/a.png")
    text(tmp_path, "labels/a_coords.txt", "1 2 3\n")
    text(tmp_path, "labels/b.txt", "1 2 3\n")
    of = reader(tmp_path, annotation_suffix="_coords")
    assert told(of.scan()) == [("labels/b.txt", "", "annotation without an image", 0, 1)]


def test_names_among_the_points(tmp_path: Path) -> None:
    text(tmp_path, "labels/classes.txt", "1 lymphocyte\n2 tumour/epithelial\n")
    sample = one(tmp_path, "1 2 1\n1 2 2", names="labels/classes.txt")
    assert [r.label for r in sample.regions] == ["lymphocyte", "tumour/epithelial"]


def test_one_table_of_all_points(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path, f"images/{name}")
    rows = [
        "file;Y;X;type;grade",
        "a;30;12;1;low",
        "b.png;31;13;2;high",
        "a;32;14;9;",
        "a;x;14;1;",
        "a;1;2",
        "z;1;2;1;",
    ]
    text(tmp_path, "points.csv", "\n".join(rows))
    options = {"image_column": "file", "x_column": "X", "y_column": "Y", "label_column": "type", "classes": CLASSES}
    of = reader(tmp_path, table="points.csv", **options)
    found = samples(of)
    assert [(r.label, r.points, r.metadata) for s in found.values() for r in s.regions] == [
        ("lymphocyte", [[12, 30]], {"grade": "low"}),
        ("tumour cell", [[13, 31]], {"grade": "high"}),
    ]
    assert told(found["images/a.png"].faults) == [
        ("points.csv", "row 4", "class has no name in the recipe", 0, 1),
        ("points.csv", "row 5", "number is missing or is none", 0, 1),
        ("points.csv", "row 6", "row has another number of cells than the header", 0, 1),
    ]
    assert told(of.scan()) == [
        ("points.csv", "row 7", "image file is missing", 1, 1),
        ("images/c.png", "", "image without an annotation", 1, 0),
    ]
    text(tmp_path, "points.csv", "a,12,30,1\n")
    headless = reader(tmp_path, table="points.csv", header=["image", "x", "y", "class"], missing="empty")
    assert {name: len(s.regions) for name, s in samples(headless).items()} == {
        "images/a.png": 1,
        "images/b.png": 0,
        "images/c.png": 0,
    }


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"columns": ["x", "class"]}, "no 'y'"),
        ({"columns": ["x", "x", "y", "class"]}, "twice"),
        ({"header": ["x", "y", "class"]}, "'columns' gives the order"),
        ({"classes": {"a": "b"}}, "'a'"),
        ({"classes": CLASSES, "names": "x.txt"}, "keep one"),
        ({"offset": 2}, "offset"),
        ({"annotations": "nowhere"}, "options.annotations"),
        ({"table": "points.csv", "x_column": "xx"}, "options.x_column"),
        ({"table": "none.csv"}, "options.table"),
        ({"names": "none.txt"}, "options.names"),
    ],
)
def test_what_ends_the_run(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    image(tmp_path, "images/a.png")
    text(tmp_path, "labels/a.txt", "1 2 3")
    text(tmp_path, "points.csv", "image,x,y,class\n")
    with pytest.raises(MedpclipError, match=match):
        reader(tmp_path, **options).scan()


@given(
    st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 5000), st.integers(0, 20)), max_size=6),
    st.permutations(["x", "y", "class"]),
    st.sampled_from([" ", "\t", ",", ";", ", "]),
)
def test_points_survive_the_way_through_lines(
    tmp_path_factory: pytest.TempPathFactory, points: list[Any], order: list[str], between: str
) -> None:
    cells = [dict(zip(("x", "y", "class"), point, strict=True)) for point in points]
    lines = [between.join(repr(cell[name]) for name in order) for cell in cells]
    sample = one(tmp_path_factory.mktemp("points"), "\n".join(lines), columns=order)
    assert [(*r.points[0], r.label) for r in sample.regions] == [(x, y, str(c)) for x, y, c in points]


REAL = pytest.mark.skipif(not Path(DATA, "chula_rbc12").is_dir(), reason="MEDPCLIP_DATA doesn't name the real data")


@REAL
def test_real_points_x_first() -> None:
    options = {"images": "Dataset", "annotations": "Label", "names": "classes.txt"}
    found, faults = real("chula_rbc12", (640, 480), **options)
    assert not faults and len(found) == 94
    assert sum(found.values(), Counter()) == {
        "Normal cell": 1074,
        "Ovalocyte": 486,
        "Spherocyte": 441,
        "Target cell": 406,
        "Elliptocyte": 288,
        "Stomatocyte": 248,
        "Burr cell": 159,
        "Hypochromia": 156,
        "Schistocyte": 129,
        "Macrocyte": 122,
        "Microcyte": 74,
        "Teardrop": 45,
        "uncategorised": 16,
    }


@REAL
def test_real_points_y_first() -> None:
    options = {"columns": ["y", "x", "class"], "annotation_suffix": "_gt_class_coords", "names": "classes.txt"}
    found, faults = real("brca_m2c_histology", (504, 504), **options)
    assert not faults and len(found) == 62
    assert sum(found.values(), Counter()) == {"Tumor/Epithelial": 7562, "Stromal cells": 3915, "Lymphocytes": 3382}


def real(name: str, size: tuple[int, int], **options: Any) -> tuple[dict[str, Counter[str]], list[Any]]:
    of = reader(Path(DATA, name), **options)
    found = samples(of)
    regions = [region for sample in found.values() for region in sample.regions]
    places = np.array([region.points[0] for region in regions])
    assert (places >= 0).all() and (places <= size).all()
    faults = told(of.scan()) + [fault for sample in found.values() for fault in sample.faults]
    return {image: Counter(r.label for r in sample.regions) for image, sample in found.items()}, faults


def test_what_all_points_of_an_image_say_alike_is_said_of_the_image(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path, f"images/{name}.png")
    text(tmp_path, "t.csv", "image,x,y,class,slide\na,1,2,cell,s1\na,3,4,cell,s1\nb,1,2,cell,s2\nb,5,6,cell,s3\n")
    entries = [item for item in reader(tmp_path, table="t.csv").scan() if isinstance(item, Entry)]
    assert [entry.metadata.get("slide") for entry in entries] == ["s1", None]
