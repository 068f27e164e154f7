"""Image files of a source -> the bytes that go into a shard: 8-bit, upright, without metadata.

A JPEG, and a PNG of 8-bit grey or RGB, keep their compressed data to the bit; everything else becomes PNG, grey or
RGB. Whatever else the file carries (EXIF, comments, colour profiles, thumbnails, data behind the end) is left behind:
that is where names and places hide.
"""

from __future__ import annotations

import errno
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from medpclip.data.pictures.intensity import percentile_range, window_to_8_bits
from medpclip.data.pictures.picture import DECODING_ERRORS, Picture, PictureError, encode_picture
from medpclip.data.pictures.stripping import strip_jpeg, strip_png
from medpclip.errors import MedpclipError

ORIENTATION_TAG = 274  # EXIF tag
# libjpeg-turbo's warnings of missing or wrong data: Pillow fills in grey and says nothing.
_DAMAGED, _HARMLESS = ("Corrupt JPEG data", "Premature end"), "extraneous bytes"
# Of all that Pillow opens: none that calls another program, as EPS calls Ghostscript.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
# Pillow's names of what it reads by the upper byte alone.
_DEEP_COLOURS = re.compile(r"(?:LA|RGB[AX]?);16[BLN]")
# What a lost network drive or too many open files say of every file.
_OF_THE_MACHINE = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENODEV,
    }
)
_PERCENTILES = (0.5, 99.5)
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def read_image_file(path: Path) -> Picture:
    """Read, decode fully and clean an image file.

    Raises:
        PictureError: unreadable, truncated, several frames, or an EXIF orientation.
        MedpclipError: the whole source can't be read any more; to lose its images one by one would be wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno in _OF_THE_MACHINE or not path.parent.is_dir():
            raise MedpclipError(
                f"{path}: can't be read ({error.strerror}), nor can others, it seems; see that the source is there, and "
                "run the same command again: it goes on from where it stopped"
            ) from None
        raise PictureError("image can't be decoded", str(error)) from None
    return read_picture_bytes(data)


def read_picture_bytes(data: bytes) -> Picture:
    """`read_image_file` for the content of one."""
    try:
        digest = hashlib.sha256(data).hexdigest()
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            deep = any(_DEEP_COLOURS.search(str(tile[3])) for tile in image.tile)  # getexif may load, and forget it
            # Most tools draw on the pixels as stored, some on the picture as shown: nobody knows which it was.
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
            if orientation in range(2, 9):
                raise PictureError("image is turned by its EXIF orientation", f"orientation {orientation}")
            if image.format in ("JPEG", "MPO"):
                return _read_jpeg(data, digest)
            if getattr(image, "n_frames", 1) > 1:
                raise PictureError("image file has several frames", f"{getattr(image, 'n_frames', 1)} frames")
            image.load()
            clean = strip_png(data) if image.format == "PNG" and image.mode in ("L", "RGB") else None
            if clean is not None:
                return Picture(clean, "png", np.asarray(image), digest)
            return _encode(image, digest, {"window": [0.0, 65535.0], "bits": 16} if deep else None)
    except UnidentifiedImageError:  # its own message has the address of the bytes in memory
        raise PictureError("image can't be decoded", "of no known format") from None
    except DECODING_ERRORS as error:
        raise PictureError("image can't be decoded", str(error)) from None


def image_file_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file as its header states it.

    Raises:
        PictureError: the header can't be read.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.size
    except DECODING_ERRORS as error:
        raise PictureError("image can't be decoded", str(error)) from None


def _read_jpeg(data: bytes, digest: str) -> Picture:
    clean = strip_jpeg(data)
    try:  # twice as fast as Pillow, and stricter
        space = simplejpeg.decode_jpeg_header(clean)[2]
        if space == "Gray":
            return Picture(clean, "jpg", simplejpeg.decode_jpeg(clean, "GRAY")[:, :, 0], digest)
        if space in ("YCbCr", "RGB"):
            return Picture(clean, "jpg", simplejpeg.decode_jpeg(clean, "RGB"), digest)
        simplejpeg.decode_jpeg(clean, "CMYK")
    except ValueError as error:
        if any(words in str(error) for words in _DAMAGED) and _HARMLESS not in str(error):
            raise PictureError("image can't be decoded", str(error)) from None
    # Pillow knows more kinds; bytes between the last block and the end, where anything may stand, are left behind too.
    with Image.open(io.BytesIO(clean), formats=_FORMATS) as image:
        return _encode(image, digest)


def _encode(image: Image.Image, digest: str, intensity: dict[str, Any] | None = None) -> Picture:
    if image.mode in DEEP_MODES:
        pixels, intensity = reduce_depth(np.asarray(image), 32 if image.mode in ("I", "F") else 16)
    elif image.mode in ("1", "L", "LA", "La"):
        pixels = np.asarray(image.convert("L"))
    else:
        pixels = np.asarray(image.convert("RGB"))
    return encode_picture(pixels, digest, intensity)


def reduce_depth(values: np.ndarray, bits: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Values of more than 8 bits between two percentiles as 0..255, uint8, and the record of how."""
    ends = percentile_range(values, *_PERCENTILES)
    if ends is None:
        raise PictureError("image has no finite value")
    return window_to_8_bits(values, *ends), {"window": list(ends), "percentiles": list(_PERCENTILES), "bits": bits}
