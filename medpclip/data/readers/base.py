"""What every reader gives: entries to read, samples in the source's own words, and faults. Nothing vanishes.

A reader works in two steps. `scan` lists the source: one `Entry` per image file that has its annotation, one `Fault`
for everything that doesn't fit together; it opens as little as it can. `samples` then turns one entry into its
`RawSample`s: one for a plain image, several for a volume or a multi-frame file. So the build knows how many entries
there are before it starts, may share them out and take them in any order, and holds one at a time in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from medpclip.data.pictures import Picture
from medpclip.data.readers.remedies import REMEDIES

Options = TypeVar("Options")


@dataclass(frozen=True)
class Fault:
    """One problem of the source, for the quarantine.

    Attributes:
        file: the file at fault, relative to the source, with forward slashes.
        key: where in the file, as "object[3]"; empty for the whole file.
        reason: the kind of problem in fixed words, a key of `REMEDIES`. Shareable files count it: it must quote nothing
            of the source.
        detail: what exactly was found. Private.
        images: how many images are lost by it.
        regions: how many regions are lost by it.
    """

    file: str
    key: str
    reason: str
    detail: str = ""
    images: int = 0
    regions: int = 0

    def __post_init__(self) -> None:
        assert self.reason in REMEDIES, f"no remedy for {self.reason!r}"

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.reason]


class UnusableError(Exception):
    """Raised by `Reader.samples` when an entry (or what is left of it) can't be used; the fault counts what is lost."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


@dataclass
class RawRegion:
    """A region as the source states it. At least one of `bbox`, `rle`, `polygons` and `points`; none is checked yet.

    Attributes:
        label: the source's own word for what is there.
        file: the annotation file, relative to the source.
        key: where in that file.
        bbox: [x, y, width, height] in pixels, origin at the image's top left corner.
        rle: COCO run lengths {"size": [height, width], "counts": str or list of int}.
        polygons: COCO polygons [[x1, y1, x2, y2, ...], ...] in pixels.
        points: [[x, y], ...] in pixels; each lies inside the region.
        iscrowd: 1 where one annotation covers a group of objects.
        metadata: what else the source says of it; recipes look up attributes here, nothing else gets into a shard.
    """

    label: str
    file: str
    key: str
    bbox: Any = None
    rle: Any = None
    polygons: Any = None
    points: Any = None
    iscrowd: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Entry:
    """One image file of the source and what belongs to it.

    Attributes:
        image: path relative to the source, with forward slashes; no two entries have the same.
        annotation: what the reader needs for `samples`; nobody else looks into it.
        metadata: what the source says of the image; recipes look up groups and labels here.
    """

    image: str
    annotation: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class RawSample:
    """What the source says of one 2-D image and its regions.

    Attributes:
        regions: the regions that could be read.
        faults: those that could not; they count towards the regions found.
        size: (width, height) that the annotation states for the image, or None; regions are only right if it is true.
        part: which image of the file this is, as "z 012" or "frame 3"; empty where the file is one image.
        picture: the image, where the reader makes it; None: the build reads the entry's file.
        spacing: [sy, sx] millimetres per pixel, where known.
        volume: {"index", "count", "axis"} for a slice or frame of a volume; the build adds its salted id.
        metadata: what the source says of this image alone; joins the entry's.
    """

    regions: list[RawRegion] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    size: tuple[int, int] | None = None
    part: str = ""
    picture: Picture | None = None
    spacing: list[float] | None = None
    volume: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class Reader(ABC, Generic[Options]):
    """Reads one annotation format below a source folder.

    Args:
        source: the folder that all paths are relative to.
        options: the reader's own dataclass, as the recipe's `options` fill it.

    Attributes:
        name: what recipes call it.
        batch: how many entries a worker takes at once, at most; 1 where an entry is a volume.
    """

    name: ClassVar[str]
    batch: ClassVar[int] = 64

    def __init__(self, source: Path, options: Options) -> None:
        self.source = source
        self.options = options

    @abstractmethod
    def scan(self) -> list[Entry | Fault]:
        """All that is there, in a fixed order: every image file is in one entry or one fault.

        Raises:
            MedpclipError: a folder or file that the options name is missing or unreadable as a whole.
        """

    @abstractmethod
    def samples(self, entry: Entry) -> Iterator[RawSample]:
        """The images of one entry with their regions, one after the other, each with a `part` of its own.

        Raises:
            UnusableError: the annotation, or what is left of the entry, can't be read.
        """

    def relative(self, path: Path) -> str:
        """A path as faults and entries name it."""
        return path.relative_to(self.source).as_posix()


class ImageReader(Reader[Options]):
    """A reader of formats where one file is one image, in a format that `read_picture` opens."""

    @abstractmethod
    def read(self, entry: Entry) -> RawSample:
        """The regions of one entry.

        Raises:
            UnusableError: the annotation can't be read.
        """

    def samples(self, entry: Entry) -> Iterator[RawSample]:
        yield self.read(entry)

    def count(self, annotation: Any) -> int:
        """How many regions an annotation without an image holds: they are lost with it, and counted."""
        try:
            sample = self.read(Entry("", annotation))
        except UnusableError as unusable:
            return unusable.fault.regions
        return len(sample.regions) + sum(fault.regions for fault in sample.faults)
