"""A source of which one file in a hundred is damaged: exactly these are reported, and nothing else is lost."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.config import from_mapping
from medpclip.data.building.build import build
from medpclip.data.building.privacy import Salt
from medpclip.data.building.recipe import Recipe
from medpclip.data.shards import ShardFolder

SALT = Salt(b"a secret that only tests know", "test")
IMAGES, SIZE = 400, 24
# The files that are damaged, of each kind of file one in a hundred, at places that have nothing to do with each other.
BROKEN_IMAGES = {17: b"no picture", 101: b"", 257: "cut", 399: "missing"}
Written = dict[str, Any]


def name(i: int) -> str:
    return f"case{i:04d}"


def box(i: int) -> tuple[int, int, int, int]:
    """x, y, width, height of the one region of an image."""
    return i % 9, i % 7, 5 + i % 5, 4 + i % 6


def mask(i: int) -> np.ndarray:
    x, y, w, h = box(i)
    out = np.zeros((SIZE, SIZE), np.uint8)
    out[y : y + h, x : x + w] = 1
    return out


def write_images(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    for i in range(IMAGES):
        path = folder / "images" / f"{name(i)}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (SIZE, SIZE), np.uint8)).save(path)
        damage = BROKEN_IMAGES.get(i)
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:200])
        elif isinstance(damage, bytes):
            path.write_bytes(damage)


def coco(folder: Path) -> Written:
    images = [{"id": i, "file_name": f"{name(i)}.png", "width": SIZE, "height": SIZE} for i in range(IMAGES)]
    boxes = [{"image_id": i, "category_id": 1, "bbox": list(box(i))} for i in range(IMAGES)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return {}


def yolo(folder: Path) -> Written:
    (folder / "labels").mkdir()
    for i in range(IMAGES):
        x, y, w, h = (value / SIZE for value in box(i))
        (folder / "labels" / f"{name(i)}.txt").write_text(f"0 {x + w / 2} {y + h / 2} {w} {h}\n")
    return {"classes": {"0": "cell"}}


def label_mask(folder: Path) -> Written:
    (folder / "masks").mkdir()
    for i in range(IMAGES):
        Image.fromarray(mask(i)).save(folder / "masks" / f"{name(i)}.png")
    return {"values": {"1": "cell"}}


def voc(folder: Path) -> Written:
    (folder / "Annotations").mkdir()
    for i in range(IMAGES):
        x, y, w, h = box(i)
        corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        size = f"<size><width>{SIZE}</width><height>{SIZE}</height></size>"
        text = f"<annotation>{size}<object><name>cell</name><bndbox>{corners}</bndbox></object></annotation>"
        (folder / "Annotations" / f"{name(i)}.xml").write_text(text)
    return {"images": "images"}


def csv_boxes(folder: Path) -> Written:
    with open(folder / "boxes.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "label", "x", "y", "width", "height"])
        table.writerows([name(i), "cell", *box(i)] for i in range(IMAGES))
    columns = {side: side for side in ("x", "y", "width", "height")}
    return {"table": "boxes.csv", "label_column": "label", "columns": columns}


def points(folder: Path) -> Written:
    (folder / "labels").mkdir()
    for i in range(IMAGES):
        (folder / "labels" / f"{name(i)}.txt").write_text(f"{box(i)[0] + 1} {box(i)[1] + 1} 0\n")
    return {"classes": {"0": "cell"}}


@pytest.mark.parametrize("write", [coco, csv_boxes, label_mask, points, voc, yolo], ids=lambda write: write.__name__)
def test_one_file_in_a_hundred(tmp_path: Path, write: Callable[[Path], Written]) -> None:
    folder = tmp_path / "source"
    write_images(folder)
    options = write(folder)
    stated = {"name": "test", "title": "t", "modality": "microscopy", "licence": "MIT", "citation": "c"}
    recipe = from_mapping(
        Recipe, stated | {"reader": write.__name__, "options": options, "terms": {"cell": "cell"}}, "test"
    )
    manifest = build(recipe, folder, tmp_path / "out", SALT)
    good = IMAGES - len(BROKEN_IMAGES)
    assert manifest["images"]["written"] == good == len(ShardFolder(tmp_path / "out"))
    assert manifest["regions"] == {"found": IMAGES, "written": good, "quarantined": len(BROKEN_IMAGES)}
    lines = [json.loads(line) for line in (tmp_path / "out.private" / "quarantine.jsonl").read_text().splitlines()]
    assert len(lines) == len(BROKEN_IMAGES)
    # A missing image is reported where its annotation is, unreadable ones by their own name.
    assert sum(line["regions"] for line in lines) == len(BROKEN_IMAGES)
    told = " ".join(line["file"] + line["detail"] for line in lines)
    by_name = [i for i in BROKEN_IMAGES if BROKEN_IMAGES[i] != "missing"]
    assert all(name(i) in told for i in by_name)
    assert all(line["remedy"] for line in lines)
