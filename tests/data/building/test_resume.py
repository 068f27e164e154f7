"""Builds by several workers and jobs, cut off at any moment: always the same bytes, and nothing of two builds mixed."""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.config import from_mapping
from medpclip.data.building import build as build_module
from medpclip.data.building.build import build, convert_part, merge
from medpclip.data.building.privacy import Salt
from medpclip.data.building.recipe import Recipe
from medpclip.data.building.spool import stamp
from medpclip.data.readers import Entry
from medpclip.data.readers.coco import CocoReader
from medpclip.errors import MedpclipError

SALT = Salt(b"a secret that only tests know", "test")
OTHER_SALT = Salt(b"another secret of the same length", "test")
IMAGES = 60


def recipe(**changes: Any) -> Recipe:
    base = {
        "name": "cells",
        "title": "Cells",
        "modality": "microscopy",
        "licence": "MIT",
        "citation": "nobody",
        "reader": "coco",
        "terms": {"cell": "cell"},
        "group": {"metadata": "patient"},
    }
    return from_mapping(Recipe, base | changes, "test")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images with a box each; among them two copies, one broken file and three broken boxes."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "images").mkdir()
    images, annotations = [], []
    for i in range(IMAGES):
        pixels = np.random.default_rng(i % (IMAGES - 2)).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:03d}.png")
        images.append({"id": i, "file_name": f"{i:03d}.png", "width": 60, "height": 40, "patient": i // 3})
        box = [1, 2, 10, 0 if i % 25 == 7 else 12]
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": box})
    (folder / "images" / "030.png").write_bytes(b"no picture")
    categories = [{"id": 1, "name": "cell"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CocoReader, "batch", 4)
    monkeypatch.setattr(build_module, "_FEWEST_CHUNKS", 1)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one uninterrupted process makes of the source."""
    out = tmp_path_factory.mktemp("whole") / "out"
    manifest = build(recipe(), source, out, SALT, samples_per_shard=8)
    assert manifest["images"] == {"found": IMAGES, "written": IMAGES - 3, "quarantined": 3}
    assert manifest["regions"] == {"found": IMAGES, "written": IMAGES - 6, "quarantined": 6}
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    """The shareable folder and the list of faults, byte for byte."""
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    private = out.with_name(out.name + ".private")
    assert {path.name for path in private.iterdir()} == {"quarantine.jsonl", "build.log"}
    return files | {"quarantine": (private / "quarantine.jsonl").read_bytes()}


def test_any_number_of_workers_gives_the_same_bytes(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    build(recipe(), source, tmp_path / "out", SALT, samples_per_shard=8, workers=2)
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("elsewhere", [False, True])
def test_merged_parts_give_the_same_bytes(
    source: Path, tmp_path: Path, whole: dict[str, bytes], elsewhere: bool
) -> None:
    folders = [tmp_path / (f"{part}.private" if elsewhere and part > 1 else "out.private") for part in (1, 2, 3)]
    for part in (3, 1, 2):
        convert_part(recipe(), source, folders[part - 1], SALT, part=part, parts=3)
    merge(recipe(), folders, tmp_path / "out", samples_per_shard=8)
    assert contents(tmp_path / "out") == whole


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process, to its end or its death; its wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(2)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def kill_at(count: int, functions: list[tuple[Any, str]]) -> None:
    """Have this process killed when it calls one of some functions for the `count`-th time."""
    left = iter(range(count))

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    for module, name in functions:
        setattr(module, name, wrap(getattr(module, name)))


def test_killed_at_any_file_operation_and_begun_again(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Every third rename, flush or deletion, up to the very last one, is the last thing that a build does."""
    functions = [(os, "replace"), (os, "fsync"), (shutil, "rmtree")]
    for number in range(0, 1000, 3):
        out = tmp_path / str(number) / "out"

        def work(number: int = number, out: Path = out) -> None:
            kill_at(number, functions)
            build(recipe(), source, out, SALT, samples_per_shard=8)

        status = in_child(work)
        build(recipe(), source, out, SALT, samples_per_shard=8) if status else None
        assert contents(out) == whole, number
        assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.private"]
        if status == 0:
            assert number > 90, "the operations were counted"
            return
    raise AssertionError("never finished")


def test_killed_at_ten_random_moments_with_workers(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    moments = random.Random(3)
    killed = 0
    out = tmp_path / "out"
    start = time.monotonic()
    build(recipe(), source, tmp_path / "measured", SALT, samples_per_shard=8, workers=2)
    takes = time.monotonic() - start
    for _ in range(10):
        child = os.fork()
        if child == 0:
            os.close(2)
            build(recipe(), source, out, SALT, samples_per_shard=8, workers=2)
            os._exit(0)
        time.sleep(moments.uniform(0.02, takes))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] != 0
        if out.exists():  # it was done, but for tidying up perhaps
            if len(list(tmp_path.glob("out.private/*"))) > 2:
                build(recipe(), source, out, SALT)
            assert contents(out) == whole
            shutil.rmtree(out)
    assert killed >= 5
    build(recipe(), source, out, SALT, samples_per_shard=8, workers=2)
    assert contents(out) == whole


def stop_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a build be interrupted after some chunks."""
    left = iter(range(chunks))
    original = build_module._Job.__call__

    def call(self: Any, chunk: int) -> int:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(self, chunk)

    monkeypatch.setattr(build_module._Job, "__call__", call)


def test_what_is_converted_is_not_converted_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            build(recipe(), source, tmp_path / "out", SALT)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.private" / "part-1-of-1").glob("*.bin"))) == 5
    build(recipe(), source, tmp_path / "out", SALT)
    assert f"going on after 20 of {IMAGES} images" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["recipe_sha256", "salt", "entries"])
def test_what_another_build_left_is_not_taken_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = shutil.copytree(source, tmp_path / "source")
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            build(recipe(), folder, tmp_path / "out", SALT)
    if what == "entries":
        (folder / "images" / "000.png").rename(folder / "images" / "00x.png")
    changed = recipe(terms={"cell": "microscopy"}) if what == "recipe_sha256" else recipe()
    with pytest.raises(MedpclipError, match=f"interrupted build .* differs in .*{what}.*; delete the folder"):
        build(changed, folder, tmp_path / "out", OTHER_SALT if what == "salt" else SALT)


def test_a_missing_part_is_named(source: Path, tmp_path: Path) -> None:
    for part in (1, 3):
        convert_part(recipe(), source, tmp_path / "private", SALT, part=part, parts=3)
    with pytest.raises(MedpclipError, match=r"5 of 15 chunks are not converted \(of part 2 of 3\)"):
        merge(recipe(), [tmp_path / "private"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(MedpclipError, match="no converted part to merge"):
        merge(recipe(), [tmp_path / "nothing"], tmp_path / "out")


def test_parts_of_two_salts_are_refused(source: Path, tmp_path: Path) -> None:
    convert_part(recipe(), source, tmp_path / "a", SALT, part=1, parts=2)
    convert_part(recipe(), source, tmp_path / "b", OTHER_SALT, part=2, parts=2)
    with pytest.raises(MedpclipError, match=f"another salt.*{OTHER_SALT.fingerprint}.*{SALT.fingerprint}"):
        merge(recipe(), [tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_parts_of_two_builds_are_refused(source: Path, tmp_path: Path) -> None:
    convert_part(recipe(), source, tmp_path / "a", SALT, part=1, parts=2)
    convert_part(recipe(terms={"cell": "blood"}), source, tmp_path / "b", SALT, part=2, parts=2)
    with pytest.raises(MedpclipError, match="part of another build.*recipe_sha256"):
        merge(recipe(), [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    convert_part(recipe(), source, tmp_path / "a", SALT, part=2, parts=2)
    with pytest.raises(MedpclipError, match="converted by another recipe"):
        merge(recipe(terms={"cell": "blood"}), [tmp_path / "a"], tmp_path / "out")


def test_two_processes_do_not_build_the_same_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module.time, "sleep", lambda seconds: None)
    (tmp_path / "out.private").mkdir()
    with (
        build_module._lock(tmp_path / "out.private"),
        pytest.raises(MedpclipError, match="another process builds there just now"),
    ):
        build(recipe(), source, tmp_path / "out", SALT)


def test_a_killed_worker_is_an_error_that_says_how_to_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(CocoReader, "read", lambda self, entry: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(MedpclipError, match="worker process was killed.*fewer --workers"):
            build(recipe(), source, tmp_path / "out", SALT, samples_per_shard=8, workers=2)
    build(recipe(), source, tmp_path / "out", SALT, samples_per_shard=8)
    assert contents(tmp_path / "out") == whole


def test_one_file_that_breaks_a_reader_does_not_end_the_build(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CocoReader.read

    def read(self: CocoReader, entry: Any) -> Any:
        if entry.image.endswith("011.png"):
            raise ZeroDivisionError("nobody thought of it")
        return original(self, entry)

    monkeypatch.setattr(CocoReader, "read", read)
    manifest = build(recipe(), source, tmp_path / "out", SALT)
    assert manifest["quarantine"]["reader failed unexpectedly"] == {"faults": 1, "images": 1, "regions": 0}
    lines = (tmp_path / "out.private" / "quarantine.jsonl").read_text()
    assert "images/011.png" in lines and "ZeroDivisionError: nobody thought of it" in lines


def test_images_and_masks_that_changed_in_between_are_converted_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(source, tmp_path / "source")
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            build(recipe(), folder, tmp_path / "out", SALT)
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(folder / "images" / "002.png")
    annotations = json.loads((folder / "annotations.json").read_text())
    annotations["annotations"][9]["bbox"] = [5, 5, 5, 5]
    (folder / "annotations.json").write_text(json.dumps(annotations))
    for name in ("out", "fresh"):
        build(recipe(), folder, tmp_path / name, SALT)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    said = capsys.readouterr().err
    assert "files of 8 converted images have changed" in said and f"going on after 12 of {IMAGES} images" in said


@pytest.mark.parametrize("what", ["table", "list"])
def test_a_table_or_published_split_that_changed_in_between_is_another_build(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Half of the images would have the old labels, or lie in the old split."""
    folder = shutil.copytree(source, tmp_path / "source")
    names = [f"{i:03d}" for i in range(IMAGES)]
    (folder / "table.csv").write_text("name,stage\n" + "".join(f"{name},P\n" for name in names))
    (folder / "train.txt").write_text("\n".join(names))
    given = recipe(
        table={"file": "table.csv", "key": "name"},
        labels={"stage": {"key": "stage", "values": {"P": "early", "Q": "late"}}},
        split={"files": {"train": "train.txt"}},
    )
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            build(given, folder, tmp_path / "out", SALT)
    path, text = (folder / "table.csv", "name,stage\n001,Q\n") if what == "table" else (folder / "train.txt", "001")
    path.write_text(text)
    with pytest.raises(MedpclipError, match="interrupted build .* differs in entries"):
        build(given, folder, tmp_path / "out", SALT)


def test_parts_converted_anew_are_not_taken_for_those_of_finished_shards(source: Path, tmp_path: Path) -> None:
    """The shards would stay the old ones, and the new chunks be deleted."""
    build(recipe(), source, tmp_path / "out", SALT)
    convert_part(recipe(), source, tmp_path / "out.private", SALT)
    with pytest.raises(MedpclipError, match="exists and is not an empty folder"):
        merge(recipe(), [tmp_path / "out.private"], tmp_path / "out")
    assert list((tmp_path / "out.private" / "part-1-of-1").glob("*.bin"))


@pytest.mark.parametrize("where", ["shard", "manifest", "folder", "quarantine", "spool"])
def test_a_full_disk_is_a_message_and_the_build_goes_on_afterwards(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes], where: str
) -> None:
    ends = {"shard": ".tar", "manifest": "manifest.json", "folder": "/out", "spool": "000003.bin"}
    replace, fsync = os.replace, os.fsync

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fsync_of(descriptor: int) -> None:
        full() if os.readlink(f"/proc/self/fd/{descriptor}").endswith("quarantine.jsonl") else fsync(descriptor)

    with monkeypatch.context() as patch:
        if where == "quarantine":
            patch.setattr(os, "fsync", fsync_of)
        else:
            patch.setattr(os, "replace", lambda a, b: full() if str(b).endswith(ends[where]) else replace(a, b))
        with pytest.raises(MedpclipError, match=r"can't be written \(No space left on device\); make room there"):
            build(recipe(), source, tmp_path / "out", SALT, samples_per_shard=8)
    assert [path.name for path in tmp_path.iterdir()] == ["out.private"]
    build(recipe(), source, tmp_path / "out", SALT, samples_per_shard=8)
    assert contents(tmp_path / "out") == whole


def test_a_file_system_without_locks_is_built_on_with_a_warning(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes], capsys: Any
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(build_module.fcntl, "flock", flock)
    build(recipe(), source, tmp_path / "out", SALT, samples_per_shard=8)
    assert contents(tmp_path / "out") == whole
    assert "can't be locked (Function not implemented); start no second build there" in capsys.readouterr().err


def test_all_private_folders_are_private_while_parts_are_converted(source: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        convert_part(recipe(), source, tmp_path / "private", SALT, part=1, parts=2)
    finally:
        os.umask(before)
    for path in [tmp_path / "private", *(tmp_path / "private").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_would_fail_at_the_end_fails_at_the_start(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match="--samples-per-shard is 0; give 1 or more"):
        build(recipe(), source, tmp_path / "out", SALT, samples_per_shard=0)
    with pytest.raises(MedpclipError, match="--out .: its private folder would have no name"):
        build(recipe(), source, Path(), SALT)
    assert not list(tmp_path.iterdir())


def test_a_source_that_was_copied_with_its_times_has_not_changed(tmp_path: Path) -> None:
    """As where each job copies it to a disk of its own."""
    (tmp_path / "a").mkdir()
    for name in ("1.png", "1.xml"):
        (tmp_path / "a" / name).write_text(name)
        os.utime(tmp_path / "a" / name, (1e9, 1e9 + 0.7))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    stamps = [stamp([Entry("1.png", [{"file": tmp_path / x / "1.xml"}])], tmp_path / x) for x in "ab"]
    assert stamps[0] == stamps[1]
    (tmp_path / "b" / "1.xml").write_text("1.xmL")
    assert stamp([Entry("1.png", [{"file": tmp_path / "b" / "1.xml"}])], tmp_path / "b") != stamps[0]
