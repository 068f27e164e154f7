"""DICOM pixel data -> stored values, frame by frame, with pydicom and whatever decoders are installed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medpclip.data.pictures.dicom_headers import DICOM_ERRORS, frame_count, number, quiet, text
from medpclip.data.pictures.picture import DECODING_ERRORS, PictureError

if TYPE_CHECKING:
    from pydicom import Dataset

PIXEL_ERRORS = (*DICOM_ERRORS, *DECODING_ERRORS)  # what decoders raise at damaged pixels
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_LAYOUT = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "PhotometricInterpretation")
_UID = re.compile(r"\d+(\.\d+){3,}")
_QUOTED = re.compile(r"'[^']*'")


def require_decoder(header: Dataset) -> None:
    """Raise `PictureError` unless the file's pixels can be decoded with what is installed."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    reason = "DICOM compression can't be decoded here"
    if syntax is None:
        raise PictureError(reason, "the file states no transfer syntax")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise PictureError(reason, _UID.sub("an unknown transfer syntax", syntax.name)) from None
    if not decoder.is_available:
        raise PictureError(reason, f"{syntax.name}: {'; '.join(decoder.missing_dependencies)}")
    deep = (number(header, "BitsStored") or 8) > 8
    if syntax == JPEGExtended12Bit and deep and "pylibjpeg" not in decoder.available_plugins:
        # The other decoders take only its 8-bit variant, and fail as if the file were broken.
        raise PictureError(reason, f"{syntax.name} of more than 8 bits")


def decode_frames(path: Path, frames: Sequence[int]) -> Iterator[np.ndarray | PictureError]:
    """The stored values of some frames, (height, width) or (height, width, 3), or why there are none.

    YBR becomes RGB. Only one frame is in memory at a time, and one that is broken doesn't take the others with it.

    Args:
        path: a DICOM file that has a decoder (see `require_decoder`).
        frames: which ones, counted from 0.
    """
    try:
        with quiet():
            source, whole = _open_pixels(path)
    except PIXEL_ERRORS as error:
        yield from [PictureError("image can't be decoded", anonymous(error))] * len(frames)
        return
    left = list(frames)
    while left:
        if left[0] >= whole:
            yield PictureError("image is truncated", f"{whole} frames are whole")
            left.pop(0)
            continue
        yield from _decode_until_broken(source, left, whole)


def _decode_until_broken(source: Any, left: list[int], whole: int) -> Iterator[np.ndarray | PictureError]:
    """Decode and remove the frames at the head of `left` that the file has, up to the first that is broken."""
    from pydicom.pixels import iter_pixels

    wanted = left[: next((i for i, frame in enumerate(left) if frame >= whole), len(left))]
    stream = iter_pixels(source, indices=wanted)
    for _ in wanted:
        try:
            with quiet():
                result: np.ndarray | PictureError = next(stream)
        except StopIteration:
            result = PictureError("image can't be decoded", "the file has fewer frames than it states")
        except PIXEL_ERRORS as error:
            result = PictureError("image can't be decoded", anonymous(error))
        left.pop(0)
        yield result
        if isinstance(result, PictureError):  # the stream is at its end
            return


def _open_pixels(path: Path) -> tuple[Any, int]:
    """What pydicom shall read frames from, and how many of them are whole.

    pydicom doesn't check the length when it reads frames from a path: behind the end of uncompressed pixels it takes
    what follows in the file, or nothing, for pixels.
    """
    from pydicom import dcmread
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    header = dcmread(path, defer_size=1024, specific_tags=[Tag(keyword) for keyword in (*_PIXELS, *_LAYOUT)])
    element = next((header.get_item(keyword, keep_deferred=True) for keyword in _PIXELS if keyword in header), None)
    if not isinstance(element, RawDataElement):
        raise ValueError("no pixel data")
    syntax = header.file_meta.TransferSyntaxUID
    if syntax == DeflatedExplicitVRLittleEndian:  # has to be unpacked whole, which checks the length
        return dcmread(path), frame_count(header)
    if syntax.is_encapsulated:
        return path, frame_count(header)
    length = min(element.length, path.stat().st_size - element.value_tell)
    bits = math.prod(int(number(header, keyword) or 1) for keyword in _LAYOUT[:4])
    if text(header, "PhotometricInterpretation") == "YBR_FULL_422":
        bits = bits * 2 // 3  # two pixels share their colour
    return path, min(frame_count(header), 8 * length // max(bits, 1))


def anonymous(error: Exception) -> str:
    """What an error says, without the values that it may quote."""
    return f"{type(error).__name__}: {_QUOTED.sub('...', _UID.sub('UID', ' '.join(str(error).split())))}"
