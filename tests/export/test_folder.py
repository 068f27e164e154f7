"""A folder appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from medpclip.errors import MedpclipError
from medpclip.export.folder import whole_folder


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with whole_folder(out) as folder:
        (folder / "x").write_text("1")
        assert not out.exists()
    assert (out / "x").read_text() == "1" and [p.name for p in out.parent.iterdir()] == ["b"]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "b") as folder:
        (folder / "x").write_text("1")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_an_earlier_export_is_replaced_and_leftovers_are_cleared(tmp_path: Path) -> None:
    out = tmp_path / "b"
    for folder in (out, tmp_path / ".b.part", tmp_path / ".b.old"):
        folder.mkdir()
        (folder / "stale").touch()
    (out / "export.json").touch()
    with whole_folder(out) as folder:
        (folder / "new").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["b"] and [p.name for p in out.iterdir()] == ["new"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with whole_folder(tmp_path / "b") as folder:
        (folder / "new").touch()
    assert (tmp_path / "b" / "new").exists()


def test_what_is_no_export_is_kept(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    (tmp_path / "f").touch()
    for name in ("b", "f"):
        with pytest.raises(MedpclipError, match=r"exists and holds no export\.json"), whole_folder(tmp_path / name):
            pass
    with pytest.raises(MedpclipError, match="can't be written"), whole_folder(tmp_path / "f" / "c"):
        pass
    assert (tmp_path / "b" / "thesis.txt").exists() and (tmp_path / "f").is_file()
