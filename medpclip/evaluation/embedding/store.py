"""Embeddings that were computed before, found by what they are of."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medpclip.errors import MedpclipError
from medpclip.files import write_atomically


class Store:
    """Rows of float32 under 32-byte keys, in memory or in a folder of .npy files that processes share.

    A file holds the rows that were put together, as records of key and value, and is named by the keys' hash. What is
    known is never changed: a row that is put again keeps its first value.

    Args:
        folder: where the files lie; made when the first rows are put. None for memory alone.

    Raises:
        MedpclipError: a file in the folder can't be read.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._rows: dict[bytes, tuple[np.ndarray, int]] = {}
        for path in sorted(folder.glob("*.npy")) if folder is not None and folder.is_dir() else ():
            self._load(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def row(self, key: bytes) -> np.ndarray:
        """(D,) float32; the key must be known."""
        values, index = self._rows[key]
        return values[index]

    def put(self, keys: Sequence[bytes], values: np.ndarray) -> None:
        """Keep rows, values (n, D); in the folder, whole or not at all.

        Raises:
            MedpclipError: the folder can't be written.
        """
        values = np.ascontiguousarray(values, np.float32)
        assert len(keys) == len(values) and values.ndim == 2
        if self.folder is not None:
            self._write(_path(self.folder, keys), keys, values)
        self._learn(keys, values)

    def fetch(self, keys: Sequence[bytes]) -> bool:
        """Look for the file of these very rows, which another process may have written; whether it is there."""
        path = None if self.folder is None else _path(self.folder, keys)
        if path is None or not path.is_file():
            return False
        self._load(path)
        return True

    def _learn(self, keys: Sequence[bytes], values: np.ndarray) -> None:
        for index, key in enumerate(keys):
            self._rows.setdefault(key, (values, index))

    def _write(self, path: Path, keys: Sequence[bytes], values: np.ndarray) -> None:
        records = np.empty(len(keys), [("key", np.uint8, (32,)), ("value", "<f4", values.shape[1:])])
        records["key"] = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
        records["value"] = values
        stream = io.BytesIO()
        np.save(stream, records, allow_pickle=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # In a folder of its own first: processes that share the cache may write the same rows at once.
            with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
                write_atomically(Path(folder) / path.name, stream.getvalue())
                (Path(folder) / path.name).replace(path)
        except OSError as error:
            raise MedpclipError(
                f"{path.parent}: can't be written ({error.strerror}); make room, name another --cache, or --no-cache"
            ) from None

    def _load(self, path: Path) -> None:
        try:
            # Mapped: a folder may hold more than fits into memory.
            records = np.load(path, mmap_mode="r", allow_pickle=False)
            keys, values = np.array(records["key"]), records["value"]
            if keys.shape[1:] != (32,) or values.ndim != 2 or values.dtype != np.float32:
                raise ValueError("other content than embeddings")
            if not np.isfinite(values).all():
                raise ValueError("it holds values that are no numbers")
        except (OSError, ValueError, IndexError, EOFError) as error:
            raise MedpclipError(f"{path}: unreadable ({error}); remove the file, it is made again") from None
        self._learn([row.tobytes() for row in keys], values)


def _path(folder: Path, keys: Sequence[bytes]) -> Path:
    return folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()}.npy"
