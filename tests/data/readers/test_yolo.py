"""YOLO: fractions become pixels, trees are paired, and every broken line is told."""

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
from medpclip.data.readers import Entry, Fault, UnusableError
from medpclip.data.readers.yolo import YoloOptions, YoloReader
from medpclip.errors import MedpclipError

DATA = os.environ.get("MEDPCLIP_DATA", "")
CLASSES = {"0": "pituitary tumor", "1": "meningioma"}


def image(folder: Path, name: str, size: tuple[int, int] = (200, 100)) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0]), np.uint8)).save(path)


def text(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def reader(folder: Path, **options: Any) -> YoloReader:
    given_names = options if "names" in options else {"classes": CLASSES} | options
    return YoloReader(folder, from_mapping(YoloOptions, given_names, "test"))


def entries(of: YoloReader) -> list[Entry]:
    return [item for item in of.scan() if isinstance(item, Entry)]


def told(faults: Any) -> list[tuple[str, str, str, int, int]]:
    return [(f.file, f.key, f.reason, f.images, f.regions) for f in faults if isinstance(f, Fault)]


def one(folder: Path, content: str | bytes, **options: Any) -> Any:
    image(folder, "images/a.png")
    text(folder, "labels/a.txt", content)
    of = reader(folder, **options)
    (entry,) = entries(of)
    return of.read(entry)


def test_fractions_of_width_and_height(tmp_path: Path) -> None:
    sample = one(tmp_path, "0 0.5 0.5 0.2 0.4\n1 0.25 0.25 0.5 0.5\n")
    assert [r.label for r in sample.regions] == ["pituitary tumor", "meningioma"]
    np.testing.assert_allclose([r.bbox for r in sample.regions], [[80, 30, 40, 40], [0, 0, 100, 50]])
    assert (sample.regions[1].file, sample.regions[1].key) == ("labels/a.txt", "line 2")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf0 0.5 0.5 0.2 0.4\r\n",
        "0 0.5 0.5 0.2 0.4\n".encode("utf-16"),
        b"0.0\t5e-1   .5 +0.2 0.4  \n\n\n",
        b"0 0.5 0.5 0.2 0.4",
        b"0 0.5 0.5 0.2 0.4\r0 0.5 0.5 0.2 0.4",
    ],
)
def test_byte_order_marks_line_ends_blanks_and_class_as_float(tmp_path: Path, content: bytes) -> None:
    sample = one(tmp_path, content)
    assert not sample.faults
    np.testing.assert_allclose(sample.regions[0].bbox, [80, 30, 40, 40])


def test_polygons_and_auto(tmp_path: Path) -> None:
    lines = "0 0.1 0.1 0.2 0.1 0.2 0.3\n1 0.5 0.5 0.2 0.4\n"
    auto = one(tmp_path, lines, lines="auto")
    np.testing.assert_allclose(auto.regions[0].polygons, [[20, 10, 40, 10, 40, 30]])
    assert auto.regions[0].bbox is None and auto.regions[1].polygons is None
    boxes = one(tmp_path, lines)
    assert told(boxes.faults) == [("labels/a.txt", "line 1", "line has another number of values than declared", 0, 1)]
    polygons = one(tmp_path, lines, lines="polygon")  # two corners: for the build to refuse
    assert [len(r.polygons[0]) for r in polygons.regions] == [6, 4]


def test_confidence_only_where_declared(tmp_path: Path) -> None:
    lines = "0 0.5 0.5 0.2 0.4 0.93\n0 0.5 0.5 0.2 0.4\n"
    assert [len(one(tmp_path, lines).regions), len(one(tmp_path, lines).faults)] == [1, 1]
    sample = one(tmp_path, lines, confidence=True)
    assert [r.metadata for r in sample.regions] == [{"confidence": 0.93}, {}]
    polygon = one(tmp_path, "1 0.1 0.1 0.2 0.1 0.2 0.3 0.5", confidence=True, lines="auto")
    assert (len(polygon.regions[0].polygons[0]), polygon.regions[0].metadata) == (6, {"confidence": 0.5})


