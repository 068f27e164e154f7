"""NumPy files read with mistrust: what is broken, huge, or would run code never gets as far as an array."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medpclip.data.readers import UnusableError
from medpclip.data.readers.arrays import read_npy, read_npz


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(shape: str, descr: str = "'<f8'", version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text


def reason(data: bytes, folder: Path) -> list[str]:
    """Why the same bytes are refused as a file, and in an archive."""
    (folder / "a.npy").write_bytes(data)
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", data)
    reasons = []
    for call in (lambda: read_npy(folder / "a.npy", "a.npy"), lambda: read_npz(folder / "a.npz", "a.npz", ["x"])):
        with pytest.raises(UnusableError) as caught:
            call()
        assert caught.value.fault.images == 1
        reasons.append(caught.value.fault.reason)
    return reasons


@pytest.mark.parametrize("order", ["C", "F"])
def test_round_trip(tmp_path: Path, order: str) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4), order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", x=array, y=array[0], z=np.array(["text"]))
    assert np.array_equal(read_npy(tmp_path / "a.npy", ""), array)
    found = read_npz(tmp_path / "a.npz", "", ["x"], ["y", "w"])
    assert list(found) == ["x", "y"]
    assert np.array_equal(found["x"], array)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "array file can't be read"),
        (b"not an array", "array file can't be read"),
        (npy(np.arange(100))[:-8], "array file can't be read"),
        (header("(3,", version=1), "array file can't be read"),
        (header("(2,)", version=9), "array file can't be read"),
        (header("(-1,)"), "array file can't be read"),
        (npy(np.array([{"a": 1}], object)), "array holds objects instead of numbers"),
        (npy(np.zeros(2, "i4,f8")), "array holds objects instead of numbers"),
        (header("(1000000, 1000000)"), "array is larger than any image"),
        (header("(1000000, 1000)"), "array file can't be read"),
    ],
)
def test_broken_and_absurd(tmp_path: Path, data: bytes, expected: str) -> None:
    assert set(reason(data, tmp_path)) == {expected}


def test_archives_that_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(5))
    whole = (tmp_path / "a.npz").read_bytes()
    for data in (b"", b"PK\x03\x04", whole[:-30], whole.replace(b"\x93NUMPY", b"\x93NUMPX")):
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(UnusableError, match="array file can't be read"):
            read_npz(tmp_path / "a.npz", "a.npz", ["x"])
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(UnusableError, match="array is missing in the file") as caught:
        read_npz(tmp_path / "a.npz", "a.npz", ["x", "gts"])
    assert caught.value.fault.key == "gts"
