"""A source -> shards: golden conversion, planted faults, nothing half there, nothing identifying in shareable files."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medpclip.config import from_mapping
from medpclip.data.building.build import build
from medpclip.data.building.privacy import Salt
from medpclip.data.building.quarantine import Quarantine
from medpclip.data.building.recipe import Recipe
from medpclip.data.inspection.check import check_folder
from medpclip.data.schema import Sample, encode_mask
from medpclip.data.shards import ShardFolder
from medpclip.errors import MedpclipError

SALT = Salt(b"a secret that only tests know", "test")
BASE: dict[str, Any] = {
    "name": "chest",
    "title": "Chests",
    "modality": "chest radiograph",
    "licence": "MIT",
    "citation": "nobody",
    "reader": "coco",
    "terms": {"lung": "lung", "heart": "heart"},
    "annotated_terms": ["lung", "heart"],
    "laterality": "radiological",
    "group": {"metadata": "patient"},
    "labels": {"finding": {"key": "finding", "values": {"P": "pneumonia"}, "unlabelled": ["todo"]}},
}


def recipe(**changes: Any) -> Recipe:
    return from_mapping(Recipe, BASE | changes, "test")


class Source:
    """A small COCO tree that tests damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        (folder / "images").mkdir(parents=True)

    def image(self, name: str, **more: Any) -> Path:
        path = self.folder / "images" / name
        pixels = np.random.default_rng(len(self.images)).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        defaults = {
            "id": len(self.images),
            "file_name": name,
            "width": 30,
            "height": 20,
            "patient": name,
            "finding": "P",
        }
        self.images.append(defaults | more)
        return path

    def region(self, category: int = 1, **geometry: Any) -> None:
        image = self.images[-1]["id"]
        self.annotations.append({"image_id": image, "category_id": category, "bbox": [3, 4, 10, 8]} | geometry)

    def finish(self) -> Path:
        categories = [{"id": 1, "name": "lung"}, {"id": 2, "name": "heart"}, {"id": 3, "name": "tube"}]
        data = {"images": self.images, "annotations": self.annotations, "categories": categories}
        (self.folder / "annotations.json").write_text(json.dumps(data))
        return self.folder


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Three images of two patients with five regions, all good."""
    made = Source(tmp_path / "source")
    for i, patient in enumerate(("7", "7", "8")):
        made.image(f"scan {i}.png", patient=patient)
        made.region(1)
        if i:
            made.region(2, bbox=[1, 1, 2, 2])
    return made


def run(source: Source, out: Path, **changes: Any) -> tuple[dict[str, Any], list[Sample], list[dict[str, Any]]]:
    manifest = build(recipe(**changes), source.finish(), out, SALT)
    shards = ShardFolder(out)
    assert not list(check_folder(out))
    lines = (out.with_name(out.name + ".private") / "quarantine.jsonl").read_text().splitlines()
    return manifest, [shards.sample(i) for i in range(len(shards))], [json.loads(line) for line in lines]


def test_golden_conversion(source: Source, tmp_path: Path) -> None:
    manifest, samples, quarantined = run(source, tmp_path / "out")
    assert not quarantined
    assert manifest["images"] == {"found": 3, "written": 3, "quarantined": 0}
    assert manifest["regions"] == {"found": 5, "written": 5, "quarantined": 0}
    assert manifest["salt"] == SALT.fingerprint
    assert manifest["recipe"]["sha256"] == recipe().sha256()
    by_key = {sample.key: sample for sample in samples}
    last = by_key[SALT.hash("sample", "chest\0images/scan 2.png")]
    assert last.group == SALT.hash("group", "chest\0008")
    assert (last.source, last.modality, last.width, last.height) == ("chest", "chest radiograph", 30, 20)
    assert last.labels == {"finding": "pneumonia"}
    assert last.annotated_terms == ["lung", "heart"]
    assert last.extra == {"laterality": "radiological"}
    assert last.captions == []
    assert [(r.id, r.category, r.bbox, r.source_format) for r in last.regions] == [
        (1, "lung", [3, 4, 10, 8], "coco"),
        (2, "heart", [1, 1, 2, 2], "coco"),
    ]
    assert len({sample.group for sample in samples}) == 2


def test_same_input_same_bytes_other_salt_other_keys(source: Source, tmp_path: Path) -> None:
    run(source, tmp_path / "a")
    run(source, tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    build(recipe(), source.folder, tmp_path / "c", Salt(b"another secret of the tests", "test"))
    keys = [{row.key: row for row in ShardFolder(tmp_path / name).rows} for name in "ac"]
    assert not keys[0].keys() & keys[1].keys()
    splits = [ShardFolder(tmp_path / name).manifest["splits"] for name in "ac"]
    assert splits[0] == splits[1]  # two labs agree who is in the test set


def one(geometry: dict[str, Any]) -> Callable[[Source], None]:
    return lambda source: source.region(**geometry)


def image_with(change: Callable[[Path], Any], **more: Any) -> Callable[[Source], None]:
    def plant(source: Source) -> None:
        path = source.image("planted.png", **more)
        source.region()
        change(path)

    return plant


def as_jpeg(path: Path, **options: Any) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image)
    Image.fromarray(pixels).save(path, "JPEG", **options)


def truncated_jpeg(path: Path) -> None:
    as_jpeg(path)
    path.write_bytes(path.read_bytes()[:-40])


def turned_jpeg(path: Path) -> None:
    tags = Image.Exif()
    tags[274] = 6
    as_jpeg(path, exif=tags.tobytes())


def nothing(path: Path) -> None:
    """The fault is in the JSON."""


REGION_FAULTS: dict[str, dict[str, Any]] = {
    "box reaches outside the image": {"bbox": [25, 4, 10, 8]},
    "box is degenerate": {"bbox": [3, 4, 0, 8]},
    "box is not four finite numbers": {"bbox": [float("nan"), 4, 1, 8]},
    "mask is of another size than the image": {"segmentation": encode_mask(np.ones((30, 20)))},
    "run lengths are broken": {"segmentation": {"size": [20, 30], "counts": "?!"}},
    "mask is empty": {"segmentation": {"size": [20, 30], "counts": [600]}},
    "polygon has fewer than three points": {"segmentation": [[1, 1, 5, 5]]},
    "polygon is not a list of numbers": {"segmentation": ["1,1"]},
    "label is not in the recipe's terms": {"category": 3},
    "category is not declared": {"category": 9},
}
IMAGE_FAULTS: dict[str, Callable[[Source], None]] = {
    "image file is missing": image_with(Path.unlink),
    "image is truncated": image_with(truncated_jpeg),
    "image can't be decoded": image_with(lambda path: path.write_text("no image")),
    "image is turned by its EXIF orientation": image_with(turned_jpeg),
    "image is a duplicate of another": image_with(lambda path: shutil.copy(path.with_name("scan 0.png"), path)),
    "patient or study of the image is not known": image_with(nothing, patient=None),
}


@pytest.mark.parametrize("reason", REGION_FAULTS)
def test_planted_region_fault(source: Source, tmp_path: Path, reason: str) -> None:
    source.region(**REGION_FAULTS[reason])
    manifest, samples, quarantined = run(source, tmp_path / "out")
    assert manifest["quarantine"] == {reason: {"faults": 1, "images": 0, "regions": 1}}
    assert manifest["regions"] == {"found": 6, "written": 5, "quarantined": 1}
    assert [(q["file"], q["key"], q["reason"]) for q in quarantined] == [("annotations.json", "annotations[5]", reason)]
    # What was lost was a lung, or might be: absence of lungs in that image no longer means anything.
    assert sorted("lung" in sample.annotated_terms for sample in samples) == [False, True, True]


@pytest.mark.parametrize("reason", IMAGE_FAULTS)
def test_planted_image_fault_takes_its_regions(source: Source, tmp_path: Path, reason: str) -> None:
    IMAGE_FAULTS[reason](source)
    manifest, _, quarantined = run(source, tmp_path / "out")
    assert manifest["quarantine"] == {reason: {"faults": 1, "images": 1, "regions": 1}}
    assert manifest["images"] == {"found": 4, "written": 3, "quarantined": 1}
    assert manifest["regions"] == {"found": 6, "written": 5, "quarantined": 1}
    assert len(quarantined) == 1


def test_stated_size_that_is_not_the_images(source: Source, tmp_path: Path) -> None:
    source.image("planted.png", width=60)
    source.region()
    manifest, samples, _ = run(source, tmp_path / "a")
    assert manifest["quarantine"] == {"image is of another size than stated": {"faults": 1, "images": 0, "regions": 1}}
    assert len(samples) == 4
    manifest, _, _ = run(source, tmp_path / "b", options={"declared_size": "ignore"})
    assert not manifest["quarantine"]


def test_label_that_is_not_in_the_recipe(source: Source, tmp_path: Path) -> None:
    source.image("planted.png", finding="Jane Doe has it")
    source.image("unknown.png", finding="todo")
    manifest, samples, quarantined = run(source, tmp_path / "out")
    assert [len(sample.labels) for sample in samples].count(0) == 2
    (line,) = quarantined
    assert (line["file"], line["key"], line["images"]) == ("images/planted.png", "labels.finding", 0)
    assert "Jane" not in json.dumps(manifest)


def test_labels_from_a_table(source: Source, tmp_path: Path) -> None:
    (source.folder / "table.csv").write_text("file,stage\nscan 0,P\nscan 2,P\n")
    labels = {"stage": {"key": "stage", "values": {"P": "late"}}}
    _, samples, _ = run(source, tmp_path / "a", table={"file": "table.csv", "key": "file"}, labels=labels)
    assert [sample.labels for sample in samples].count({"stage": "late"}) == 2
    for text, message in (("x,y\n", "no column 'file'"), ("file\na\na\n", "'a' is in two rows"), (None, "unreadable")):
        (source.folder / "table.csv").unlink()
        if text is not None:
            (source.folder / "table.csv").write_text(text)
        with pytest.raises(MedpclipError, match=message):
            run(source, tmp_path / "b", table={"file": "table.csv", "key": "file"}, labels=labels)
        assert not (tmp_path / "b").exists()


def test_several_rows_of_one_image(source: Source, tmp_path: Path) -> None:
    rows = ["scan 0,P,a", "scan 0,P,b", "scan 1,,a"]
    (source.folder / "table.csv").write_text("\n".join(["name,state,reader", *rows]) + "\n")
    rule = {"file": "table.csv", "key": "name"}
    labels = {
        "state": {"key": "state", "values": {"P": "pneumonia"}},
        "reader": {"key": "reader", "values": {"a": "lung", "b": "heart"}},
    }
    with pytest.raises(MedpclipError, match="'scan 0' is in two rows; keep one"):
        run(source, tmp_path / "refused", table=rule, labels=labels)
    _, samples, _ = run(source, tmp_path / "out", table=rule | {"several": "agree"}, labels=labels)
    found = {sample.key: sample.labels for sample in samples}
    assert found[SALT.hash("sample", "chest\0images/scan 0.png")] == {"state": "pneumonia"}
    assert found[SALT.hash("sample", "chest\0images/scan 1.png")] == {"reader": "lung"}


def test_group_from_the_path(source: Source, tmp_path: Path) -> None:
    _, samples, _ = run(source, tmp_path / "a", group={"path": r"scan (\d)"})
    assert len({sample.group for sample in samples}) == 3
    _, samples, _ = run(source, tmp_path / "b", group={"path": "scan"})
    assert len({sample.group for sample in samples}) == 1


def test_nothing_usable_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    source = Source(tmp_path / "source")
    image_with(lambda path: path.write_text("no image"))(source)
    with pytest.raises(MedpclipError, match=r"nothing usable.*image can't be decoded.*quarantine\.jsonl"):
        build(recipe(), source.finish(), tmp_path / "out", SALT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.private", "source"]


def test_empty_source(tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match="no image was found"):
        build(recipe(), Source(tmp_path / "source").finish(), tmp_path / "out", SALT)
    with pytest.raises(MedpclipError, match="no such folder; check --source"):
        build(recipe(), tmp_path / "nowhere", tmp_path / "out", SALT)


def test_output_in_use_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run(source, tmp_path / "out")  # an empty folder will do
    with pytest.raises(MedpclipError, match="not an empty folder"):
        build(recipe(), source.folder, tmp_path / "out", SALT)
    (tmp_path / "file").write_text("x")
    with pytest.raises(MedpclipError, match="not an empty folder"):
        build(recipe(), source.folder, tmp_path / "file", SALT)
    with pytest.raises(MedpclipError, match="can't be written"):
        build(recipe(), source.folder, tmp_path / "file" / "out", SALT)


def test_lost_count_is_an_internal_error(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quarantine, "add", lambda self, fault: None)
    source.region(bbox=[0, 0, 0, 0])
    with pytest.raises(AssertionError, match="regions: 6 found, 5 written, 0 quarantined"):
        build(recipe(), source.finish(), tmp_path / "out", SALT)
    assert not (tmp_path / "out").exists()


def test_private_folder_is_private(source: Source, tmp_path: Path) -> None:
    (tmp_path / "out.private").mkdir(mode=0o755)
    (tmp_path / "out.private" / "build.log").write_text("old")
    run(source, tmp_path / "out")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out.private").iterdir()}
    assert modes == {"quarantine.jsonl": 0o600, "build.log": 0o600}
    assert stat.S_IMODE((tmp_path / "out.private").stat().st_mode) == 0o700
    assert "old" not in (tmp_path / "out.private" / "build.log").read_text()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_no_identifier_gets_into_what_may_be_shared(tmp_path: Path) -> None:
    """DOE^JANE is planted wherever a source can hold it, in good images and in each kind of fault."""
    secret = "DOE^JANE"
    source = Source(tmp_path / secret)
    good = source.image(f"{secret} 1.png", patient=secret, finding="P", clinical_notes=secret)
    source.region(1, attributes={"drawn by": secret}, id=secret)
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", secret)
    with Image.open(good) as image:
        image.copy().save(good, pnginfo=text)
    source.image(f"{secret} 2.jpg", patient=f"{secret} 2", finding=secret)
    as_jpeg(source.folder / "images" / f"{secret} 2.jpg", comment=secret.encode())
    for geometry in (*REGION_FAULTS.values(), {"category": secret}, {"bbox": secret}, {"bbox": [secret, 1, 2, 3]}):
        source.region(**geometry)
    source.annotations.append({"image_id": secret})
    image_with(truncated_jpeg, patient=secret)(source)
    (source.folder / "images" / f"{secret}.dcm").write_text(secret)
    build(recipe(), source.finish(), tmp_path / "out", SALT)
    private = (tmp_path / "out.private" / "quarantine.jsonl").read_text()
    assert secret in private
    for path in (tmp_path / "out").iterdir():
        content = path.name.encode() + path.read_bytes()
        for word in (secret, secret.lower(), "JANE", "scan", str(tmp_path)):
            assert word.encode() not in content, (path.name, word)


def test_modality_and_anatomy_from_the_metadata(source: Source, tmp_path: Path) -> None:
    for image, kind in zip(source.images, ("a", "b", "?"), strict=True):
        image["kind"] = kind
    words = {"a": "CT", "b": "MRI"}
    rule = {"key": "kind", "values": words}
    manifest, samples, lines = run(source, tmp_path / "out", modality=rule, anatomy=rule)
    assert sorted((sample.modality, sample.anatomy) for sample in samples) == [("CT", "CT"), ("MRI", "MRI")]
    (line,) = lines
    assert (line["reason"], line["images"], line["regions"]) == ("modality of the image is not in the recipe", 1, 2)
    assert manifest["images"]["quarantined"] == 1


def test_attributes_labels_with_several_values_and_midline(source: Source, tmp_path: Path) -> None:
    source.images[0]["finding"] = "P|Q"
    labels = {"finding": {"key": "finding", "values": {"P": "pneumonia", "Q": "nodule"}, "separator": "|"}}
    _, samples, lines = run(source, tmp_path / "out", labels=labels, midline=True)
    assert not lines
    assert sorted(sample.labels["finding"] for sample in samples) == [
        ["pneumonia"],
        ["pneumonia"],
        ["pneumonia", "nodule"],
    ]
    assert all(sample.extra == {"laterality": "radiological", "midline": True} for sample in samples)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("Opacity in the left lung, Quillfeather Osterbrook mentions it.", "words with capital letters may be a name"),
        ("OPACITY OF THE LEFT LUNG, SMITH", "capital letters throughout tell no names apart"),
        ("Затемнение слева", "letters of a script that the rules don't cover"),
        ("Dr. Anna Weber, 03.04.2011", "little but identifying words"),
    ],
)
def test_a_doubtful_caption_is_kept_out_and_its_image_is_not(
    source: Source, tmp_path: Path, caption: str, reason: str
) -> None:
    source.images[0]["note"] = caption
    source.images[1]["note"] = "Opacity in the left lung, seen by Dr. Anna Weber on 3 April 2011."
    manifest, samples, lines = run(source, tmp_path / "out", captions=["note"])
    assert manifest["images"]["written"] == 3
    (line,) = lines
    assert (line["reason"], line["key"], line["images"]) == (reason, "captions.note", 0)
    (captioned,) = [sample for sample in samples if sample.captions]
    assert captioned.captions == ["Opacity in the left lung, seen by [NAME] on [DATE]."]
    assert manifest["deidentified"] and "Weber" not in json.dumps(manifest)


def test_rules_that_find_nothing_are_named(source: Source, tmp_path: Path) -> None:
    labels = {
        "finding": {"key": "finding", "values": {"P": "pneumonia"}},
        "view": {"key": "veiw", "values": {"a": "b"}},
    }
    attributes = {"side": {"key": "side", "values": {"l": "left"}}}
    manifest, _, _ = run(source, tmp_path / "out", labels=labels, attributes=attributes, captions=["report", "patient"])
    assert manifest["unused_rules"] == ["labels.view", "attributes.side", "captions.report"]


def test_an_image_without_a_row_is_listed_and_not_lost(source: Source, tmp_path: Path) -> None:
    (source.folder / "table.csv").write_text(" name , grade\nscan 0, P\nscan 1,P \n")
    labels = {"grade": {"key": "grade", "values": {"P": "pneumonia"}}}
    manifest, samples, lines = run(source, tmp_path / "out", table={"file": "table.csv", "key": "name"}, labels=labels)
    assert manifest["images"]["written"] == 3
    assert [sample.labels for sample in samples].count({"grade": "pneumonia"}) == 2
    (line,) = lines
    assert (line["file"], line["reason"]) == ("images/scan 2.png", "image has no row in the recipe's table")
