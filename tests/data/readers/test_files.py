"""Finding images: what is no image is told, and patterns that find nothing of use end the run."""

from pathlib import Path

import pytest

from medpclip.data.readers.files import list_files, list_images, without_suffix
from medpclip.errors import MedpclipError


def test_dicom_without_an_ending_does_not_pass_for_a_document(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(20))
    (tmp_path / "LICENSE").write_text("Do as you like.")
    (tmp_path / "a.png").touch()
    images, faults = list_images(tmp_path, ".", "options.images")
    assert images == [tmp_path / "a.png"]
    assert [(fault.file, fault.reason, fault.images) for fault in faults] == [
        ("IM0001", "file is of a kind that no image reader reads", 0)
    ]


def test_a_pattern_that_finds_only_folders(tmp_path: Path) -> None:
    (tmp_path / "train/images").mkdir(parents=True)
    (tmp_path / "train/images/1.png").touch()
    with pytest.raises(MedpclipError, match=r"only folders fit '\*/images'; write '\*/images/\*'"):
        list_files(tmp_path, "*/images", "options.images")
    assert list_files(tmp_path, "*/images/*", "options.images") == [tmp_path / "train/images/1.png"]


@pytest.mark.parametrize(
    ("name", "suffix", "left"),
    [("a_m", "_m", "a"), ("a_m", "", "a_m"), ("a_m2", ["", "2", "_m2"], "a"), ("a", ["_x", "_y"], "a"), ("a", [], "a")],
)
def test_suffixes_come_off_longest_first(name: str, suffix: str | list[str], left: str) -> None:
    assert without_suffix(name, suffix) == left
