"""COCO JSON: boxes, polygons and run lengths of many images in one file.

Conventions. `bbox` is [x, y, width, height] in pixels with the origin at the top left corner; some files have corners
there, [xmin, ymin, xmax, ymax], which `boxes: corners` reads (MIDOG does so). `segmentation` is a list
of polygons, or run lengths with `counts` as a string (compressed) or a list (column-major, starting with background);
an empty list or null means that there is only the box. Numbers and their text are the same id ("12" is 12).

`file_name` is looked for below `images`, then below the source, then by its base name where only one image has it.
The image's whole entry is its metadata: recipes reach into it with dots, as "metadata.patientid". So is the annotation's
entry the region's, without its box and mask: "attributes.side" reaches what CVAT writes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from medpclip.data.readers.base import Entry, Fault, ImageReader, RawRegion, RawSample
from medpclip.data.readers.files import is_pattern, list_files, list_images, require_inside
from medpclip.errors import MedpclipError

_GEOMETRY = ("bbox", "segmentation", "keypoints")


@dataclass(frozen=True)
class CocoOptions:
    """Options of the reader "coco".

    Attributes:
        annotations: the JSON file, or several, or patterns such as "*/_annotations.coco.json".
        images: folder or pattern of the images.
        boxes: what the four numbers of `bbox` are: "size" (x, y, width, height), or "corners".
        declared_size: "check" quarantines the regions of an image of another size than the JSON's; "ignore" doesn't.
    """

    annotations: str | list[str] = "annotations.json"
    images: str = "images"
    boxes: Literal["size", "corners"] = "size"
    declared_size: Literal["check", "ignore"] = "check"


@dataclass
class _Listed:
    """An image's entry in a JSON file with its annotations, each with its position."""

    file: str
    position: int
    image: dict[str, Any]
    annotations: list[tuple[int, dict[str, Any]]]
    categories: dict[str, str]


class CocoReader(ImageReader[CocoOptions]):
    """Boxes, polygons and run lengths from COCO JSON; the conventions are in the module's description."""

    name = "coco"

    def scan(self) -> list[Entry | Fault]:
        paths = self._files()
        images, out = list_images(self.source, self.options.images, "options.images")
        finder = _ImageFinder(self.source, self.options.images, images)
        found: list[tuple[_Listed, Path]] = []
        scanned: list[Entry | Fault] = [*out]
        for path in paths:
            listed, faults = _load(path, self.relative(path))
            scanned += faults
            for item in listed:
                image = finder.find(item.image.get("file_name"))
                if image is None:
                    scanned.append(_lost(item, "image file is missing", repr(item.image.get("file_name"))))
                else:
                    found.append((item, image))
        times = Counter(image for _, image in found)
        for item, image in found:
            if times[image] > 1:
                scanned.append(_lost(item, "image is listed several times", self.relative(image)))
            else:
                scanned.append(Entry(self.relative(image), item, item.image))
        unlisted = [image for image in images if image not in times]
        scanned += [Fault(self.relative(image), "", "image without an annotation", images=1) for image in unlisted]
        return scanned

    def read(self, entry: Entry) -> RawSample:
        item: _Listed = entry.annotation
        sample = RawSample(size=_size(item.image) if self.options.declared_size == "check" else None)
        for position, annotation in item.annotations:
            key = f"annotations[{position}]"
            label = item.categories.get(_id(annotation.get("category_id")))
            if label is None:
                detail = f"category_id is {annotation.get('category_id')!r}"
                sample.faults.append(Fault(item.file, key, "category is not declared", detail, regions=1))
                continue
            region = RawRegion(label, item.file, key, bbox=self._box(annotation.get("bbox")))
            region.metadata = {name: value for name, value in annotation.items() if name not in _GEOMETRY}
            region.iscrowd = int(annotation.get("iscrowd") in (1, True, "1"))
            segmentation = annotation.get("segmentation")
            if isinstance(segmentation, list) and segmentation:
                flat = all(isinstance(value, (int, float)) for value in segmentation)
                region.polygons = [segmentation] if flat else segmentation
            elif segmentation:
                region.rle = segmentation
            sample.regions.append(region)
        return sample

    def _files(self) -> list[Path]:
        """The JSON files that the options name."""
        names = self.options.annotations
        out: list[Path] = []
        for name in [names] if isinstance(names, str) else names:
            require_inside(name, "options.annotations")
            pattern = is_pattern(self.source, name) and not (self.source / name).is_file()
            out += list_files(self.source, name, "options.annotations") if pattern else [self.source / name]
        return list(dict.fromkeys(out))

    def _box(self, bbox: Any) -> Any:
        """As [x, y, width, height], if it is four numbers; else as it is, for the build to refuse."""
        four = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, (int, float)) for value in bbox)
        if not four or self.options.boxes == "size":
            return bbox or None
        xmin, ymin, xmax, ymax = bbox
        return [xmin, ymin, xmax - xmin, ymax - ymin]


