"""DICOM: images of any kind, with regions from SEG and RTSTRUCT files that lie among them.

Every DICOM file of a folder is looked at, whatever its name: it is known by the mark behind its preamble. Images are
windowed as `medpclip.data.pictures.dicom` says; a multi-frame file gives one picture per frame. How SEG frames and
RTSTRUCT contours find their image, and what they become, is in `dicom_seg` and `dicom_rtstruct`. DICOM objects of
other kinds (reports, presentation states, bulk annotations, doses) are listed as faults without a loss.

Of the values in the headers only geometry, window and bit depth reach pictures and regions; labels do so by the
recipe's terms. `metadata` has a few more by their DICOM keyword, for the recipe's group, labels and attributes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medpclip.data.pictures import Picture, PictureError
from medpclip.data.pictures.dicom import read_dicom_frames
from medpclip.data.pictures.dicom_headers import (
    DICOM_SUFFIXES,
    FrameGroups,
    HeaderError,
    is_dicom,
    number,
    pixel_spacing,
    read_header,
    text,
)
from medpclip.data.readers.base import Entry, Fault, RawRegion, RawSample, Reader, UnusableError
from medpclip.data.readers.dicom.planes import Atlas, ImageFile, order_slices, read_planes, read_tiles
from medpclip.data.readers.dicom.rtstruct import RtRegion, count_rtstruct, place_rtstruct, read_rtstruct
from medpclip.data.readers.dicom.seg import SegFile, SegFrame, all_frames, count_regions, place_seg
from medpclip.data.readers.files import is_document, list_files

if TYPE_CHECKING:
    from pydicom import Dataset

METADATA = (
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "BodyPartExamined",
    "ImageLaterality",
    "Laterality",
    "ViewPosition",
    "PatientSex",
    "PatientAge",
    "BurnedInAnnotation",
)
_GEOMETRY = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "DimensionOrganizationType",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixColumns",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SEG = (_STORAGE + "66.4", _STORAGE + "66.7")  # Segmentation, Label Map Segmentation
_RTSTRUCT = _STORAGE + "481.3"
# They have rows and columns, but show nothing that was imaged: raw data, registrations, surfaces; RT dose.
_NO_IMAGES = (_STORAGE + "66", _STORAGE + "481.2")

Found = dict[int, list[RawRegion | Fault]]


@dataclass(frozen=True)
class DicomOptions:
    """Options of the reader "dicom".

    Attributes:
        files: folder or pattern of the DICOM files, "." for all.
        windows: Modality -> [low, high] in real units (Hounsfield units for CT), as {CT: [-160, 240]}; a modality that
            isn't here gets the file's own window, or percentiles.
        frames: "all", or only the "annotated" ones; an image file without any is a fault then.
        label_from: what the label of a SEG's region is: its "segment_label", or its "property_type" (a code's meaning).
        fraction: from which share of the maximum on a pixel of a FRACTIONAL SEG belongs to the region.
        misnamed: what a SEG frame is that names one frame of an image file and states the place of another: a "fault",
            or, where the places are known to be right, a region at its "place".
        nested: whether an RTSTRUCT contour inside another of its ROI is a "hole", or is filled ("fill").
    """

    files: str = "."
    windows: dict[str, list[float]] = field(default_factory=dict)
    frames: Literal["all", "annotated"] = "all"
    label_from: Literal["segment_label", "property_type"] = "segment_label"
    fraction: float = 0.5
    misnamed: Literal["fault", "place"] = "fault"
    nested: Literal["hole", "fill"] = "hole"

    def __post_init__(self) -> None:
        for modality, window in self.windows.items():
            if len(window) != 2 or not window[0] < window[1]:
                raise ValueError(f"'windows' has {window} for '{modality}'; expected [low, high]")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"'fraction' is {self.fraction}; expected more than 0, at most 1")


@dataclass
class _Annotation:
    """What is known of one image file from the headers alone."""

    image: ImageFile
    seg: list[tuple[SegFile, list[SegFrame]]] = field(default_factory=list)
    rtstruct: list[list[RtRegion]] = field(default_factory=list)


class DicomReader(Reader[DicomOptions]):
    """Images, SEG and RTSTRUCT; the conventions are in the module's description."""

    name = "dicom"
    batch = 1

    def scan(self) -> list[Entry | Fault]:
        images, annotations, faults = self._sort()
        order_slices(image for image in images.values())
        atlas = Atlas(list(images.values()))
        notes = {file: _Annotation(image) for file, image in images.items()}
        for file in annotations:
            faults += self._place(file, atlas, notes)
        entries = [Entry(file, note, note.image.metadata) for file, note in notes.items()]
        return [*faults, *entries]

    def _sort(self) -> tuple[dict[str, ImageFile], list[str], list[Fault]]:
        """Image files by name, names of SEG and RTSTRUCT files, and what is neither."""
        images: dict[str, ImageFile] = {}
        annotations: list[str] = []
        faults: list[Fault] = []
        seen: dict[str, str] = {}
        for path in list_files(self.source, self.options.files, "options.files"):
            file = self.relative(path)
            if not is_dicom(path) and path.suffix.lower() not in DICOM_SUFFIXES:
                if not is_document(path):
                    faults.append(Fault(file, "", "file isn't DICOM"))
                continue
            try:
                header = read_header(path, (*_GEOMETRY, *METADATA))
            except HeaderError as error:  # most likely it was an image
                faults.append(Fault(file, "", "DICOM file can't be read", str(error), images=1))
                continue
            kind = _kind(header)
            instance = text(header, "SOPInstanceUID")
            if kind == "other":
                faults.append(Fault(file, "", "DICOM object is neither image nor SEG nor RTSTRUCT"))
            elif instance and instance in seen:
                lost = self._count(path, kind)
                reason = "DICOM instance is there several times"
                faults.append(Fault(file, "", reason, f"also {seen[instance]}", int(kind == "image"), lost))
            else:
                seen[instance] = file
                if kind == "image":
                    images[file] = _image(file, header)
                else:
                    annotations.append(file)
        return images, annotations, faults

    def _place(self, file: str, atlas: Atlas, notes: dict[str, _Annotation]) -> list[Fault]:
        """Hang what one SEG or RTSTRUCT holds on the images; the faults of what fits nowhere."""
        path = self.source / file
        try:
            header = read_header(path)
        except HeaderError as error:
            return [Fault(file, "", "DICOM file can't be read", str(error))]
        if _kind(header) == "rtstruct":
            contours, faults = place_rtstruct(file, header, atlas)
            for image, regions in contours.items():
                notes[image].rtstruct.append(regions)
            return faults
        seg = SegFile.read(file, header, self.options.label_from)
        by_place = self.options.misnamed == "place"
        frames, faults = place_seg(seg, path, header, atlas, self.options.fraction, by_place)
        for image, placed in frames.items():
            notes[image].seg.append((seg, placed))
        return faults

    def _count(self, path: Path, kind: str) -> int:
        """How many regions a file holds."""
        if kind == "image":
            return 0
        header = read_header(path)
        if kind == "rtstruct":
            return count_rtstruct(header)
        seg = SegFile.read("", header, self.options.label_from)
        return count_regions(seg, path, all_frames(header), self.options.fraction)

    def samples(self, entry: Entry) -> Iterator[RawSample]:
        note: _Annotation = entry.annotation
        path = self.source / entry.image
        found = self._regions(note)
        frames = sorted(found) if self.options.frames == "annotated" else list(range(note.image.frames))
        if not frames:
            raise UnusableError(Fault(entry.image, "", "image without an annotation", images=1))
        lost: list[tuple[int, PictureError]] = []
        for frame, picture in zip(frames, self._pictures(path, frames), strict=True):
            if isinstance(picture, PictureError):
                lost.append((frame, picture))
            else:
                yield _sample(note.image, frame, picture, found[frame])
        if lost:
            raise UnusableError(_lost(entry.image, lost, found))

    def _pictures(self, path: Path, frames: Sequence[int]) -> Iterator[Picture | PictureError]:
        try:
            yield from read_dicom_frames(path, frames, self.options.windows)
        except PictureError as error:  # raised before the first
            yield from [error] * len(frames)

    def _regions(self, note: _Annotation) -> Found:
        """For each frame its regions, and the faults of those that can't be read."""
        found: Found = defaultdict(list)
        for seg, frames in note.seg:
            for frame, region in seg.regions(self.source / seg.file, frames, self.options.fraction):
                found[frame].append(region)
        for regions in note.rtstruct:
            path = self.source / regions[0].file
            for frame, region in read_rtstruct(path, regions, note.image, self.options.nested):
                found[frame].append(region)
        return found


