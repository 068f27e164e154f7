"""Reading mask files as numbers, for the readers of masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from medpclip.data.pictures import DECODING_ERRORS
from medpclip.data.readers.base import Fault, UnusableError

_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def read_indices(path: Path, file: str) -> np.ndarray:
    """The stored numbers of a one-channel mask, (height, width): of a palette image its indices, never its colours.

    Raises:
        UnusableError: the file can't be decoded, or holds colours.
    """
    picture = _open(path, file)
    if picture.mode not in _ONE_CHANNEL:
        reason = "mask has colours where numbers were expected"
        raise UnusableError(Fault(file, "", reason, f"mode {picture.mode}", images=1))
    return _numbers(picture)


def read_grey(path: Path, file: str) -> np.ndarray:
    """The brightness of a mask, (height, width): of a palette or colour image the largest of its channels.

    Alpha is dropped. 16-bit values stay as they are.

    Raises:
        UnusableError: the file can't be decoded.
    """
    picture = _open(path, file)
    if picture.mode in ("1", "LA"):
        picture = picture.convert("L")
    elif picture.mode not in _ONE_CHANNEL or picture.mode == "P":
        return np.asarray(picture.convert("RGB")).max(axis=2)
    return _numbers(picture)


def _numbers(picture: Image.Image) -> np.ndarray:
    values = np.asarray(picture)
    return values.astype(np.uint8) if values.dtype == bool else values


def _open(path: Path, file: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except DECODING_ERRORS as error:
        raise UnusableError(Fault(file, "", "mask file can't be decoded", str(error), images=1)) from None