class _ImageFinder:
    """Finds the image that a `file_name` means, never outside of the source."""

    def __init__(self, source: Path, where: str, images: list[Path]) -> None:
        self.bases = [source] if is_pattern(source, where) else [source / where, source]
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for image in images:
            self.by_name[image.name].append(image)

    def find(self, name: Any) -> Path | None:
        if not isinstance(name, str) or not name or "\0" in name:
            return None
        parts = PurePosixPath(name.replace("\\", "/"))
        if not parts.is_absolute() and ".." not in parts.parts:
            for base in self.bases:
                path = base / parts
                if path.is_file():
                    return path
        same = self.by_name.get(parts.name, [])
        return same[0] if len(same) == 1 else None


def _load(path: Path, file: str) -> tuple[list[_Listed], list[Fault]]:
    """The images of one JSON file that have an id of their own, and a fault for everything else."""
    data = _read_json(path)
    categories = {
        _id(c["id"]): c["name"]
        for c in data["categories"]
        if isinstance(c, dict) and "id" in c and isinstance(c.get("name"), str)
    }
    listed: dict[str, list[_Listed]] = defaultdict(list)
    faults: list[Fault] = []
    for i, image in enumerate(data["images"]):
        if isinstance(image, dict) and "id" in image:
            listed[_id(image["id"])].append(_Listed(file, i, image, [], categories))
        else:
            faults.append(Fault(file, f"images[{i}]", "image entry without an id", images=1))
    for i, annotation in enumerate(data["annotations"]):
        key = f"annotations[{i}]"
        if not isinstance(annotation, dict):
            faults.append(Fault(file, key, "annotation is not an object", repr(annotation)[:80], regions=1))
        elif owners := listed.get(_id(annotation.get("image_id"))):
            owners[0].annotations.append((i, annotation))
        else:
            detail = f"image_id is {annotation.get('image_id')!r}"
            faults.append(Fault(file, key, "annotation without an image", detail, regions=1))
    for owners in listed.values():
        if len(owners) > 1:  # whose are the annotations? Nobody knows.
            faults += [_lost(item, "several images share one id", repr(item.image["id"])) for item in owners]
    return [owners[0] for owners in listed.values() if len(owners) == 1], faults


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        remedy = "check --source, or the recipe's key 'options.annotations'"
        raise MedpclipError(f"{path}: {error.strerror}; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise MedpclipError(f"{path}: broken JSON ({error}); restore the file") from None
    if not isinstance(data, dict):
        raise MedpclipError(f"{path}: holds a {type(data).__name__}; expected an object with 'images', 'annotations'")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            kind = type(data[key]).__name__ if key in data else "missing"
            raise MedpclipError(f"{path}: key '{key}' is {kind}, expected a list; is this a COCO instances file?")
    return data


def _lost(item: _Listed, reason: str, detail: str) -> Fault:
    return Fault(item.file, f"images[{item.position}]", reason, detail, images=1, regions=len(item.annotations))


def _id(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    try:
        width, height = int(image.get("width") or 0), int(image.get("height") or 0)
    except (TypeError, ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None