def test_broken_lines_each_with_its_reason(tmp_path: Path) -> None:
    lines = [
        "0 0.5 0.5 0.2 0.4",
        "0 0.5 0.5 0.2",
        "7 0.5 0.5 0.2 0.4",
        "0.5 0.5 0.5 0.2 0.4",
        "meningioma 0.5 0.5 0.2 0.4",
        "0 0,5 0,5 0,2 0,4",
        "0 x 0.5 0.2 0.4",
        "0 120 60 30 20",
        "0 0.5 -0.1 0.2 0.4",
        "0 nan 0.5 0.2 0.4",
    ]
    sample = one(tmp_path, "\n".join(lines))
    assert len(sample.regions) == 1
    assert [(f.key, f.reason, f.regions) for f in sample.faults] == [
        ("line 2", "line has another number of values than declared", 1),
        ("line 3", "class has no name in the recipe", 1),
        ("line 4", "class has no name in the recipe", 1),
        ("line 5", "class has no name in the recipe", 1),
        ("line 6", "number has a decimal comma", 1),
        ("line 7", "number is missing or is none", 1),
        ("line 8", "coordinate is not between 0 and 1", 1),
        ("line 9", "coordinate is not between 0 and 1", 1),
        ("line 10", "coordinate is not between 0 and 1", 1),
    ]


def test_missing_and_empty_label_files(tmp_path: Path) -> None:
    image(tmp_path, "images/none.png")
    image(tmp_path, "images/nothing.png")
    text(tmp_path, "labels/nothing.txt", "\n")
    strict = reader(tmp_path)
    assert [entry.image for entry in entries(strict)] == ["images/nothing.png"]
    assert told(strict.scan()) == [("images/none.png", "", "image without an annotation", 1, 0)]
    mild = reader(tmp_path, missing="empty")
    assert [entry.image for entry in entries(mild)] == ["images/none.png", "images/nothing.png"]
    assert all(not mild.read(entry).regions and not mild.read(entry).faults for entry in entries(mild))


def test_orphans_are_counted_without_an_image(tmp_path: Path) -> None:
    image(tmp_path, "images/a.png")
    text(tmp_path, "labels/a.txt", "")
    text(tmp_path, "labels/b.txt", "0 0.5 0.5 0.2 0.4\n9 0.5 0.5 0.2 0.4\n")
    text(tmp_path, "labels/classes.txt", "x\ny\n")  # annotation tools write it there
    assert told(reader(tmp_path).scan()) == [("labels/b.txt", "", "annotation without an image", 0, 2)]


