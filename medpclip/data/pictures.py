"""Image files of a source -> the bytes that go into a shard: 8-bit, upright, without metadata.

A JPEG keeps its compressed data to the bit; everything else becomes PNG, grey or RGB. Whatever else the file carries
(EXIF, comments, colour profiles, thumbnails, data behind the end) is left behind: that is where names and places hide.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION_TAG = 274  # EXIF tag
# What Pillow's decoders raise at damaged files.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_PERCENTILES = (0.5, 99.5)
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


class PictureError(Exception):
    """An image that can't be used. `reason` is fixed words that may be counted in public; `detail` is private."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Picture:
    """An image as it goes into a shard.

    Attributes:
        data: the encoded bytes.
        extension: "jpg" or "png".
        pixels: decoded, uint8 (height, width) or (height, width, 3).
        intensity: how other than 8-bit values became 8 bits: {"window": [lo, hi], "percentiles": [...], "bits": n}.
    """

    data: bytes
    extension: str
    pixels: np.ndarray
    intensity: dict[str, Any] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]


def read_picture(path: Path) -> Picture:
    """Read, decode fully and clean an image file.

    Raises:
        PictureError: unreadable, truncated, several frames, or an EXIF orientation.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            # Most tools draw on the pixels as stored, some on the picture as shown: nobody knows which it was.
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
            if orientation in range(2, 9):
                raise PictureError("image is turned by its EXIF orientation", f"orientation {orientation}")
            if image.format in ("JPEG", "MPO"):
                return _read_jpeg(data)
            if getattr(image, "n_frames", 1) > 1:
                raise PictureError("image file has several frames", f"{getattr(image, 'n_frames', 1)} frames")
            image.load()
            return _encode(image)
    except DECODING_ERRORS as error:
        raise PictureError("image can't be decoded", str(error)) from None


def _read_jpeg(data: bytes) -> Picture:
    clean = strip_jpeg(data)
    with Image.open(io.BytesIO(clean)) as image:
        image.load()
        if image.mode not in ("L", "RGB"):  # CMYK and its like
            return _encode(image)
        return Picture(clean, "jpg", np.asarray(image))


def _encode(image: Image.Image) -> Picture:
    intensity = None
    if image.mode in DEEP_MODES:
        pixels, intensity = window_to_8_bits(np.asarray(image), 32 if image.mode in ("I", "F") else 16)
    elif image.mode in ("1", "L", "LA", "La"):
        pixels = np.asarray(image.convert("L"))
    else:
        pixels = np.asarray(image.convert("RGB"))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return Picture(stream.getvalue(), "png", pixels, intensity)


def window_to_8_bits(values: np.ndarray, bits: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Map the range between two percentiles to 0..255."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise PictureError("image has no finite value")
    low, high = (float(v) for v in np.percentile(finite, _PERCENTILES))
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) / (max(high - low, 1e-12))
    pixels = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return pixels, {"window": [low, high], "percentiles": list(_PERCENTILES), "bits": bits}


_SOI, _EOI, _SOS, _COM = 0xD8, 0xD9, 0xDA, 0xFE
_APP0, _APP14, _APP15 = 0xE0, 0xEE, 0xEF


def strip_jpeg(data: bytes) -> bytes:
    """A JPEG without metadata segments and without anything behind its end; the compressed data stay to the bit.

    Only what decoding needs is kept of the APPn segments: JFIF (without its thumbnail) and Adobe (the colour
    transform). Markers are those of ITU-T T.81, annex B.

    Raises:
        PictureError: the segments are broken, or the end is missing (a truncated file).
    """
    if data[:2] != b"\xff\xd8":
        raise PictureError("image can't be decoded", "no JPEG start marker")
    out = [data[:2]]
    at = 2
    while True:
        start = at
        if data[at : at + 1] != b"\xff":
            raise PictureError("image can't be decoded", f"no JPEG marker at byte {at}")
        while data[at : at + 1] == b"\xff":  # any number of fill bytes
            at += 1
        marker = data[at] if at < len(data) else -1
        at += 1
        if marker == _EOI:
            out.append(b"\xff\xd9")
            return b"".join(out)
        length = int.from_bytes(data[at : at + 2], "big")
        if marker < 0 or length < 2 or at + length > len(data):
            raise PictureError("image is truncated", f"JPEG segment at byte {start} is cut off")
        body = data[at + 2 : at + length]
        at += length
        if not (_APP0 <= marker <= _APP15 or marker == _COM):
            out.append(b"\xff" + bytes([marker]) + data[at - length : at])
        elif kept := _needed(marker, body):
            out.append(b"\xff" + bytes([marker]) + (len(kept) + 2).to_bytes(2, "big") + kept)
        if marker == _SOS:
            end = _scan_end(data, at)
            out.append(data[at:end])
            at = end


def _needed(marker: int, body: bytes) -> bytes:
    if marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        return body[:12] + b"\0\0"  # width and height of the thumbnail: none
    if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
        return body[:12]
    return b""


def _scan_end(data: bytes, at: int) -> int:
    """Where the entropy-coded data that begin at `at` end: the first marker that is neither stuffing nor a restart."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        following = data[at + 1]
        if following == 0xFF:  # a fill byte
            at += 1
        elif following == 0 or 0xD0 <= following <= 0xD7:
            at += 2
        else:
            return at
    raise PictureError("image is truncated", "the JPEG end marker is missing")