def _kind(header: Dataset) -> Literal["image", "seg", "rtstruct", "other"]:
    storage, modality = text(header, "SOPClassUID"), text(header, "Modality")
    if storage in _SEG or (not storage and modality == "SEG"):
        return "seg"
    if storage == _RTSTRUCT or (not storage and modality == "RTSTRUCT"):
        return "rtstruct"
    no_image = any(storage == other or storage.startswith(other + ".") for other in _NO_IMAGES)
    return "image" if number(header, "Rows") and number(header, "Columns") and not no_image else "other"


def _image(file: str, header: Dataset) -> ImageFile:
    groups = FrameGroups(header)
    measures = groups.get(0, "PixelMeasuresSequence")
    thickness = [
        number(dataset, keyword)
        for keyword in ("SpacingBetweenSlices", "SliceThickness")
        for dataset in (measures, header)
    ]
    planes = read_planes(header)
    return ImageFile(
        file=file,
        instance=text(header, "SOPInstanceUID"),
        series=text(header, "SeriesInstanceUID"),
        frame_of_reference=text(header, "FrameOfReferenceUID"),
        size=(int(number(header, "Columns") or 0), int(number(header, "Rows") or 0)),
        planes=planes,
        tiles=read_tiles(header),
        spacings=[pixel_spacing(header, groups, frame) for frame in range(len(planes))],
        thickness=next((value for value in thickness if value and value > 0), None),
        metadata={keyword: value for keyword in METADATA if (value := text(header, keyword))},
    )


def _sample(image: ImageFile, frame: int, picture: Picture, found: list[RawRegion | Fault]) -> RawSample:
    place = image.slices[frame]
    return RawSample(
        regions=[region for region in found if isinstance(region, RawRegion)],
        faults=[fault for fault in found if isinstance(fault, Fault)],
        part=f"frame {frame + 1}" if image.frames > 1 else "",
        picture=picture,
        spacing=image.spacings[frame],
        volume=None if place is None else {"index": place.index, "count": place.count, "axis": "slice"},
        metadata={} if place is None else {"volume": place.volume},
    )


def _lost(file: str, lost: list[tuple[int, PictureError]], found: Found) -> Fault:
    """One fault for the frames that have no picture, with all that was annotated in them."""
    regions = sum(
        region.regions if isinstance(region, Fault) else 1 for frame, _ in lost for region in found.get(frame, [])
    )
    reason, _ = Counter(error.reason for _, error in lost).most_common(1)[0]
    frames = ", ".join(str(frame + 1) for frame, _ in lost)
    return Fault(file, f"frame {frames}", reason, lost[0][1].detail, images=len(lost), regions=regions)
