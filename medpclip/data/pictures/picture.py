"""An image as it goes into a shard, whatever it was read from."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

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
        digest: hexadecimal SHA-256 of the file it comes from (and its part of it): the same for byte-identical copies.
        intensity: how other than 8-bit values became 8 bits: {"window": [lo, hi], "percentiles": [...], "bits": n}.
        burned_in: whether the file's own header says, or leaves open where it should say, that text is in the pixels.
    """

    data: bytes
    extension: str
    pixels: np.ndarray
    digest: str
    intensity: dict[str, Any] | None = None
    burned_in: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]


def encode_picture(
    pixels: np.ndarray, digest: str, intensity: dict[str, Any] | None = None, burned_in: bool = False
) -> Picture:
    """Pixels that a reader made, uint8 (height, width) or (height, width, 3), as PNG."""
    assert pixels.dtype == np.uint8, pixels.dtype
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return Picture(stream.getvalue(), "png", pixels, digest, intensity, burned_in)
