"""Embeddings are found again, whole and unchanged."""

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from medpclip.errors import MedpclipError
from medpclip.evaluation.embedding.store import Store


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def rows(*numbers: int) -> np.ndarray:
    return np.array([[n, n / 3, -n] for n in numbers], np.float32)


@pytest.mark.parametrize("kept", [False, True])
def test_rows_are_found_by_their_keys_and_never_change(tmp_path: Path, kept: bool) -> None:
    store = Store(tmp_path / "cache" if kept else None)
    store.put([key(1), key(2)], rows(1, 2))
    store.put([key(2), key(3)], rows(9, 3))
    assert key(4) not in store and all(key(n) in store for n in (1, 2, 3))
    for n in (1, 2, 3):
        assert np.array_equal(store.row(key(n)), rows(n)[0]) and store.row(key(n)).dtype == np.float32
    assert store.fetch([key(4)]) is False


def test_another_process_finds_them(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "cache"), Store(tmp_path / "cache")
    first.put([key(1), key(2)], rows(1, 2))
    assert key(1) not in second and not second.fetch([key(1)]) and second.fetch([key(1), key(2)])
    assert np.array_equal(second.row(key(2)), rows(2)[0])
    assert np.array_equal(Store(tmp_path / "cache").row(key(1)), rows(1)[0])
    assert not list((tmp_path / "cache").glob(".*"))


def test_writers_of_the_same_rows_do_not_meet(tmp_path: Path) -> None:
    keys, values, faults, done = [key(n) for n in range(3000)], rows(*range(3000)), list[object](), threading.Event()

    def write() -> None:
        try:
            for _ in range(20):
                Store(tmp_path / "cache").put(keys, values)
        except OSError as error:
            faults.append(error)

    def read() -> None:
        while not done.is_set():
            for path in (tmp_path / "cache").glob("*.npy"):
                if len(np.load(path, allow_pickle=False)) != len(keys):
                    faults.append(path)

    writers, reader = [threading.Thread(target=write) for _ in range(2)], threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not faults and len(list((tmp_path / "cache").iterdir())) == 1


def test_a_file_that_is_none_and_a_folder_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.zeros((3, 4)))
    with pytest.raises(MedpclipError, match=r"other\.npy: unreadable .*; remove the file"):
        Store(tmp_path)
    (tmp_path / "other.npy").unlink()
    Store(tmp_path).put([bytes(32)], np.full((1, 4), np.nan, np.float32))
    with pytest.raises(
        MedpclipError, match=r"\.npy: unreadable .it holds values that are no numbers.; remove the file"
    ):
        Store(tmp_path)
    for path in tmp_path.glob("*.npy"):
        path.unlink()
    (tmp_path / "other.npy").write_bytes(b"")
    with pytest.raises(MedpclipError, match=r"other\.npy: unreadable"):
        Store(tmp_path)
    (tmp_path / "other.npy").write_bytes(b"\x93NUMPY cut off")
    with pytest.raises(MedpclipError, match=r"other\.npy: unreadable"):
        Store(tmp_path)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(MedpclipError, match=r"file: can't be written .*--no-cache"):
        Store(tmp_path / "file").put([key(1)], rows(1))
