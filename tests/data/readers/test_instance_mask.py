"""Instance masks: one file per object, in the image's own folder of masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from medpclip.data.readers import Entry, Fault
from medpclip.data.readers.instance_mask import InstanceMaskOptions, InstanceMaskReader
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
