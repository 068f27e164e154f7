"""Pascal VOC: conventions of the corners, pairing of files, and every fault told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpclip.data.readers import Entry, Fault, UnusableError
from medpclip.data.readers.voc import VocOptions, VocReader
from medpclip.errors import MedpclipError

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
SIZE = "<size><width>30</width><height>20</height></size>"


def obj(name: str, *corners: object) -> str:
    return f"<object><name>{name}</name>{BOX.format(*corners)}</object>"


class Source:
    """A small VOC tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("JPEGImages", "Annotations"):
            (folder / name).mkdir()

    def image(self, name: str) -> None:
        path = self.folder / "JPEGImages" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)

    def xml(self, name: str, inner: str) -> None:
        path = self.folder / "Annotations" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<annotation>{inner}</annotation>")

    def reader(self, **options: object) -> VocReader:
        return VocReader(self.folder, VocOptions(**options))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def only(reader: VocReader) -> Entry:
    (entry,) = reader.scan()
    assert isinstance(entry, Entry)
    return entry


def test_corners_are_edges_unless_the_recipe_says_inclusive(source: Source) -> None:
    source.image("a.png")
    source.xml("a.xml", SIZE + obj("RBC", 3, 4, 10, 12) + obj("WBC", "1.5", 1, 30, 20))
    edges, inclusive = source.reader(), source.reader(corners="inclusive")
    assert [r.bbox for r in edges.read(only(edges)).regions] == [[3, 4, 7, 8], [1.5, 1, 28.5, 19]]
    assert [r.bbox for r in inclusive.read(only(inclusive)).regions] == [[2, 3, 8, 9], [0.5, 0, 29.5, 20]]
    sample = edges.read(only(edges))
    assert [(r.label, r.file, r.key) for r in sample.regions] == [
        ("RBC", "Annotations/a.xml", "object[0]"),
        ("WBC", "Annotations/a.xml", "object[1]"),
    ]
    assert sample.size == (30, 20)


@pytest.mark.parametrize("size", ["", "<size/>", SIZE.replace("30", "0"), SIZE.replace("30", "wide")])
def test_a_size_that_says_nothing_is_not_used(source: Source, size: str) -> None:
    source.image("a.png")
    source.xml("a.xml", size + obj("RBC", 3, 4, 10, 12))
    assert source.reader().read(only(source.reader())).size is None


def test_declared_size_may_be_ignored(source: Source) -> None:
    source.image("a.png")
    source.xml("a.xml", SIZE)
    assert source.reader(declared_size="ignore").read(only(source.reader())).size is None


def test_names_with_blanks_dots_sub_folders_and_other_extensions(source: Source) -> None:
    for name in ("one two.jpg", "v1.2.bmp", "deep/c.PNG", "deep/d.tif"):
        source.image(name)
    for name in ("one two.xml", "v1.2.xml", "deep/c.xml", "deep/d.XML"):
        source.xml(name, obj("RBC", 1, 2, 3, 4))
    entries = source.reader().scan()
    assert all(isinstance(entry, Entry) for entry in entries)
    assert len(entries) == 4


@pytest.mark.parametrize("stated", ["photo.jpg", "C:\\scans\\photo.jpg", "/home/x/photo.jpg"])
def test_filename_tag_is_used_where_names_differ(source: Source, stated: str) -> None:
    source.image("photo.jpg")
    source.xml("annotation_1.xml", f"<filename>{stated}</filename>" + obj("RBC", 1, 2, 3, 4))
    assert only(source.reader()).image == "JPEGImages/photo.jpg"


def test_files_and_folders_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text("<annotation/>")
    assert only(VocReader(tmp_path, VocOptions(images=".", annotations="."))).image == "a.png"


def test_what_does_not_fit_together_is_a_fault(source: Source) -> None:
    source.image("alone.png")
    source.image("twice.png")
    source.image("twice.jpg")
    source.xml("twice.xml", obj("RBC", 1, 2, 3, 4))
    source.xml("orphan.xml", obj("RBC", 1, 2, 3, 4) * 3)
    (source.folder / "JPEGImages" / "scan.mha").write_bytes(b"x")
    (source.folder / "JPEGImages" / ".DS_Store").write_bytes(b"x")
    faults = [fault for fault in source.reader().scan() if isinstance(fault, Fault)]
    assert sorted((f.file, f.reason, f.images, f.regions) for f in faults) == [
        ("Annotations/orphan.xml", "annotation without an image", 0, 3),
        ("Annotations/twice.xml", "several files share one name", 0, 1),
        ("JPEGImages/alone.png", "image without an annotation", 1, 0),
        ("JPEGImages/scan.mha", "file is of a kind that no image reader reads", 0, 0),
        ("JPEGImages/twice.jpg", "several files share one name", 1, 0),
        ("JPEGImages/twice.png", "several files share one name", 1, 0),
    ]


@pytest.mark.parametrize(
    "inner", ["<object>", "<!DOCTYPE a>", "\x00", '<!DOCTYPE a [<!ENTITY b "c">]><object>&b;</object>']
)
def test_xml_that_is_none_takes_the_image_with_it(source: Source, inner: str) -> None:
    source.image("a.png")
    source.xml("a.xml", inner)
    with pytest.raises(UnusableError) as caught:
        source.reader().read(only(source.reader()))
    assert caught.value.fault.file == "Annotations/a.xml"
    assert (caught.value.fault.reason, caught.value.fault.images) == ("annotation file can't be read as XML", 1)


def test_broken_objects_are_faults(source: Source) -> None:
    source.image("a.png")
    broken = "<object><name>RBC</name></object>" + obj("", 1, 2, 3, 4) + obj("RBC", "left", 2, 3, 4)
    source.xml("a.xml", broken + obj("RBC", 1, 2, 3, 4))
    sample = source.reader().read(only(source.reader()))
    assert len(sample.regions) == 1
    assert [(f.key, f.reason, f.regions) for f in sample.faults] == [
        ("object[0]", "region without a box", 1),
        ("object[1]", "region without a label", 1),
        ("object[2]", "box is not four finite numbers", 1),
    ]


@pytest.mark.parametrize("where", ["nowhere", "../outside", "/etc"])
def test_folder_that_is_not_there_or_outside(source: Source, where: str) -> None:
    with pytest.raises(MedpclipError, match="options.annotations"):
        source.reader(annotations=where).scan()


def test_a_stated_name_of_several_images_is_nobodys(source: Source) -> None:
    source.image("a/1.png")
    source.image("b/1.png")
    source.xml("x.xml", "<filename>1.png</filename>" + SIZE + obj("RBC", 3, 4, 10, 12))
    reasons = [item.reason for item in source.reader().scan() if isinstance(item, Fault)]
    assert sorted(reasons) == ["annotation without an image", *["image without an annotation"] * 2]


def test_names_that_return_in_other_folders_below_patterns(tmp_path: Path) -> None:
    for name in ("train", "test"):
        for folder in ("images", "xml"):
            (tmp_path / name / folder).mkdir(parents=True)
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / name / "images/1.png")
        (tmp_path / name / "xml/1.xml").write_text(f"<annotation>{obj(name, 3, 4, 10, 12)}</annotation>")
    reader = VocReader(tmp_path, VocOptions("*/images/*", "*/xml/*"))
    entries = [item for item in reader.scan() if isinstance(item, Entry)]
    assert {entry.image: reader.read(entry).regions[0].label for entry in entries} == {
        "train/images/1.png": "train",
        "test/images/1.png": "test",
    }
