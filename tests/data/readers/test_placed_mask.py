"""Placed masks: cropped masks land where the table says, and every row ends as a region, a fault or a statement."""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.data.readers import Entry, Fault, RawSample, UnusableError
from medpclip.data.readers.placed_mask import PlacedMaskOptions, PlacedMaskReader
from medpclip.data.schema import Region
from medpclip.errors import MedpclipError

DATA = os.environ.get("MEDPCLIP_DATA", "")
COLUMNS = ("image", "mask", "label", "left", "top", "width", "height", "size", "note")
INSIDE = np.array([[1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]], bool)  # 4 wide, 3 high


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def row(**cells: Any) -> dict[str, Any]:
    good = {"image": "a.png", "mask": "masks/m.png", "label": "lung", "left": 5, "top": 2, "width": 4, "height": 3}
    return good | {"size": "30x20", "note": "n"} | cells


def make(folder: Path, rows: list[dict[str, Any]], mask: np.ndarray | None = None) -> None:
    save(folder / "images" / "a.png", np.zeros((20, 30), np.uint8))
    rgba = np.zeros((3, 4, 4), np.uint8)
    rgba[INSIDE] = (0, 200, 0, 255)
    save(folder / "masks" / "m.png", rgba if mask is None else mask)
    with open(folder / "table.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def reader(folder: Path, **options: Any) -> PlacedMaskReader:
    return PlacedMaskReader(folder, PlacedMaskOptions(**({"table": "table.csv"} | options)))


def read(folder: Path, **options: Any) -> RawSample:
    own = reader(folder, **options)
    (entry,) = own.scan()
    assert isinstance(entry, Entry)
    return own.read(entry)


def placed(sample: RawSample) -> np.ndarray:
    (region,) = sample.regions
    mask = Region(1, "x", segmentation=region.rle).mask()
    assert mask is not None
    return mask


@pytest.mark.parametrize("name", ["masks/m.png", "m.png", "./masks/m.png", "masks\\m.png"])
def test_mask_lies_at_its_corner(tmp_path: Path, name: str) -> None:
    make(tmp_path, [row(mask=name)])
    sample = read(tmp_path, resolution_column="size")
    expected = np.zeros((20, 30), bool)
    expected[2:5, 5:9] = INSIDE
    assert np.array_equal(placed(sample), expected)
    (region,) = sample.regions
    assert (region.label, region.key, region.bbox, region.metadata) == ("lung", "row 2", [5, 2, 4, 3], {"note": "n"})


def test_what_is_inside(tmp_path: Path) -> None:
    grey = np.where(INSIDE, 100, 3).astype(np.uint8)
    black = np.dstack([np.zeros((3, 4, 3), np.uint8), np.where(INSIDE, 90, 0).astype(np.uint8)])
    for i, (mask, options) in enumerate(
        [
            (grey, {"inside": "brightness", "threshold": 4}),
            (np.dstack([grey * 0, grey - 3, grey * 0]), {"inside": "brightness"}),
            (black, {"inside": "alpha"}),
            (np.dstack([black[..., :3] + 9, black[..., 3]]), {"inside": "alpha", "threshold": 90}),
        ]
    ):
        make(tmp_path / str(i), [row()], mask)
        assert np.array_equal(placed(read(tmp_path / str(i), **options))[2:5, 5:9], INSIDE)


def test_rows_without_a_mask(tmp_path: Path) -> None:
    whole = row(mask="", label="probe", left=0, top=0, width=30, height=20)
    make(tmp_path, [row(), whole, row(mask="", label="tube", left=1.5)])
    expected = {
        "fault": (["lung"], ["box is the whole picture", "region without a mask"], {}),
        "box": (["lung", "tube"], ["box is the whole picture"], {}),
        "image_level": (["lung", "tube"], [], {"image_level": "probe"}),
    }
    for choice, (labels, faults, metadata) in expected.items():
        sample = read(tmp_path, without_mask=choice)
        assert [r.label for r in sample.regions] == labels
        assert [f.reason for f in sample.faults] == faults
        assert all(f.regions == 1 for f in sample.faults)
        assert sample.metadata == metadata
    assert sample.regions[1].bbox == [1.5, 2, 4, 3]
    assert sample.regions[1].rle is None


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"label": " "}, "region without a label"),
        ({"left": "x"}, "box is not four finite numbers"),
        ({"left": ""}, "box is not four finite numbers"),
        ({"top": "nan"}, "box of a mask is not in whole pixels"),
        ({"top": 2.5}, "box of a mask is not in whole pixels"),
        ({"width": 0}, "box is degenerate"),
        ({"left": 27}, "box reaches outside the image"),
        ({"left": -1}, "box reaches outside the image"),
        ({"width": 5}, "mask is of another size than its box"),
        ({"mask": "masks/no.png"}, "mask file is missing"),
        ({"mask": "../masks/m.png"}, "mask file is missing"),
        ({"size": "20x30"}, "image is of another size than stated"),
        ({"size": "large"}, "stated size is not WIDTHxHEIGHT"),
    ],
)
def test_broken_rows(tmp_path: Path, cells: dict[str, Any], reason: str) -> None:
    make(tmp_path, [row(), row(**cells)])
    sample = read(tmp_path, resolution_column="size")
    assert len(sample.regions) == 1
    assert [(f.reason, f.images, f.regions) for f in sample.faults] == [(reason, 0, 1)]


