"""Encoded pictures -> the pixels of a window, at the cost of little more than the decoder.

A JPEG is decoded at a half, a quarter or an eighth of its size where the target needs no more: its blocks are then
transformed to fewer pixels, which saves transform, colour conversion and most of the resize. Other fractions exist,
but take longer than the whole (libjpeg-turbo has no vector code for them). Grey stays one channel as long as it can.
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
    """The picture's pixels, uint8 (h, w, 3), or (h, w) if it is grey, and how many times smaller they really are.

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
            return np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB")), 1
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
    space = "GRAY" if colours == "Gray" else "RGB"
    expected = (-(-height // factor), -(-width // factor))
    least = {"min_height": expected[0], "min_width": expected[1]} if factor > 1 else {}
    pixels = simplejpeg.decode_jpeg(data, space, **least)
    if pixels.shape[:2] != expected:  # a picture of a few pixels, where fractions round alike
        pixels, factor = simplejpeg.decode_jpeg(data, space), 1
    return (pixels[:, :, 0] if space == "GRAY" else pixels), factor


def _other_size(size: tuple[int, int], width: int, height: int) -> tuple[str, str]:
    detail = f"the image is {size[0]}x{size[1]}, its JSON says {width}x{height}"
    return "image is of another size than its JSON says", detail


def render(pixels: np.ndarray, factor: int, window: Window, size: int, fill: tuple[int, ...]) -> np.ndarray:
    """What a window shows of a picture that was decoded `factor` times smaller, uint8 (3 or 1, size, size).

    Resized by torch (bicubic, antialiased, on bytes): Pillow's picture to within one grey level, in a tenth of its time.
    Its results are planes; so are our images, since turning them into pixels would cost as much again.
    """
    small = window.scaled(factor)
    reaches_out = (
        small.angle or small.left < 0 or small.top < 0 or small.left + small.side > pixels.shape[1]
        or small.top + small.side > pixels.shape[0]
    )  # fmt: skip
    if pixels.ndim == 2:
        # The padding has a colour, so what shows some of it needs three channels.
        pixels = np.repeat(pixels[:, :, None], 3, 2) if reaches_out else pixels[:, :, None]
    square = small.cut(pixels, fill)
    if small.side == size:
        return np.ascontiguousarray(square.transpose(2, 0, 1))
    # Pillow's own memory is read-only, which torch doesn't know.
    square = np.ascontiguousarray(square) if square.flags.writeable else square.copy()
    tensor = torch.from_numpy(square).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(tensor, (size, size), mode="bicubic", antialias=True)[0].numpy()


def recolour(planes: np.ndarray, gain: float, offset: float, out: np.ndarray) -> None:
    """(planes - 128) * gain + 128 + offset, clipped, into `out` (3, size, size); all uint8. `gain` from 0 to 2.

    In whole numbers of 16 bits, the gain in steps of 1/64: a third of a look-up table's time.
    """
    if gain == 1.0 and offset == 0.0:
        out[:] = planes
        return
    steps = round(gain * 64)
    values = planes.astype(np.int16)
    values *= steps
    values += 32
    values >>= 6
    values += 128 - 2 * steps + round(offset)
    np.clip(values, 0, 255, out=values)
    np.copyto(out, values, casting="unsafe")
