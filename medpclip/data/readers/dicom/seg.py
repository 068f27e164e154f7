"""DICOM SEG: finding the image frame that each frame of a segmentation lies on, and the regions it holds.

Read with pydicom alone: it needs no more of a file than its frames and what each of them refers to, where highdicom's
reader also refuses files for blemishes that don't touch the pixels. A frame of BINARY or FRACTIONAL segmentations shows
one segment, one of LABELMAP all of them by number (PS3.3 C.8.20.2). A frame belongs to the image frame that its
derivation names; where it names none or several, to the one that lies at exactly the same place. Where both know their
place, it must be the same in any case: a mask on another grid would be shifted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medpclip.data.pictures import PictureError
from medpclip.data.pictures.dicom_decoding import decode_frames, require_decoder
from medpclip.data.pictures.dicom_headers import FrameGroups, first, frame_count, items, number, numbers, text
from medpclip.data.readers.base import Fault, RawRegion
from medpclip.data.readers.dicom.planes import Atlas, ImageFile, UnplacedError, read_planes, read_tiles
from medpclip.data.schema import encode_mask

if TYPE_CHECKING:
    from pydicom import Dataset

_CODES = {
    "SegmentedPropertyCategory": "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyType": "SegmentedPropertyTypeCodeSequence",
    "AnatomicRegion": "AnatomicRegionSequence",
}
_MODIFIERS = {
    "SegmentedPropertyTypeModifier": ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence"),
    "AnatomicRegionModifier": ("AnatomicRegionSequence", "AnatomicRegionModifierSequence"),
}
_WORDS = ("SegmentLabel", "SegmentAlgorithmType")


@dataclass(frozen=True)
class SegFrame:
    """One frame of a SEG that lies on an image.

    Attributes:
        index: in the SEG, from 0.
        segment: its number; None where pixels have numbers (LABELMAP).
        target: frame of the image, from 0.
    """

    index: int
    segment: int | None
    target: int


@dataclass(frozen=True)
class SegFile:
    """What all frames of a SEG have in common.

    Attributes:
        file: path relative to the source.
        labels: number of a segment -> its label, "" where it has none.
        metadata: number of a segment -> what else is said of it, for recipes.
        maximum: the value that means 1 in a FRACTIONAL one, else None.
        background: the number that means "no segment" in a LABELMAP.
        problem: why its pixels can't be decoded here, as (reason, detail).
    """

    file: str
    labels: dict[int, str]
    metadata: dict[int, dict[str, str]]
    maximum: float | None
    background: int
    problem: tuple[str, str] | None

    @classmethod
    def read(cls, file: str, header: Dataset, label_from: str) -> SegFile:
        """From a header; `label_from` is "segment_label" or "property_type"."""
        facts = {
            int(number(item, "SegmentNumber") or 0): _segment_facts(item) for item in items(header, "SegmentSequence")
        }
        key = "SegmentLabel" if label_from == "segment_label" else "SegmentedPropertyType"
        fractional = text(header, "SegmentationType").upper() == "FRACTIONAL"
        problem = None
        try:
            require_decoder(header)
        except PictureError as error:
            problem = (error.reason, error.detail)
        return cls(
            file,
            {n: known.get(key, "") for n, known in facts.items()},
            facts,
            (number(header, "MaximumFractionalValue") or 255.0) if fractional else None,
            int(number(header, "PixelPaddingValue") or 0),
            problem,
        )

    def regions(
        self, path: Path, frames: Sequence[SegFrame], fraction: float
    ) -> Iterator[tuple[int, RawRegion | Fault]]:
        """The regions of some frames, each with the frame of the image; a segment without a pixel gives none.

        Args:
            path: the file.
            frames: which of its frames.
            fraction: from which share of the maximum on a pixel of a FRACTIONAL SEG counts.
        """
        if self.problem:
            reason, detail = self.problem
            yield from ((f.target, Fault(self.file, _name(f.index), reason, detail, regions=1)) for f in frames)
            return
        for frame, values in zip(frames, decode_frames(path, [f.index for f in frames]), strict=True):
            key = _name(frame.index, frame.segment)
            if isinstance(values, PictureError):
                yield frame.target, Fault(self.file, key, "SEG frame can't be decoded", values.detail, regions=1)
            elif frame.segment is not None:
                mask = values > 0 if self.maximum is None else (values >= fraction * self.maximum) & (values > 0)
                if mask.any():
                    yield frame.target, self._region(frame.segment, mask, key)
            else:
                for segment in np.unique(values).tolist():
                    if segment != self.background:
                        yield frame.target, self._region(segment, values == segment, _name(frame.index, segment))

    def _region(self, segment: int, mask: np.ndarray, key: str) -> RawRegion | Fault:
        if segment not in self.labels:
            return Fault(self.file, key, "SEG describes no segment of this number", regions=1)
        if not self.labels[segment]:
            return Fault(self.file, key, "region without a label", regions=1)
        metadata = dict(self.metadata[segment])
        return RawRegion(self.labels[segment], self.file, key, rle=encode_mask(mask), metadata=metadata)


def place_seg(
    seg: SegFile, path: Path, header: Dataset, atlas: Atlas, fraction: float, by_place: bool = False
) -> tuple[dict[str, list[SegFrame]], list[Fault]]:
    """Image file -> the frames of a SEG that lie on it; and a fault for each reason why others lie on none.

    With `by_place`, a frame that names one frame of an image file and states the place of another lies on the latter.

    The faults count the regions that are lost, for which those frames are decoded.
    """
    placed: dict[str, list[SegFrame]] = defaultdict(list)
    lost: dict[str, list[SegFrame]] = defaultdict(list)
    placing = _Placing(header, atlas, by_place)
    for index in range(placing.frames):
        try:
            segment = placing.segment(index)
        except UnplacedError as error:
            lost[str(error)].append(SegFrame(index, 0, 0))
            continue
        try:
            image, target = placing.place(index)
            placed[image.file].append(SegFrame(index, segment, target))
        except UnplacedError as error:
            lost[str(error)].append(SegFrame(index, segment, 0))
    faults = []
    for reason, frames in lost.items():
        regions = count_regions(seg, path, frames, fraction)
        if regions:
            detail = f"{len(frames)} frames, the first is {_name(frames[0].index)}"
            faults.append(Fault(seg.file, "", reason, detail, regions=regions))
    return placed, faults


def all_frames(header: Dataset) -> list[SegFrame]:
    """Every frame of a SEG, wherever it belongs, for counting."""
    labelmap = text(header, "SegmentationType").upper() == "LABELMAP"
    return [SegFrame(index, None if labelmap else 0, 0) for index in range(frame_count(header))]


def count_regions(seg: SegFile, path: Path, frames: Sequence[SegFrame], fraction: float) -> int:
    """How many regions some frames hold."""
    return sum(1 for _ in seg.regions(path, frames, fraction))


class _Placing:
    """Finds segment and image of each frame of one SEG."""

    def __init__(self, header: Dataset, atlas: Atlas, by_place: bool) -> None:
        self.header, self.atlas, self.by_place = header, atlas, by_place
        self.frames = frame_count(header)
        self.groups = FrameGroups(header)
        self.labelmap = text(header, "SegmentationType").upper() == "LABELMAP"
        self.numbers = [int(number(item, "SegmentNumber") or 0) for item in items(header, "SegmentSequence")]
        self.size = (int(number(header, "Columns") or 0), int(number(header, "Rows") or 0))
        self.planes = read_planes(header)
        # A TILED_FULL one repeats the whole grid for each segment (PS3.3 C.7.6.17.3).
        self.tiles = read_tiles(header, 1 if self.labelmap else max(len(self.numbers), 1))

    def segment(self, index: int) -> int | None:
        """The segment that a frame shows; None where its pixels say so."""
        if self.labelmap:
            return None
        stated = number(self.groups.get(index, "SegmentIdentificationSequence"), "ReferencedSegmentNumber")
        if stated is not None:
            return int(stated)
        if len(self.numbers) == 1:
            return self.numbers[0]
        if text(self.header, "DimensionOrganizationType") == "TILED_FULL" and self.numbers:
            return self.numbers[index * len(self.numbers) // self.frames]
        raise UnplacedError("SEG frame names no segment")

    def place(self, index: int) -> tuple[ImageFile, int]:
        """The image frame that a frame lies on."""
        named = self._named(index)
        if named:
            known = [(self.atlas.by_instance[uid], frames) for uid, frames in named if uid in self.atlas.by_instance]
            if not known:
                raise UnplacedError("image that the annotation names is missing")
            candidates = [(image, frame) for image, frames in known for frame in frames or range(image.frames)]
            if any(not 0 <= frame < image.frames for image, frame in candidates):
                raise UnplacedError("annotation names a frame that its image doesn't have")
            if len(candidates) > 1:
                candidates = [c for c in self._at([image for image, _ in known], index) if c in candidates]
        else:
            candidates = self._at(self._unnamed, index)
        if len(candidates) != 1:
            raise UnplacedError(
                "annotation fits several images" if candidates else "annotation lies on none of the images"
            )
        image, frame = candidates[0]
        if image.size != self.size:
            raise UnplacedError("mask is of another size than the image")
        plane, tile = image.planes[frame], image.tiles[frame]
        mine, own_tile = self.planes[index], self.tiles[index]
        if (plane and mine and not plane.same_place(mine)) or (tile and own_tile and tile != own_tile):
            stated = self._at([image], index) if self.by_place else []
            if len(stated) == 1:
                return stated[0]
            raise UnplacedError("annotation lies elsewhere than the image it names")
        return image, frame

    def _named(self, index: int) -> list[tuple[str, list[int]]]:
        """UIDs of images that a frame was derived from, with their frames (from 0), or an empty list for all."""
        found: dict[tuple[str, tuple[int, ...]], None] = {}
        for derivation in self.groups.all(index, "DerivationImageSequence"):
            for source in items(derivation, "SourceImageSequence"):
                frames = _integers(source, "ReferencedFrameNumber")
                found[(text(source, "ReferencedSOPInstanceUID"), tuple(frame - 1 for frame in frames))] = None
        return [(uid, list(frames)) for uid, frames in found if uid]

    def _at(self, images: Sequence[ImageFile], index: int) -> list[tuple[ImageFile, int]]:
        return self.atlas.at(images, self.planes[index], self.tiles[index])

    @cached_property
    def _unnamed(self) -> list[ImageFile]:
        """The images that a frame without a derivation may lie on: those that the whole SEG names, else its space's."""
        whole = self._whole()
        if whole:
            known = [self.atlas.by_instance[uid] for uid in whole if uid in self.atlas.by_instance]
            if not known:
                raise UnplacedError("image that the annotation names is missing")
            return known
        series = [text(item, "SeriesInstanceUID") for item in items(self.header, "ReferencedSeriesSequence")]
        found = [image for uid in series if uid for image in self.atlas.by_series.get(uid, [])]
        return found or self.atlas.by_frame_of_reference.get(text(self.header, "FrameOfReferenceUID"), [])

    def _whole(self) -> list[str]:
        uids = [
            text(instance, "ReferencedSOPInstanceUID")
            for series in items(self.header, "ReferencedSeriesSequence")
            for instance in items(series, "ReferencedInstanceSequence")
        ]
        uids += [text(item, "ReferencedSOPInstanceUID") for item in items(self.header, "SourceImageSequence")]
        return sorted({uid for uid in uids if uid})


def _segment_facts(item: Dataset) -> dict[str, str]:
    facts = {keyword: text(item, keyword) for keyword in _WORDS}
    for name, keyword in _CODES.items():
        code = first(item, keyword)
        facts[name] = text(code, "CodeMeaning") if code is not None else ""
    for name, (outer, inner) in _MODIFIERS.items():
        code = first(first(item, outer), inner)
        facts[name] = text(code, "CodeMeaning") if code is not None else ""
    return {name: value for name, value in facts.items() if value}


def _integers(dataset: Dataset, keyword: str) -> list[int]:
    return [int(value) for value in numbers(dataset, keyword) or []]


def _name(index: int, segment: int | None = None) -> str:
    return f"frame {index + 1}" if segment is None else f"frame {index + 1}, segment {segment}"
