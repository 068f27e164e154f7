"""Pascal VOC: one XML file per image with the corners of its boxes.

Conventions. The VOC development kit counts pixels from 1 and means the last pixel to be inside, but most tools that
write VOC today put pixel edges there, counted from 0. `corners` says which: "edges" (the default) takes the published
values as edges, so a box is [xmin, ymin, xmax - xmin, ymax - ymin]; "inclusive" is the development kit's,
[xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1].

An XML file belongs to the image of the same name (sub-folders included; below patterns, folders tell images of one name
apart, as in "label_mask"); where there is none, to the only image of the name that `filename` states. The `path` tag is
never used: it points into the annotator's machine. A `size` of zero, as some tools write it, states nothing; any other
that differs from the image's makes its boxes doubtful, and they are quarantined.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from medpclip.data.readers.base import Entry, Fault, ImageReader, RawRegion, RawSample, UnusableError
from medpclip.data.readers.files import list_files, list_images, pair
from medpclip.data.readers.text_files import parallel_keys

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocOptions:
    """Options of the reader "voc".

    Attributes:
        images: folder or pattern of the images.
        annotations: folder or pattern of the XML files.
        corners: "edges" or "inclusive", see the module.
        declared_size: "check" quarantines the boxes of an image of another size than the XML's; "ignore" doesn't.
    """

    images: str = "JPEGImages"
    annotations: str = "Annotations"
    corners: Literal["edges", "inclusive"] = "edges"
    declared_size: Literal["check", "ignore"] = "check"


class VocReader(ImageReader[VocOptions]):
    """Boxes from VOC XML; the convention is in the module's description."""

    name = "voc"

    def scan(self) -> list[Entry | Fault]:
        options = self.options
        images, faults = list_images(self.source, options.images, "options.images")
        annotations = list_files(self.source, options.annotations, "options.annotations", (".xml",))
        key, owner = parallel_keys(self.source, (options.images, images, ""), (options.annotations, annotations, ""))
        known = {key(image): image for image in images}
        times = Counter(image.name for image in images)
        by_name = {image.name: key(image) for image in images if times[image.name] == 1}

        def belongs_to(path: Path) -> str:
            stem = owner(path)
            return stem if stem in known else by_name.get(_stated_name(path), stem)

        return [*faults, *pair(self.source, images, annotations, key, belongs_to, self.count)]

    def read(self, entry: Entry) -> RawSample:
        path: Path = entry.annotation
        file = self.relative(path)
        try:
            root = _parse(path)
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            raise UnusableError(Fault(file, "", "annotation file can't be read as XML", str(error), images=1)) from None
        sample = RawSample(size=_size(root) if self.options.declared_size == "check" else None)
        for i, item in enumerate(root.iter("object")):
            region = self._region(item, file, f"object[{i}]")
            if isinstance(region, RawRegion):
                sample.regions.append(region)
            else:
                sample.faults.append(region)
        return sample

    def _region(self, item: ElementTree.Element, file: str, key: str) -> RawRegion | Fault:
        label = (item.findtext("name") or "").strip()
        if not label:
            return Fault(file, key, "region without a label", regions=1)
        box = item.find("bndbox")
        if box is None:
            return Fault(file, key, "region without a box", regions=1)
        texts = [(box.findtext(name) or "").strip() for name in _CORNERS]
        try:
            x1, y1, x2, y2 = (float(text) for text in texts)
        except ValueError:
            return Fault(file, key, "box is not four finite numbers", repr(texts), regions=1)
        if self.options.corners == "inclusive":
            x1, y1 = x1 - 1, y1 - 1
        return RawRegion(label, file, key, bbox=[x1, y1, x2 - x1, y2 - y1])


def _parse(path: Path) -> ElementTree.Element:
    data = path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("it declares a document type, which VOC has no use for")  # and which can grow without bound
    return ElementTree.fromstring(data)


def _stated_name(path: Path) -> str:
    """The base name of the image that the XML states; empty where it states none or doesn't parse."""
    try:
        stated = (_parse(path).findtext("filename") or "").strip()
    except (ElementTree.ParseError, OSError, ValueError, LookupError):
        return ""
    return PureWindowsPath(stated).name if "\\" in stated else PurePosixPath(stated).name


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(root.findtext(f"size/{name}") or 0)) for name in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None
