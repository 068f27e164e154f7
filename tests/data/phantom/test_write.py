"""Phantom shards: the same bytes for any number of processes, whole or not at all."""

from pathlib import Path

import pytest

from medpclip.data.phantom import PAIRS, write_phantoms
from medpclip.data.phantom import write as module
from medpclip.data.shards import ShardFolder
from medpclip.errors import MedpclipError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "phantom"
    write_phantoms(out, images=60, seed=4, workers=1)
    return out


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_processes_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "two", images=60, seed=4, workers=2)
    assert _bytes(tmp_path / "two") == _bytes(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_another_seed_draws_other_images(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIN_HELD_OUT", 2)
    write_phantoms(tmp_path / "other", images=5, seed=5, workers=1)
    old, new = ShardFolder(folder, "train"), ShardFolder(tmp_path / "other", "train")
    assert not {row.key for row in old.rows} & {row.key for row in new.rows}
    assert old.image_bytes(0) != new.image_bytes(0)


def test_every_sample_reads_back(folder: Path) -> None:
    shards = ShardFolder(folder)
    assert len(shards) == 60 + 40 + 40
    for index in range(len(shards)):
        sample = shards.sample(index)
        assert shards.image(index).shape == (sample.height, sample.width, 3)
    assert shards.manifest["pairs"] == {how: [list(p) for p in pairs] for how, pairs in PAIRS.items()}
    assert shards.manifest["ranges"]["train"] != shards.manifest["ranges"]["held_out"]
    assert shards.manifest["recipe"] == {"name": "phantom", "images": 60, "seed": 4}


def test_groups_hold_one_to_three_images_of_one_split_and_look(folder: Path) -> None:
    groups: dict[str, list[tuple[str, str]]] = {}
    shards = ShardFolder(folder)
    for index in range(len(shards)):
        sample = shards.sample(index)
        groups.setdefault(sample.group, []).append((sample.split, sample.modality))
    assert all(len(set(images)) == 1 for images in groups.values())
    assert {len(images) for images in groups.values()} == {1, 2, 3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": 0}, "images is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match=words):
        write_phantoms(tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_refuses_a_folder_in_use_and_takes_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIN_HELD_OUT", 2)
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(MedpclipError, match="not an empty folder"):
        write_phantoms(tmp_path, images=2, workers=1)
    (tmp_path / "empty").mkdir()
    write_phantoms(tmp_path / "empty", images=2, workers=1)
    assert len(ShardFolder(tmp_path / "empty")) == 6


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*task: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(module, "draw_sample", fail)
    with pytest.raises(RuntimeError, match="planted"):
        write_phantoms(tmp_path / "out", images=2, workers=1)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MedpclipError, match="cannot write there") as caught:
        write_phantoms(tmp_path / "file" / "out", images=2, workers=1)
    assert "\n" not in str(caught.value)