def test_unreadable_files_take_the_image_with_them(tmp_path: Path) -> None:
    with pytest.raises(UnusableError) as caught:
        one(tmp_path, b"\x89PNG\x00\xff")
    assert told([caught.value.fault]) == [("labels/a.txt", "", "annotation file can't be read as text", 1, 0)]
    (tmp_path / "images/a.png").write_bytes(b"no image")
    text(tmp_path, "labels/a.txt", "0 .5 .5 .2 .4\n0 .5 .5 .2 .4")
    of = reader(tmp_path)
    with pytest.raises(UnusableError) as caught:
        of.read(entries(of)[0])
    assert told([caught.value.fault]) == [("images/a.png", "", "image can't be decoded", 1, 2)]


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("*/images/*", "*/labels/*"), ("all", "all"), ("**/*.PNG", "**/*.txt")],
)
def test_parallel_trees_are_not_mixed_up(tmp_path: Path, images: str, labels: str) -> None:
    for split, size in (("train", (200, 100)), ("val", (20, 10))):
        folders = {
            "images": (f"images/{split}", f"labels/{split}"),
            "*/images/*": (f"{split}/images", f"{split}/labels"),
        }.get(images, (f"all/{split}", f"all/{split}"))
        image(tmp_path, f"{folders[0]}/1.PNG", size)
        text(tmp_path, f"{folders[1]}/1.txt", "0 0.5 0.5 1 1")
    of = reader(tmp_path, images=images, labels=labels)
    found = {entry.image: of.read(entry).regions[0].bbox for entry in entries(of)}
    assert len(found) == 2 and not told(of.scan())
    assert all(box == ([0, 0, 200, 100] if "train" in name else [0, 0, 20, 10]) for name, box in found.items())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "glial tumor\r\nmeningioma\r\n\r\n"),
        ("obj.names", "0 glial tumor\n1 meningioma"),
        ("data.yaml", "nc: 2\nnames: [glial tumor, meningioma]\n"),
        ("data.yml", "names:\n  0: glial tumor\n  1: meningioma\n"),
    ],
)
def test_files_of_names(tmp_path: Path, file: str, content: str) -> None:
    text(tmp_path, file, content)
    sample = one(tmp_path, "0 .5 .5 .2 .4\n1 .5 .5 .2 .4\n2 .5 .5 .2 .4", names=file)
    assert [r.label for r in sample.regions] == ["glial tumor", "meningioma"]
    assert [f.reason for f in sample.faults] == ["class has no name in the recipe"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"classes": {}}, "classes"),
        ({"classes": {"one": "x"}}, "'one'"),
        ({"names": "../x.txt"}, "out of the source"),
        ({"names": "none.txt"}, "options.names"),
        ({"names": "bad.yaml"}, "names"),
        ({"names": "broken.yaml"}, "YAML"),
        ({"labels": "nowhere"}, "options.labels"),
    ],
)
def test_what_ends_the_run(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    text(tmp_path, "bad.yaml", "nc: 2\n")
    text(tmp_path, "broken.yaml", "names: [a\n")
    image(tmp_path, "images/a.png")
    text(tmp_path, "labels/a.txt", "")
    with pytest.raises(MedpclipError, match=match) as caught:
        reader(tmp_path, **options).scan()
    assert "\n" not in str(caught.value)


@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_box_survives_the_way_through_fractions(size: tuple[int, int], at: tuple[float, ...]) -> None:
    width, height = size
    x1, x2 = sorted((at[0] * width, at[1] * width))
    y1, y2 = sorted((at[2] * height, at[3] * height))
    line = f"0 {(x1 + x2) / 2 / width!r} {(y1 + y2) / 2 / height!r} {(x2 - x1) / width!r} {(y2 - y1) / height!r}"
    region = YoloReader(Path(), YoloOptions(classes=CLASSES))._region(line, "a.txt", "line 1", size)
    assert not isinstance(region, Fault)
    np.testing.assert_allclose(region.bbox, [x1, y1, x2 - x1, y2 - y1], atol=1e-9 * max(size))


@pytest.mark.skipif(not Path(DATA, "brain_mri_tumor").is_dir(), reason="MEDPCLIP_DATA doesn't name the real data")
def test_real_boxes() -> None:
    of = YoloReader(Path(DATA, "brain_mri_tumor"), YoloOptions(names="classes.txt"))
    assert not told(of.scan())
    regions = [(entry.image, region) for entry in entries(of) for region in of.read(entry).regions]
    assert len(entries(of)) == 360
    assert Counter(r.label for _, r in regions) == {"pituitary tumor": 120, "meningioma": 120, "glioma": 120}
    folders = {"images/0/": "pituitary tumor", "images/1/": "meningioma", "images/2/": "glioma"}
    assert all(folders[name[:9]] == region.label for name, region in regions)
    boxes = np.array([region.bbox for _, region in regions])
    assert boxes[:, 2:].min() > 5 and boxes[:, :2].min() >= 0 and (boxes[:, :2] + boxes[:, 2:]).max() <= 512
