"""What every reader gives: entries to read, samples in the source's own words, and faults. Nothing vanishes.

A reader works in two steps. `scan` lists the source: one `Entry` per image that has its annotation, one `Fault` for
everything that doesn't fit together. `read` then turns one entry into a `RawSample`, so that the build knows how many
there are before it starts, may take them in any order, and holds one at a time in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

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
    """Raised by `Reader.read` when an entry can't be used at all; the fault counts its image and its regions."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


@dataclass
class RawRegion:
    """A region as the source states it. At least one of `bbox`, `rle` and `polygons`; none of them is checked yet.

    Attributes:
        label: the source's own word for what is there.
        file: the annotation file, relative to the source.
        key: where in that file.
        bbox: [x, y, width, height] in pixels, origin at the image's top left corner.
        rle: COCO run lengths {"size": [height, width], "counts": str or list of int}.
        polygons: COCO polygons [[x1, y1, x2, y2, ...], ...] in pixels.
        iscrowd: 1 where one annotation covers a group of objects.
    """

    label: str
    file: str
    key: str
    bbox: Any = None
    rle: Any = None
    polygons: Any = None
    iscrowd: int = 0


@dataclass
class Entry:
    """One image of the source and what belongs to it.

    Attributes:
        image: path relative to the source, with forward slashes.
        annotation: what the reader needs for `read`; nobody else looks into it.
        metadata: what the source says of the image; recipes look up groups and labels here.
    """

    image: str
    annotation: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class RawSample:
    """What the source says of one image's regions.

    Attributes:
        regions: the regions that could be read.
        faults: those that could not; they count towards the regions found.
        size: (width, height) that the annotation states for the image, or None; regions are only right if it is true.
    """

    regions: list[RawRegion] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    size: tuple[int, int] | None = None


class Reader(ABC, Generic[Options]):
    """Reads one annotation format below a source folder.

    Args:
        source: the folder that all paths are relative to.
        options: the reader's own dataclass, as the recipe's `options` fill it.
    """

    name: ClassVar[str]

    def __init__(self, source: Path, options: Options) -> None:
        self.source = source
        self.options = options

    @abstractmethod
    def scan(self) -> list[Entry | Fault]:
        """All that is there, in a fixed order: every image is in one entry or one fault.

        Raises:
            MedpclipError: a folder or file that the options name is missing or unreadable as a whole.
        """

    @abstractmethod
    def read(self, entry: Entry) -> RawSample:
        """The regions of one entry.

        Raises:
            UnusableError: the annotation can't be read.
        """

    def count(self, annotation: Any) -> int:
        """How many regions an annotation without an image holds: they are lost with it, and counted."""
        try:
            sample = self.read(Entry("", annotation))
        except UnusableError as unusable:
            return unusable.fault.regions
        return len(sample.regions) + sum(fault.regions for fault in sample.faults)

    def relative(self, path: Path) -> str:
        """A path as faults and entries name it."""
        return path.relative_to(self.source).as_posix()
