"""DICOM pixels -> pictures: decompressed, in real units, windowed to 8 bits, grey or RGB.

The order is that of DICOM PS3.4, annex N.2: stored values -> modality transformation (slope and intercept, or a table)
-> window or VOI table -> display, where MONOCHROME1 means that the lowest value is white. The window is, in this order:
the one the caller gives for the file's Modality, the file's first window, its VOI table, or two percentiles; 8-bit
values without any of them stay as they are. Pixels outside the scanner's field (Pixel Padding Value) take no part in
the percentiles and come out black.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medpclip.data.pictures.dicom_decoding import PIXEL_ERRORS, anonymous, decode_frames, require_decoder
from medpclip.data.pictures.dicom_headers import (
    FrameGroups,
    HeaderError,
    first,
    frame_count,
    number,
    quiet,
    read_header,
    suspects_text,
    text,
)
from medpclip.data.pictures.intensity import dicom_window, percentile_range, sigmoid_to_8_bits, window_to_8_bits
from medpclip.data.pictures.picture import Picture, PictureError, encode_picture
from medpclip.files import file_sha256

if TYPE_CHECKING:
    from pydicom import Dataset

_PERCENTILES = (0.5, 99.5)
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # the decoders make RGB of all of them

Windows = Mapping[str, Sequence[float]]


def read_dicom_picture(path: Path, windows: Windows | None = None) -> Picture:
    """The picture of a file with one frame.

    Args:
        path: a DICOM file.
        windows: Modality -> (low, high) in the file's real units, as {"CT": (-160, 240)}.

    Raises:
        PictureError: no DICOM image, several frames, or pixels that can't be decoded.
    """
    frames = frame_count(_open(path))
    if frames > 1:
        raise PictureError("image file has several frames", f"{frames} frames")
    (picture,) = read_dicom_frames(path, [0], windows)
    if isinstance(picture, PictureError):
        raise picture
    return picture


def read_dicom_size(path: Path) -> tuple[int, int]:
    """(width, height) as the header states it.

    Raises:
        PictureError: no DICOM image.
    """
    header = _open(path)
    return int(header.Columns), int(header.Rows)


def read_dicom_frames(
    path: Path, frames: Sequence[int], windows: Windows | None = None
) -> Iterator[Picture | PictureError]:
    """The pictures of some frames, one after the other; only one is in memory at a time.

    Args:
        path: a DICOM file.
        frames: which ones, counted from 0.
        windows: as for `read_dicom_picture`.

    Yields:
        For each frame its picture, or why there is none.

    Raises:
        PictureError: no DICOM image at all.
    """
    header = _open(path)
    digest = file_sha256(path)
    several = frame_count(header) > 1
    rendering = _Rendering(header, windows or {})
    for frame, pixels in zip(frames, decode_frames(path, frames), strict=True):
        if isinstance(pixels, PictureError):
            yield pixels
            continue
        try:
            with quiet():
                shown, intensity = rendering.render(pixels, frame)
        except PictureError as error:
            yield error
        except PIXEL_ERRORS as error:
            yield PictureError("image can't be decoded", anonymous(error))
        else:
            own = hashlib.sha256(f"{digest} frame {frame}".encode()).hexdigest() if several else digest
            yield encode_picture(shown, own, intensity, suspects_text(header))


def _open(path: Path) -> Dataset:
    try:
        header = read_header(path)
    except HeaderError as error:
        raise PictureError("DICOM file can't be read", str(error)) from None
    if not (number(header, "Rows") and number(header, "Columns")):
        raise PictureError("DICOM file holds no image")
    require_decoder(header)
    return header


class _Rendering:
    """How the stored values of one file become 8 bits."""

    def __init__(self, header: Dataset, windows: Windows) -> None:
        self.header = header
        self.groups = FrameGroups(header)
        self.photometric = text(header, "PhotometricInterpretation").upper()
        self.bits = int(number(header, "BitsStored") or number(header, "BitsAllocated") or 8)
        self.signed = number(header, "PixelRepresentation") == 1
        self.window = windows.get(text(header, "Modality"))

    def render(self, pixels: np.ndarray, frame: int) -> tuple[np.ndarray, dict[str, Any] | None]:
        """uint8 (height, width) or (height, width, 3), and how it was made."""
        if self.photometric in ("MONOCHROME1", "MONOCHROME2"):
            return self._grey(pixels, frame)
        if self.photometric == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            colours = apply_color_lut(pixels, self.header)[..., :3]
            return _to_8_bits(colours, 8 * colours.dtype.itemsize), None
        if self.photometric in _COLOURS and pixels.ndim == 3 and pixels.shape[2] == 3:
            return _to_8_bits(pixels, self.bits), None
        raise PictureError("DICOM photometric interpretation is not supported")

    def _grey(self, stored: np.ndarray, frame: int) -> tuple[np.ndarray, dict[str, Any] | None]:
        if stored.ndim != 2:
            raise PictureError("DICOM photometric interpretation is not supported", "a grey image with several samples")
        values = self._modality(stored, frame)
        padding = self._padding(stored)
        shown, intensity = self._window(values, padding, frame)
        if self.photometric == "MONOCHROME1":
            shown = 255 - shown
        if padding is not None:
            shown[padding] = 0
        return shown, intensity

    def _modality(self, stored: np.ndarray, frame: int) -> np.ndarray:
        """Stored values in real units (PS3.3 C.11.1, and C.7.6.16.2.9 for functional groups)."""
        table = first(self.header, "ModalityLUTSequence")
        if table is not None:
            return _Table(table, self.header).apply(stored)
        for dataset in (self.groups.get(frame, "PixelValueTransformationSequence"), self.header):
            slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
            if slope is not None or intercept is not None:
                slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
                return stored if (slope, intercept) == (1, 0) else stored * np.float64(slope) + intercept
        return stored

    def _padding(self, stored: np.ndarray) -> np.ndarray | None:
        """Where the scanner saw nothing, bool (height, width); None where that is not stated (PS3.3 C.7.5.1.1.2)."""
        value = number(self.header, "PixelPaddingValue")
        if value is None:
            return None
        limit = number(self.header, "PixelPaddingRangeLimit")
        low, high = sorted((value, value if limit is None else limit))
        return (stored >= low) & (stored <= high)

    def _window(
        self, values: np.ndarray, padding: np.ndarray | None, frame: int
    ) -> tuple[np.ndarray, dict[str, Any] | None]:
        if self.window is not None:
            low, high = self.window
            return window_to_8_bits(values, low, high), self._facts("option", low, high)
        voi = self.groups.get(frame, "FrameVOILUTSequence") or self.header
        centre, width = number(voi, "WindowCenter"), number(voi, "WindowWidth")
        function = text(voi, "VOILUTFunction").upper() or "LINEAR"
        if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-9):
            if function == "SIGMOID":
                facts = self._facts("file", centre - width / 2, centre + width / 2) | {"function": "sigmoid"}
                return sigmoid_to_8_bits(values, centre, width), facts
            if function in ("LINEAR", "LINEAR_EXACT"):
                low, high = dicom_window(centre, width, function)
                return window_to_8_bits(values, low, high), self._facts("file", low, high)
        item = first(self.header, "VOILUTSequence")
        if item is not None:
            table = _Table(item, self.header)
            facts = self._facts("file", *table.domain(values)) | {"function": "table"}
            return table.apply_to_8_bits(values), facts
        if self.bits == 8 and not self.signed and values.dtype == np.uint8:
            return values.copy(), None
        return self._by_percentiles(values, padding)

    def _by_percentiles(
        self, values: np.ndarray, padding: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, Any] | None]:
        seen = values if padding is None or padding.all() else values[~padding]
        ends = percentile_range(seen, *_PERCENTILES)
        if ends is None:
            raise PictureError("image has no finite value")
        facts = self._facts("percentiles", *ends) | {"percentiles": list(_PERCENTILES)}
        return window_to_8_bits(values, *ends), facts

    def _facts(self, source: str, low: float, high: float) -> dict[str, Any]:
        return {"window": [float(low), float(high)], "source": source, "bits": self.bits}


class _Table:
    """A lookup table of a modality or VOI LUT sequence (PS3.3 C.11.1.1.1 and C.11.2.1.1).

    pydicom's own functions look it up in the type of the pixels, where wide tables overflow.
    """

    def __init__(self, item: Dataset, header: Dataset) -> None:
        entries, start, bits = (int(value) for value in item.LUTDescriptor)
        self.count, self.start, self.bits = entries or 1 << 16, start, bits
        data = item.LUTData
        if isinstance(data, bytes):
            little = "BigEndian" not in (header.file_meta.TransferSyntaxUID.keyword or "")
            words = np.dtype(np.uint8) if len(data) <= self.count + 1 else np.dtype("<u2" if little else ">u2")
            self.table = np.frombuffer(data, words)[: self.count].astype(np.int64)
        else:
            self.table = np.atleast_1d(np.asarray(data, np.int64))[: self.count]
        if not self.table.size or not 1 <= bits <= 16:
            raise ValueError("a lookup table is empty or of unknown depth")

    def domain(self, values: np.ndarray) -> tuple[int, int]:
        """The first and last value that have an entry of their own."""
        # The descriptor's type is ambiguous, and often unsigned where the values it means are negative.
        start = self.start - (1 << 16) if self.start > 0x7FFF and values.min() < 0 else self.start
        return start, start + len(self.table) - 1

    def apply(self, values: np.ndarray) -> np.ndarray:
        """The entries for some values; those outside the table get its first or last one."""
        low, high = self.domain(values)
        return self.table[np.clip(np.rint(values), low, high).astype(np.int64) - low]

    def apply_to_8_bits(self, values: np.ndarray) -> np.ndarray:
        """The same, with the table's depth brought to 8 bits."""
        return window_to_8_bits(self.apply(values), 0, (1 << self.bits) - 1)


def _to_8_bits(colours: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned colours of some depth as uint8, (height, width, 3)."""
    return np.ascontiguousarray(colours >> (bits - 8) if bits > 8 else colours).astype(np.uint8)
