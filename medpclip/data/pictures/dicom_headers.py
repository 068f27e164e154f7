"""What the headers of DICOM files say, frame by frame: enough to place, scale and window the pixels, and no more.

An "enhanced" multi-frame file states such things per frame or once for all, in functional groups (DICOM PS3.3, section
C.7.6.16); other files state them at the top. pydicom is imported inside the functions.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_SUFFIXES = (".dcm", ".dicom")
_MAGIC_AT = 128
_MAGIC = b"DICM"
# What pydicom and the decoders raise at damaged or odd files.
DICOM_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,  # NotImplementedError is one
    RecursionError,
    struct.error,
    zlib.error,
)
# Modalities whose pictures usually carry text, as the scanner's screen shows it (see `suspects_text`).
_MODALITIES_WITH_TEXT = frozenset(("US", "IVUS", "ES", "SC", "OT", "SMR", "OPT"))
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


class HeaderError(Exception):
    """A file that isn't DICOM, or whose header is broken; the message quotes no value of it."""


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's mark behind its preamble (PS3.10, section 7.1)."""
    try:
        with open(path, "rb") as stream:
            return stream.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC
    except OSError:
        return False


def read_header(source: Path, keywords: Sequence[str] = ()) -> Dataset:
    """All of a file but its pixels, or only the elements that `keywords` name.

    Raises:
        HeaderError: no DICOM file (the mark behind the preamble is missing), or a broken one.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.tag import Tag

    try:
        with quiet():
            wanted: list[Any] | None = [Tag(keyword) for keyword in keywords] or None
            header = dcmread(source, stop_before_pixels=True, specific_tags=wanted)
            # A damaged number of frames would keep us busy for hours. Each takes a bit at the very least.
            if (number(header, "NumberOfFrames") or 0) > 8 * source.stat().st_size:
                raise HeaderError("it states more frames than it can hold")
            return header
    except InvalidDicomError:
        raise HeaderError("the mark 'DICM' behind the preamble is missing") from None
    except DICOM_ERRORS as error:  # its text may quote a value
        raise HeaderError(type(error).__name__) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings to itself (they quote the values that they doubt); its errors become `DICOM_ERRORS`."""
    from pydicom.errors import BytesLengthException  # derives from Exception alone

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except BytesLengthException as error:
            raise ValueError(str(error)) from None


def text(dataset: Dataset, keyword: str) -> str:
    """An element's value as text without blanks around it; "" where it is missing, empty or can't be read."""
    try:
        with quiet():
            value = dataset.get(keyword)
    except DICOM_ERRORS:
        return ""
    return "" if value is None else str(value).strip()


def numbers(dataset: Dataset | None, keyword: str, count: int = 0) -> list[float] | None:
    """An element's values as finite floats; None where they are missing, not numbers, or fewer than `count`."""
    if dataset is None:
        return None
    try:
        with quiet():
            value = dataset.get(keyword)
            if value is None or value == "":
                return None
            several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
            found = [float(item) for item in (value if several else [value])]
    except DICOM_ERRORS:
        return None
    if len(found) < max(count, 1) or not all(map(math.isfinite, found)):
        return None
    return found[:count] if count else found


def number(dataset: Dataset | None, keyword: str) -> float | None:
    """The first of an element's numbers, or None."""
    found = numbers(dataset, keyword)
    return found[0] if found else None


def items(dataset: Dataset | None, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is missing or can't be read."""
    if dataset is None:
        return []
    try:
        with quiet():
            return list(dataset.get(keyword) or [])
    except DICOM_ERRORS:
        return []


def first(dataset: Dataset | None, keyword: str) -> Dataset | None:
    """The first item of a sequence, or None."""
    found = items(dataset, keyword)
    return found[0] if found else None


def frame_count(header: Dataset) -> int:
    """How many frames the file has; at least one."""
    return max(int(number(header, "NumberOfFrames") or 1), 1)


class FrameGroups:
    """The functional groups of a multi-frame file.

    Args:
        header: of any file; one without functional groups gives None for everything.
    """

    def __init__(self, header: Dataset) -> None:
        self.shared = first(header, "SharedFunctionalGroupsSequence")
        self.per_frame = items(header, "PerFrameFunctionalGroupsSequence")

    def get(self, frame: int, keyword: str) -> Dataset | None:
        """The first item of a functional group for a frame (counted from 0): its own, or the shared one."""
        own = first(self.per_frame[frame], keyword) if frame < len(self.per_frame) else None
        return own if own is not None else first(self.shared, keyword)

    def all(self, frame: int, keyword: str) -> list[Dataset]:
        """All items of a functional group for a frame."""
        own = items(self.per_frame[frame], keyword) if frame < len(self.per_frame) else []
        return own or items(self.shared, keyword)


def pixel_spacing(header: Dataset, groups: FrameGroups, frame: int) -> list[float] | None:
    """[sy, sx] millimetres from row to row and from column to column.

    In the patient where the file says so (Pixel Spacing), else on the detector (Imager Pixel Spacing, which magnification
    makes larger than in the patient) or on the scanned film.
    """
    for dataset, keyword in (
        (groups.get(frame, "PixelMeasuresSequence"), "PixelSpacing"),
        (header, "PixelSpacing"),
        (header, "ImagerPixelSpacing"),
        (header, "NominalScannedPixelSpacing"),
    ):
        found = numbers(dataset, keyword, 2)
        if found and min(found) > 0:
            return found
    return None


def suspects_text(header: Dataset) -> bool:
    """Whether text (often a name) may be burned into the pixels.

    Burned In Annotation decides where it is filled. Where it isn't, text is usual in ultrasound and endoscopy (the
    console draws it), in "other" and secondary capture (screen shots, scanned film, dose sheets), so these are suspect;
    cross-sectional and projection images as the detector made them aren't. Our reading of the risks that DICOM PS3.15,
    annex E.3.1 (Clean Pixel Data) names.
    """
    stated = text(header, "BurnedInAnnotation").upper()
    if stated in ("YES", "NO"):
        return stated == "YES"
    storage = text(header, "SOPClassUID")
    captured = storage == _SECONDARY_CAPTURE or storage.startswith(_SECONDARY_CAPTURE + ".")
    captured = captured or bool(text(header, "ConversionType"))
    screen = "SCREEN" in text(header, "ImageType").upper()
    return captured or screen or text(header, "Modality").upper() in _MODALITIES_WITH_TEXT
