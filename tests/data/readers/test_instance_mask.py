"""Instance masks: one file per object, in the image's own folder of masks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from medpclip.data.readers import Entry, Fault
from medpclip.data.readers.instance_mask import InstanceMaskOptions, InstanceMaskReader, LabelNames
from medpclip.data.schema import rle_bytes
from medpclip.errors import MedpclipError

MASK = np.zeros((20, 30), np.uint8)
MASK[2:6, 3:9] = 255


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def reader(folder: Path, **options: Any) -> InstanceMaskReader:
    defaults = {"images": "*/images/*", "label": "nucleus"}
    return InstanceMaskReader(folder, InstanceMaskOptions(**(defaults | options)))


def test_one_region_per_file(tmp_path: Path) -> None:
    save(tmp_path / "x" / "images" / "x.png", MASK)
    masks = [MASK, np.roll(MASK, 4, 1), np.zeros_like(MASK)]
    for i, mask in enumerate(masks):
        save(tmp_path / "x" / "masks" / f"{i}.png", mask)
    (entry,) = reader(tmp_path).scan()
    assert isinstance(entry, Entry)
    assert entry.image == "x/images/x.png"
    sample = reader(tmp_path).read(entry)
    assert [r.file for r in sample.regions] == [f"x/masks/{i}.png" for i in range(3)]
    for region, mask in zip(sample.regions, masks, strict=True):
        assert np.array_equal(coco_mask.decode(rle_bytes(region.rle)), mask > 0)


def test_threshold(tmp_path: Path) -> None:
    save(tmp_path / "x" / "images" / "x.png", MASK)
    save(tmp_path / "x" / "masks" / "0.png", MASK // 3)
    (entry,) = reader(tmp_path).scan()
    for threshold, area in ((85, 24), (86, 0)):
        (region,) = reader(tmp_path, threshold=threshold).read(entry).regions
        assert coco_mask.decode(rle_bytes(region.rle)).sum() == area


def test_folder_named_after_the_image_and_labels_from_names(tmp_path: Path) -> None:
    save(tmp_path / "images" / "one [a].png", MASK)
    for name in ("liver_1.png", "liver_2.png", "spleen_1.png", "nothing.png"):
        save(tmp_path / "masks" / "one [a]" / name, MASK)
    save(tmp_path / "masks" / "orphan" / "liver_1.png", MASK)
    options = {"images": "images", "masks": "../masks/{stem}", "label": None, "label_pattern": r"^([a-z]+)_\d"}
    entry, orphan = reader(tmp_path, **options).scan()
    sample = reader(tmp_path, **options).read(entry)
    assert [r.label for r in sample.regions] == ["liver", "liver", "spleen"]
    assert [(f.file, f.reason, f.regions) for f in sample.faults] == [
        ("masks/one [a]/nothing.png", "region without a label", 1)
    ]
    assert (orphan.file, orphan.reason, orphan.regions) == ("masks/orphan", "annotation without an image", 1)


def test_what_does_not_fit_together_is_a_fault(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        save(tmp_path / name / "images" / f"{name}.png", MASK)
    save(tmp_path / "x" / "images" / "second.png", MASK)
    for name in ("x", "z", "w"):
        save(tmp_path / name / "masks" / "0.png", MASK)
    (tmp_path / "z" / "masks" / "1.png").write_bytes(b"x")
    found = reader(tmp_path).scan()
    (entry,) = [e for e in found if isinstance(e, Entry)]
    sample = reader(tmp_path).read(entry)
    assert len(sample.regions) == 1
    assert [(f.file, f.reason, f.images, f.regions) for f in sample.faults] == [
        ("z/masks/1.png", "mask file can't be decoded", 0, 1)
    ]
    assert sorted((f.file, f.reason, f.images, f.regions) for f in found if isinstance(f, Fault)) == [
        ("w/masks", "annotation without an image", 0, 1),
        ("x/images/second.png", "several files share one name", 1, 0),
        ("x/images/x.png", "several files share one name", 1, 0),
        ("x/masks", "several files share one name", 0, 1),
        ("y/images/y.png", "image without an annotation", 1, 0),
    ]


def test_pattern_that_fits_nothing(tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match=r"nothing fits '\*/images/\*'.*options.images"):
        reader(tmp_path).scan()


def test_masks_outside_the_source_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "x" / "images" / "x.png", MASK)
    with pytest.raises(MedpclipError, match="leads out of the source"):
        reader(tmp_path, masks="../../../masks").scan()


def regions_of(folder: Path, **options: Any) -> dict[str, list[tuple[str, str]]]:
    """Image -> (label, mask file) of its regions."""
    own = reader(folder, **({"belongs": "stem", "images": "images", "masks": "../masks"} | options))
    found = [entry for entry in own.scan() if isinstance(entry, Entry)]
    return {entry.image: [(r.label, r.file) for r in own.read(entry).regions] for entry in found}


def faults_of(folder: Path, **options: Any) -> list[tuple[str, str, int, int]]:
    own = reader(folder, **({"belongs": "stem", "images": "images", "masks": "../masks"} | options))
    return [(f.file, f.reason, f.images, f.regions) for f in own.scan() if isinstance(f, Fault)]


def test_layout_of_sa_med2d(tmp_path: Path) -> None:
    stem = "ct_00--AbdomenCT1K--Case_00001--x_0012"
    save(tmp_path / "images" / f"{stem}.png", MASK)
    for name in ("0001_000", "0001_001", "0012_000", "0099_000"):
        save(tmp_path / "masks" / f"{stem}--{name}.png", MASK)
    names = {"AbdomenCT1K": {"liver": 1, "left_kidney": "0012"}, "Other": {"heart": 1}}
    (tmp_path / "classes.json").write_text(json.dumps(names))
    pattern = r"--(?P<dataset>[^-]+)--[^/]+--(?P<label>\d+)_(?P<instance>\d+)$"
    options = {"label": None, "label_pattern": pattern, "label_names": "classes.json", "blank": "_"}
    own = reader(tmp_path, images="images", belongs="stem", **options)
    (entry,) = own.scan()
    assert isinstance(entry, Entry)
    sample = own.read(entry)
    assert [r.label for r in sample.regions] == ["liver", "liver", "left kidney"]
    assert sample.regions[1].metadata == {"dataset": "AbdomenCT1K", "instance": "001"}
    assert [(f.file[-12:], f.reason, f.regions) for f in sample.faults] == [
        ("0099_000.png", "region without a label", 1)
    ]


def test_layout_of_biomedparse(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / "set" / part / "123_CT_abdomen.png", MASK)
        for target in ("liver", "left+kidney"):
            save(tmp_path / "set" / f"{part}_mask" / f"123_CT_abdomen_{target}.png", MASK)
    options = {"images": "*/t[er][sa]*[tn]/*", "masks": "../{folder}_mask", "label": None, "blank": "+"}
    found = regions_of(tmp_path, **options, label_pattern=r"_([a-z+]+)$")
    assert found == {
        f"set/{part}/123_CT_abdomen.png": [
            ("left kidney", f"set/{part}_mask/123_CT_abdomen_left+kidney.png"),
            ("liver", f"set/{part}_mask/123_CT_abdomen_liver.png"),
        ]
        for part in ("train", "test")
    }


def test_layouts_with_a_suffix_or_folder_per_class(tmp_path: Path) -> None:
    for stem in ("ISIC_0000000", "ISIC_0000001"):
        save(tmp_path / "images" / f"{stem}.jpg", MASK)
    save(tmp_path / "masks" / "ISIC_0000000_attribute_globules.png", MASK)
    save(tmp_path / "masks" / "ISIC_0000000_attribute_streaks.png", np.zeros_like(MASK))
    save(tmp_path / "masks" / "ISIC_0000001_attribute_globules.png", np.zeros_like(MASK))
    options = {"label": None, "label_pattern": r"_attribute_(\w+)$", "empty": "absent"}
    assert regions_of(tmp_path, **options) == {
        "images/ISIC_0000000.jpg": [("globules", "masks/ISIC_0000000_attribute_globules.png")],
        "images/ISIC_0000001.jpg": [],
    }
    ddr = tmp_path / "ddr"
    save(ddr / "images" / "007-1.jpg", MASK)
    for lesion in ("EX", "MA"):
        save(ddr / "masks" / lesion / "007-1.tif", MASK)
        save(ddr / "masks" / lesion / f"007-1_{lesion}.tif", MASK)
    found = regions_of(ddr, label=None, label_pattern=r"^(EX|MA)/")["images/007-1.jpg"]
    assert [label for label, _ in found] == ["EX", "EX", "MA", "MA"]


def test_longest_stem_wins_at_a_delimiter(tmp_path: Path) -> None:
    for stem in ("12", "123", "12_3"):
        save(tmp_path / "images" / f"{stem}.png", MASK)
    for name in ("12_liver", "123-liver", "12_3_liver", "12", "1234_liver", "1_liver"):
        save(tmp_path / "masks" / f"{name}.png", MASK)
    assert {image: [file for _, file in found] for image, found in regions_of(tmp_path).items()} == {
        "images/12.png": ["masks/12.png", "masks/12_liver.png"],
        "images/123.png": ["masks/123-liver.png"],
        "images/12_3.png": ["masks/12_3_liver.png"],
    }
    assert faults_of(tmp_path) == [
        ("masks/1234_liver.png", "annotation without an image", 0, 1),
        ("masks/1_liver.png", "annotation without an image", 0, 1),
    ]


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    for name in ("benign (1)", "benign (1)_mask", "benign (1)_mask_1", "benign (2)"):
        save(tmp_path / "all" / f"{name}.png", MASK)
    pattern = {"label": None, "label_pattern": r"^([a-z]+) \(\d+\)_mask"}
    expected = ["all/benign (1)_mask.png", "all/benign (1)_mask_1.png"]
    for options in (pattern | {"images": "all"}, {"images": "all/*).png"}):
        found = regions_of(tmp_path, masks=".", without_masks="empty", **options)
        assert [file for _, file in found["all/benign (1).png"]] == expected
        assert found["all/benign (2).png"] == []


def test_components_of_a_mask_are_regions(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", MASK)
    two = MASK.copy()
    two[12:15, 20:25] = 255
    two[19, 29] = 255
    save(tmp_path / "masks" / "a.png", two)
    own = reader(tmp_path, images="images", belongs="stem", components=True, min_pixels=2)
    (entry,) = own.scan()
    assert isinstance(entry, Entry)
    sample = own.read(entry)
    first, second = (coco_mask.decode(rle_bytes(region.rle)) for region in sample.regions)
    assert (first.sum(), second.sum(), (first + second).max()) == (24, 15, 1)
    assert [(f.reason, f.regions) for f in sample.faults] == [("component is smaller than min_pixels", 1)]


def test_faults_by_stem(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "lonely.png", "good.png"):
        save(tmp_path / "images" / name, MASK)
    for name in ("a_1", "a_2", "good_1", "orphan_1"):
        save(tmp_path / "masks" / f"{name}.png", MASK)
    (tmp_path / "masks" / "good_2.nrrd").write_bytes(b"x")
    (tmp_path / "masks" / "orphan_2.png").write_bytes(b"x")
    assert sorted(faults_of(tmp_path)) == [
        ("images/a.jpg", "several files share one name", 1, 0),
        ("images/a.png", "several files share one name", 1, 0),
        ("images/lonely.png", "image without an annotation", 1, 0),
        ("masks/a_1.png", "several files share one name", 0, 1),
        ("masks/a_2.png", "several files share one name", 0, 1),
        ("masks/good_2.nrrd", "file is of a kind that no image reader reads", 0, 0),
        ("masks/orphan_1.png", "annotation without an image", 0, 1),
        ("masks/orphan_2.png", "annotation without an image", 0, 1),
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"label": None}, "give one of 'label' and 'label_pattern'"),
        ({"label_pattern": "(a)"}, "give one of 'label' and 'label_pattern'"),
        ({"label": None, "label_pattern": "("}, "no regular expression"),
        ({"label": None, "label_pattern": "a"}, "has 0 groups"),
        ({"label": None, "label_pattern": "(a)(?P<b>b)"}, "has 2 groups"),
        ({"label_names": "x.json"}, "needs 'label_pattern'"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        InstanceMaskOptions(**({"images": "images", "label": "nucleus"} | options))


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file"), ("{", "broken JSON"), ("[]", "names and numbers")]
)
def test_names_that_cannot_be_read(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "names.json").write_text(content)
    with pytest.raises(MedpclipError, match=problem) as caught:
        reader(tmp_path, label=None, label_pattern="(a)", label_names="names.json")
    assert "\n" not in str(caught.value)


def test_names_either_way_round(tmp_path: Path) -> None:
    for content in ({"1": "liver"}, {"liver": 1}, {"liver": "0001"}):
        (tmp_path / "names.json").write_text(json.dumps(content))
        names = LabelNames(tmp_path, "names.json")
        assert (names.find("0001", {}), names.find("2", {})) == ("liver", None)