def test_broken_mask_files(tmp_path: Path) -> None:
    make(tmp_path, [row()])
    (tmp_path / "masks" / "m.png").write_bytes(b"x")
    assert [f.reason for f in read(tmp_path).faults] == ["mask file can't be decoded"]
    make(tmp_path, [row()], np.zeros((3, 4), np.uint8))
    assert [f.reason for f in read(tmp_path).faults] == ["mask has no alpha channel"]


def test_what_does_not_fit_together(tmp_path: Path) -> None:
    make(tmp_path, [row(), row(image="gone.png"), row(image="gone.png", mask="masks/gone.png"), row(image="")])
    save(tmp_path / "images" / "b.png", np.zeros((20, 30), np.uint8))
    save(tmp_path / "masks" / "orphan.png", np.zeros((3, 4), np.uint8))
    save(tmp_path / "masks" / "gone.png", np.zeros((3, 4), np.uint8))
    found = reader(tmp_path).scan()
    assert [entry.image for entry in found if isinstance(entry, Entry)] == ["images/a.png"]
    assert [(f.reason, f.images, f.regions) for f in found if isinstance(f, Fault)] == [
        ("row names no image", 0, 1),
        ("image file is missing", 1, 2),
        ("image without an annotation", 1, 0),
        ("mask file is in no row of the table", 0, 1),
    ]


def test_image_that_cannot_be_opened(tmp_path: Path) -> None:
    make(tmp_path, [row(), row()])
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    with pytest.raises(UnusableError) as caught:
        read(tmp_path)
    assert (caught.value.fault.images, caught.value.fault.regions) == (1, 2)


def test_column_that_is_not_there(tmp_path: Path) -> None:
    make(tmp_path, [row()])
    with pytest.raises(MedpclipError, match=r"no column 'Left' \(did you mean 'left'.*options.left"):
        reader(tmp_path, left="Left").scan()


@pytest.mark.skipif(not Path(DATA, "cxr_structures").is_dir(), reason="MEDPCLIP_DATA doesn't name the real data")
def test_real_structures_of_chest_radiographs() -> None:
    columns = {"image_column": "Filename", "mask_column": "Mask", "label_column": "Class"}
    columns |= {side.lower(): side for side in ("Left", "Top", "Width", "Height")}
    own = PlacedMaskReader(
        Path(DATA) / "cxr_structures",
        PlacedMaskOptions(table="structure.csv", resolution_column="Resolution", inside="brightness", **columns),
    )
    entries = own.scan()
    assert len(entries) == 29
    labels, reasons = Counter[str](), Counter[str]()
    for entry in entries:
        assert isinstance(entry, Entry)
        sample = own.read(entry)
        labels.update(region.label.removeprefix("COVID-19 ") for region in sample.regions)
        reasons.update(fault.reason for fault in sample.faults)
    assert (labels["Airways"], labels["Ground Glass Opacities"], labels["Monitoring Probes"]) == (29, 28, 5)
    assert labels.total() == 175
    assert reasons == {"box is the whole picture": 6}
