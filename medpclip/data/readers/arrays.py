"""Arrays in NumPy's files, read with mistrust: the header is judged before anything is allocated, and nothing is unpickled.

The formats are NumPy's own (NEP 1): `npy` is a header with dtype, order and shape and then the values; `npz` is a zip
of such files. A few bytes can state a shape, or unpack to a size, that no machine holds.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from medpclip.data.readers.base import Fault, UnusableError

MOST_BYTES = 1 << 33  # of one array: a CT of 2000 slices of 1024 x 1024 with 16 bits has half of it
MOST_PIXELS = 1 << 28  # of one image
_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    SyntaxError,
    RuntimeError,
    OverflowError,
    tokenize.TokenError,  # NumPy's parser of old headers
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path, file: str, names: Collection[str], optional: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an npz file; others in it stay unread.

    Args:
        path: of the file.
        file: as faults name it.
        names: arrays that must be there.
        optional: arrays that may be.

    Raises:
        UnusableError: the file is broken, lacks an array, or states one that is too large or made of objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = set(archive.namelist())
            missing = [name for name in names if f"{name}.npy" not in there]
            if missing:
                raise UnusableError(Fault(file, missing[0], "array is missing in the file", repr(there), images=1))
            wanted = [name for name in (*names, *optional) if f"{name}.npy" in there]
            return {name: _read_member(archive, f"{name}.npy", file) for name in wanted}
    except _ERRORS as error:
        raise UnusableError(Fault(file, "", "array file can't be read", str(error), images=1)) from None


def read_npy(path: Path, file: str) -> np.ndarray:
    """The array of an npy file; arguments and errors as for `read_npz`."""
    try:
        with open(path, "rb") as stream:
            _check_header(stream, path.stat().st_size, file, "")
            stream.seek(0)
            return np.lib.format.read_array(stream, allow_pickle=False)
    except _ERRORS as error:
        raise UnusableError(Fault(file, "", "array file can't be read", str(error), images=1)) from None


def _read_member(archive: zipfile.ZipFile, name: str, file: str) -> np.ndarray:
    with archive.open(name) as stream:
        _check_header(stream, archive.getinfo(name).file_size, file, name)
    with archive.open(name) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _check_header(stream: IO[bytes], length: int, file: str, key: str) -> None:
    """Refuse objects, absurd shapes, and data that are shorter than the shape says."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy version {version}")
    if dtype.hasobject or dtype.names:
        raise UnusableError(Fault(file, key, "array holds objects instead of numbers", str(dtype), images=1))
    needed = math.prod(shape) * dtype.itemsize
    if needed > MOST_BYTES:
        raise UnusableError(Fault(file, key, "array is larger than any image", f"shape {shape}", images=1))
    if stream.tell() + needed > length:
        raise ValueError(f"{length} bytes for the shape {shape}")
