"""COCO JSON: all forms of geometry, loose habits of real files, and every fault told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.data.readers import Entry, Fault
from medpclip.data.readers.coco import CocoOptions, CocoReader
from medpclip.errors import MedpclipError

CATEGORIES = [{"id": 1, "name": "lung"}, {"id": "2", "name": "heart"}]


def image(folder: Path, name: str) -> None:
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)


def scan(folder: Path, images: Any, annotations: Any, /, **options: Any) -> tuple[CocoReader, list[Entry], list[Fault]]:
    (folder / "images").mkdir(exist_ok=True)
    data = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations.json").write_text(json.dumps(data))
    reader = CocoReader(folder, CocoOptions(**options))
    found = reader.scan()
    return reader, [e for e in found if isinstance(e, Entry)], [f for f in found if isinstance(f, Fault)]


def entry(i: Any, name: Any, **more: Any) -> dict[str, Any]:
    return {"id": i, "file_name": name, "width": 30, "height": 20} | more


def test_forms_of_segmentation(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    polygon = [1, 1, 5, 1, 5, 5]
    forms = [[], None, [polygon], polygon, {"size": [20, 30], "counts": "x"}, {"size": [20, 30], "counts": [600]}]
    annotations = [
        {"id": i, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": form, "iscrowd": i % 2}
        for i, form in enumerate(forms)
    ]
    annotations.append({"id": 6, "image_id": 7, "category_id": 2, "segmentation": [polygon]})
    reader, (found,), faults = scan(tmp_path, [entry(7, "a.png")], annotations)
    sample = reader.read(found)
    assert not faults
    assert not sample.faults
    assert sample.size == (30, 20)
    assert [r.polygons for r in sample.regions] == [None, None, [polygon], [polygon], None, None, [polygon]]
    assert [r.rle for r in sample.regions] == [None] * 4 + [forms[4], forms[5], None]
    assert [r.iscrowd for r in sample.regions] == [0, 1, 0, 1, 0, 1, 0]
    assert [r.bbox for r in sample.regions] == [[1, 2, 3, 4]] * 6 + [None]
    assert [r.label for r in sample.regions] == ["lung"] * 6 + ["heart"]


@pytest.mark.parametrize(("one", "other"), [(7, "7"), ("7", 7), (7, 7.0), ("x y", "x y")])
def test_ids_as_numbers_or_text(tmp_path: Path, one: Any, other: Any) -> None:
    image(tmp_path, "a.png")
    annotation = {"image_id": other, "category_id": "1", "bbox": [1, 2, 3, 4]}
    reader, (found,), faults = scan(tmp_path, [entry(one, "a.png")], [annotation])
    assert not faults
    assert len(reader.read(found).regions) == 1


@pytest.mark.parametrize("name", ["deep/er/a b.png", "images/deep/er/a b.png", "/home/x/a b.png", "..\\x\\a b.png"])
def test_file_names_with_folders(tmp_path: Path, name: str) -> None:
    image(tmp_path, "deep/er/a b.png")
    _, (found,), faults = scan(tmp_path, [entry(1, name)], [])
    assert found.image == "images/deep/er/a b.png"
    assert not faults


def test_file_name_never_leads_out_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    image(tmp_path, "secret.png")
    image(source, "a.png")
    names = ["../../images/secret.png", str(tmp_path / "images" / "secret.png"), "", None, 3, "a\0.png"]
    _, entries, faults = scan(source, [entry(i, name) for i, name in enumerate(names)], [])
    assert not entries
    assert [f.reason for f in faults].count("image file is missing") == len(names)


def test_images_may_lie_elsewhere_behind_a_link_and_in_a_folder_with_brackets(tmp_path: Path) -> None:
    image(tmp_path / "disk", "deep/a.png")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "all [1]").symlink_to(tmp_path / "disk" / "images")
    _, (found,), faults = scan(tmp_path / "source", [entry(1, "deep/a.png")], [], images="all [1]")
    assert found.image == "all [1]/deep/a.png"
    assert not faults


def test_metadata_is_the_whole_entry(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    _, (found,), _ = scan(tmp_path, [entry(1, "a.png", metadata={"patientid": "9"})], [])
    assert found.metadata["metadata"] == {"patientid": "9"}


def test_what_does_not_fit_together_is_a_fault(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "unlisted.png"):
        image(tmp_path, name)
    images = [
        entry(1, "a.png"),
        entry(2, "b.png"),
        entry(2, "c.png"),
        entry(3, "gone.png"),
        {"file_name": "a.png"},
        "text",
        entry(4, "c.png"),
        entry(5, "c.png"),
    ]
    box = {"category_id": 1, "bbox": [1, 2, 3, 4]}
    annotations = [box | {"image_id": i} for i in (1, 2, 3, 3, 4, 99, None)] + [17]
    reader, (found,), faults = scan(tmp_path, images, annotations)
    assert found.image == "images/a.png"
    assert len(reader.read(found).regions) == 1
    assert sorted((f.key or f.file, f.reason, f.images, f.regions) for f in faults) == [
        ("annotations[5]", "annotation without an image", 0, 1),
        ("annotations[6]", "annotation without an image", 0, 1),
        ("annotations[7]", "annotation is not an object", 0, 1),
        ("images/b.png", "image without an annotation", 1, 0),
        ("images/unlisted.png", "image without an annotation", 1, 0),
        ("images[1]", "several images share one id", 1, 1),
        ("images[2]", "several images share one id", 1, 0),
        ("images[3]", "image file is missing", 1, 2),
        ("images[4]", "image entry without an id", 1, 0),
        ("images[5]", "image entry without an id", 1, 0),
        ("images[6]", "image is listed several times", 1, 1),
        ("images[7]", "image is listed several times", 1, 0),
    ]


@pytest.mark.parametrize("category", [None, 99, "lung", [1]])
def test_category_that_is_not_declared(tmp_path: Path, category: Any) -> None:
    image(tmp_path, "a.png")
    annotation = {"image_id": 1, "category_id": category, "bbox": [1, 2, 3, 4]}
    reader, (found,), _ = scan(tmp_path, [entry(1, "a.png")], [annotation])
    (fault,) = reader.read(found).faults
    assert (fault.reason, fault.regions) == ("category is not declared", 1)


@pytest.mark.parametrize("size", [{"width": None}, {"width": 0}, {"width": "wide"}, {"height": -3}])
def test_size_that_says_nothing(tmp_path: Path, size: dict[str, Any]) -> None:
    image(tmp_path, "a.png")
    reader, (found,), _ = scan(tmp_path, [entry(1, "a.png", **size)], [])
    assert reader.read(found).size is None


def test_several_annotation_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        image(tmp_path, name)
    for name, file in (("a.png", "one.json"), ("b.png", "two.json")):
        data = {"images": [entry(1, name)], "annotations": [], "categories": CATEGORIES}
        (tmp_path / file).write_text(json.dumps(data))
    found = CocoReader(tmp_path, CocoOptions(annotations=["one.json", "two.json"])).scan()
    assert [e.image for e in found if isinstance(e, Entry)] == ["images/a.png", "images/b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "broken JSON"),
        ("[]", "holds a list"),
        ('{"images": {}}', "key 'images' is dict, expected a list"),
        ('{"images": []}', "key 'annotations' is missing"),
    ],
)
def test_file_that_is_no_coco(tmp_path: Path, text: str | None, message: str) -> None:
    (tmp_path / "images").mkdir()
    if text is not None:
        (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(MedpclipError, match=message):
        CocoReader(tmp_path, CocoOptions()).scan()


def test_corners_in_place_of_sizes(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    boxes = [[10, 4, 15, 9], [3, 2, 1, 1], [1, 2, 3], None]
    annotations = [{"id": i, "image_id": 7, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
    reader, (found,), _ = scan(tmp_path, [entry(7, "a.png")], annotations, boxes="corners")
    assert [r.bbox for r in reader.read(found).regions] == [[10, 4, 5, 5], [3, 2, -2, -1], [1, 2, 3], None]


def test_what_an_annotation_says_beside_its_place(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    told = {"id": 1, "image_id": 7, "category_id": 1, "attributes": {"side": "left"}, "iscrowd": 0}
    place = {"bbox": [1, 2, 3, 4], "segmentation": [[1, 1, 5, 1, 5, 5]], "keypoints": [1, 1, 2]}
    reader, (found,), _ = scan(tmp_path, [entry(7, "a.png")], [told | place])
    assert reader.read(found).regions[0].metadata == told


def test_patterns_of_annotation_files(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / name / f"{name}.png")
        data = {"images": [entry(0, f"{name}.png")], "annotations": [], "categories": CATEGORIES}
        (tmp_path / name / "_annotations.coco.json").write_text(json.dumps(data))
    found = CocoReader(tmp_path, CocoOptions("*/_annotations.coco.json", images=".")).scan()
    assert [item.image for item in found if isinstance(item, Entry)] == ["train/train.png", "valid/valid.png"]
    with pytest.raises(MedpclipError, match=r"nothing fits '\*/x\.json'"):
        CocoReader(tmp_path, CocoOptions("*/x.json", images=".")).scan()


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.json", "*/../x.json"])
def test_annotations_outside_of_the_source_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(MedpclipError, match="leads out of the source"):
        CocoReader(tmp_path, CocoOptions(name)).scan()
