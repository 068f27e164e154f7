"""A folder appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

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


def export_at(out: Path) -> Path:
    out.mkdir()
    (out / "export.json").write_text("earlier")
    return out


def test_a_replacement_that_fails_gives_the_earlier_export_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = export_at(tmp_path / "b"), Path.rename

    def fails_for_the_new(self: Path, target: Path) -> Path:
        if self.name == ".b.part":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new)
    with pytest.raises(MedpclipError, match="can't be written .No space left"), whole_folder(out) as folder:
        (folder / "export.json").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["b"] and (out / "export.json").read_text() == "earlier"


def test_a_replacement_that_was_cut_off_is_undone(tmp_path: Path) -> None:
    export_at(tmp_path / ".b.old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "b"):
        raise RuntimeError("stop")
    assert [p.name for p in tmp_path.iterdir()] == ["b"] and (tmp_path / "b" / "export.json").exists()


def test_safetensors_full_disk_is_one_line(tmp_path: Path) -> None:
    out = export_at(tmp_path / "b")
    with pytest.raises(MedpclipError, match=r"can't be written .*os error 28.*check the path"), whole_folder(out):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert (out / "export.json").read_text() == "earlier"
