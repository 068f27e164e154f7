"""YOLO: one text file per image with a line per object, in fractions of the image's width and height.

Conventions. `lines: box` means "class cx cy width height", the centre first; `lines: polygon` means "class x1 y1 x2 y2
..." with three corners or more, as YOLO's segmentation and oriented boxes have it; `lines: auto` takes lines of five
numbers as boxes and longer ones as polygons (keypoints look like polygons: don't use it there). With `confidence` a
line may have one number more at its end; it becomes the region's metadata "confidence". x goes right and y down.

A label file belongs to the image of the same path below the other folder ("images/a/1.jpg", "labels/a/1.txt"); below
patterns, to that of the same path without the folders that the patterns name in full ("train/images/1.jpg" and
"train/labels/1.txt" with "*/images/*" and "*/labels/*"). An empty file means that there is no object. A missing one
usually means the same, but might be lost: `missing` says which it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medpclip.data.pictures import PictureError, read_size
from medpclip.data.readers.base import Entry, Fault, ImageReader, RawRegion, RawSample, UnusableError
from medpclip.data.readers.files import list_files, list_images, pair
from medpclip.data.readers.text_files import check_classes, class_names, read_lines, tree_key, whole_number

_ROUNDING = 1e-3  # by which a fraction may leave 0..1 without being doubted
_NAMES = "classes.txt"  # annotation tools write it among the label files


@dataclass(frozen=True)
class YoloOptions:
    """Options of the reader "yolo".

    Attributes:
        classes: number -> the source's label; YAML wants the numbers quoted; or
        names: a file of the source that has them: classes.txt or data.yaml.
        images: folder or pattern of the images.
        labels: folder or pattern of the text files.
        lines: "box", "polygon" or "auto", see the module.
        confidence: whether lines may end with a confidence.
        missing: what an image without a text file is: "fault", or "empty", an image without objects.
    """

    classes: dict[str, str] = field(default_factory=dict)
    names: str | None = None
    images: str = "images"
    labels: str = "labels"
    lines: Literal["box", "polygon", "auto"] = "box"
    confidence: bool = False
    missing: Literal["fault", "empty"] = "fault"

    def __post_init__(self) -> None:
        if bool(self.classes) == (self.names is not None):
            raise ValueError("give one of 'classes' (number -> label) and 'names' (a file)")
        check_classes(self.classes)


class YoloReader(ImageReader[YoloOptions]):
    """Boxes and polygons from YOLO text files; the conventions are in the module's description."""

    name = "yolo"

    def __init__(self, source: Path, options: YoloOptions) -> None:
        super().__init__(source, options)
        self._names: dict[str, str] | None = None

    def scan(self) -> list[Entry | Fault]:
        options = self.options
        self._labels()  # a names file that's missing should be known before the work begins
        images, faults = list_images(self.source, options.images, "options.images")
        labels = list_files(self.source, options.labels, "options.labels", (".txt",))
        image_key, label_key = tree_key(self.source, options.images), tree_key(self.source, options.labels)
        known = {image_key(image) for image in images}
        names = {self.source / options.names} if options.names else set()
        labels = [p for p in labels if p not in names and (p.name.lower() != _NAMES or label_key(p) in known)]
        paired = pair(self.source, images, labels, image_key, label_key, self.count)
        return [*faults, *(self._forgive(item) for item in paired)]

    def read(self, entry: Entry) -> RawSample:
        path: Path | None = entry.annotation
        if path is None:
            return RawSample()
        file = self.relative(path)
        lines = read_lines(path, file)
        size = (1, 1)
        if lines and entry.image:  # a file without an image is only counted
            try:
                size = read_size(self.source / entry.image)
            except PictureError as error:
                fault = Fault(entry.image, "", error.reason, error.detail, images=1, regions=len(lines))
                raise UnusableError(fault) from None
        sample = RawSample()
        for key, line in lines:
            region = self._region(line, file, key, size)
            if isinstance(region, RawRegion):
                sample.regions.append(region)
            else:
                sample.faults.append(region)
        return sample

    def _forgive(self, item: Entry | Fault) -> Entry | Fault:
        if isinstance(item, Fault) and item.reason == "image without an annotation" and self.options.missing == "empty":
            return Entry(item.file)
        return item

    def _labels(self) -> dict[str, str]:
        if self._names is None:
            self._names = class_names(self.source, self.options.classes, self.options.names)
        return self._names

    def _region(self, line: str, file: str, key: str, size: tuple[int, int]) -> RawRegion | Fault:
        number, *cells = line.split()
        kind, has_confidence = self._kind(len(cells))
        if kind is None:
            reason = "line has another number of values than declared"
            return Fault(file, key, reason, f"{len(cells) + 1} values", regions=1)
        identifier = whole_number(number)
        label = self._labels().get(identifier or "")
        if not label:
            return Fault(file, key, "class has no name in the recipe", repr(number), regions=1)
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            comma = any("," in cell for cell in cells)
            reason = "number has a decimal comma" if comma else "number is missing or is none"
            return Fault(file, key, reason, repr(line[:80]), regions=1)
        metadata = {"confidence": values.pop()} if has_confidence else {}
        if not all(math.isfinite(v) and -_ROUNDING <= v <= 1 + _ROUNDING for v in values):
            return Fault(file, key, "coordinate is not between 0 and 1", repr(line[:80]), regions=1)
        width, height = size
        region = RawRegion(label, file, key, metadata=metadata)
        if kind == "box":
            cx, cy, w, h = values
            region.bbox = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
        else:
            region.polygons = [[v * (height if i % 2 else width) for i, v in enumerate(values)]]
        return region

    def _kind(self, count: int) -> tuple[str | None, bool]:
        """What a line of `count` values behind the class is, and whether the last of them is a confidence."""
        lines = self.options.lines
        box = (4, 5) if self.options.confidence else (4,)
        if lines != "polygon" and count in box:
            return "box", count == 5
        if lines != "box" and count > 3 and (count % 2 == 0 or self.options.confidence):
            return "polygon", count % 2 == 1
        return None, False
