"""Encoded pictures -> the pixels of a window, at the cost of little more than the decoder.

A JPEG is decoded at a half, a quarter or an eighth of its size where the target needs no more: its blocks are then
transformed to fewer pixels, which saves transform, colour conversion and most of the resize. Other fractions exist,
but take longer than the whole (libjpeg-turbo has no vector code for them). Grey becomes RGB at once: torch resizes three
channels faster than one.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError

from medpclip.data.loading.geometry import Window
from medpclip.data.pictures import DECODING_ERRORS, PictureError

_FORMATS = ("JPEG", "PNG", "WEBP")


def reduction(window: Window, size: int) -> int:
    """How many times smaller a picture may be decoded: its window stays on whole pixels and at least `size` wide."""
    for factor in (8, 4, 2):
        exact = not (window.left % factor or window.top % factor or window.side % factor)
        if exact and window.side >= factor * size:
            return factor
    return 1


def decode(data: bytes, extension: str, width: int, height: int, factor: int) -> tuple[np.ndarray, int]:
    """The picture's pixels, uint8 (h, w, 3), and how many times smaller they really are.

    Args:
        data: the encoded picture.
        extension: "jpg", "png" or "webp".
        width, height: what it has to be.
        factor: 1, 2, 4 or 8: decode a JPEG so many times smaller, rounded up.

    Raises:
        PictureError: it can't be decoded, or is of another size.
    """
    if extension == "jpg":
        try:
            return _decode_jpeg(data, width, height, factor)
        except ValueError:
            pass  # Pillow is more lenient, and says more clearly what is wrong
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.size != (width, height):
                raise PictureError(*_other_size(picture.size, width, height))
            # As `shards.decode_image` has it: alpha is dropped.
            return np.asarray(picture.convert("RGB")), 1
    except UnidentifiedImageError:  # its own message has the address of the bytes in memory
        raise PictureError("image can't be decoded", "unreadable image (of no known format)") from None
    except DECODING_ERRORS as error:
        raise PictureError("image can't be decoded", f"unreadable image ({error})") from None


def _decode_jpeg(data: bytes, width: int, height: int, factor: int) -> tuple[np.ndarray, int]:
    has_height, has_width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if (has_width, has_height) != (width, height):
        raise PictureError(*_other_size((has_width, has_height), width, height))
    if colours not in ("Gray", "YCbCr"):
        raise ValueError("left to Pillow")
    expected = (-(-height // factor), -(-width // factor))
    least = {"min_height": expected[0], "min_width": expected[1]} if factor > 1 else {}
    pixels = simplejpeg.decode_jpeg(data, "RGB", **least)
    if pixels.shape[:2] != expected:  # a picture of a few pixels, where fractions round alike
        return simplejpeg.decode_jpeg(data, "RGB"), 1
    return pixels, factor


def _other_size(size: tuple[int, int], width: int, height: int) -> tuple[str, str]:
    detail = f"the image is {size[0]}x{size[1]}, its JSON says {width}x{height}"
    return "image is of another size than its JSON says", detail


def render(pixels: np.ndarray, factor: int, window: Window, size: int, fill: tuple[int, ...]) -> np.ndarray:
    """What a window shows of a picture that was decoded `factor` times smaller, uint8 (size, size, 3).

    Resized by torch (bicubic, antialiased, on bytes): Pillow's picture to within one grey level, in a tenth of its time.
    """
    square = window.scaled(factor).cut(pixels, fill)
    if len(square) == size:
        return square
    # Pillow's own memory is read-only, which torch doesn't know; nor does it take a mirrored pixel's negative stride,
    # which is contiguous to numpy.
    square = np.ascontiguousarray(square) if square.flags.writeable and len(square) > 1 else square.copy()
    # The batch's axis comes first: only so does torch see that channels come last, and leave them there.
    tensor = torch.from_numpy(square)[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(tensor, (size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
