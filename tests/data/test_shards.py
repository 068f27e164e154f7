"""Shards: written whole or not at all, the same bytes each time, and read alike by us and by webdataset."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.data import shards as shards_module
from medpclip.data.schema import Region, Sample
from medpclip.data.shards import MANIFEST, ShardFolder, ShardWriter, decode_image, index_path, shard_folders
from medpclip.errors import MedpclipError


def png(seed: int, width: int = 12, height: int = 9) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def sample(i: int, split: str = "train") -> Sample:
    regions = [Region(n, f"term{n % 2}", bbox=[1.0, 1.0, 2.0 + n, 3.0]) for n in range(i % 3)]
    return Sample(f"{i:032x}", "test", split, f"g{i}", "m", 12, 9, regions=regions, extra={"later": i})


def write(folder: Path, count: int = 7) -> Path:
    with ShardWriter(folder, samples_per_shard=3) as writer:
        for i in range(count):
            writer.add(sample(i, ("train", "train", "test")[i % 3]), png(i), "png")
        writer.finish(recipe={"name": "test"})
    return folder


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    shards = ShardFolder(write(tmp_path / "s"))
    found = {shards.rows[i].key: i for i in range(len(shards))}
    assert len(found) == 7
    for i in range(7):
        row = found[f"{i:032x}"]
        assert shards.sample(row) == sample(i, ("train", "train", "test")[i % 3])
        assert shards.image_bytes(row) == png(i)
        assert np.array_equal(shards.image(row), decode_image(png(i), "here"))
    assert len(ShardFolder(tmp_path / "s", "train")) == 5
    assert [s["samples"] for s in shards.manifest["shards"]] == [3, 2, 2]


def test_manifest_counts_what_the_shards_hold(tmp_path: Path) -> None:
    manifest = ShardFolder(write(tmp_path / "s")).manifest
    assert manifest["splits"]["train"] == {
        "samples": 5,
        "regions": 0 + 1 + 0 + 1 + 0,
        "modality": {"m": 5},
        "category": {"term0": 2},
    }
    assert manifest["splits"]["test"]["category"] == {"term0": 2, "term1": 2}


def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = ShardFolder(write(tmp_path / "s"))
    urls = [str(shards.folder / shard["name"]) for shard in shards.manifest["shards"]]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [item["__key__"] for item in theirs] == [row.key for row in shards.rows]
    for i, item in enumerate(theirs):
        assert item["png"] == shards.image_bytes(i)
        assert Sample.from_json(json.loads(item["json"]), item["__key__"], "here") == shards.sample(i)


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_leaving_early_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "s") as writer:
        writer.add(sample(0), png(0), "png")
        raise RuntimeError("stop")
    assert not any((tmp_path / "s").iterdir())
    with pytest.raises(MedpclipError, match="did not finish"):
        ShardFolder(tmp_path / "s")


def test_same_key_twice_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s") as writer:
        writer.add(sample(0), png(0), "png")
        with pytest.raises(MedpclipError, match="occurs twice"):
            writer.add(sample(0), png(0), "png")


def test_finished_folder_is_not_written_again(tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match="already holds"):
        ShardWriter(write(tmp_path / "s"))


def test_survives_pickling_to_a_worker(tmp_path: Path) -> None:
    shards = ShardFolder(write(tmp_path / "s"))
    shards.image_bytes(0)
    assert pickle.loads(pickle.dumps(shards)).image_bytes(1) == shards.image_bytes(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "broken JSON"),
        ("[]", "key 'shards' is missing"),
        ('{"shards": 3}', "key 'shards' is missing or not a list"),
        ('{"schema": 9, "shards": []}', "key 'schema' is 9"),
        ('{"schema": 1, "shards": []}', "key 'splits' is missing"),
        ('{"schema": 1, "splits": {}, "shards": []}', "lists no shard"),
        ('{"schema": 1, "splits": {}, "shards": [{}]}', "'shards.0.' is broken"),
        ('{"schema": 1, "splits": {}, "shards": [7]}', "'shards.0.' is broken"),
        (
            '{"schema": 1, "splits": {}, "shards": [{"name": "../a.tar", "split": "", "samples": 1}]}',
            "'shards.0.' is broken",
        ),
    ],
)
def test_bad_manifest(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path / "s")
    (folder / MANIFEST).write_text(text)
    with pytest.raises(MedpclipError, match=message):
        ShardFolder(folder)


def test_truncated_missing_or_unindexed_shard(tmp_path: Path) -> None:
    folder = write(tmp_path / "s")
    shard = folder / "train-000000.tar"
    index = index_path(shard).read_text()
    index_path(shard).write_text(index[:-4])
    with pytest.raises(MedpclipError, match="unreadable index"):
        ShardFolder(folder)
    os.truncate(shard, 700)
    with pytest.raises(MedpclipError, match="truncated"):
        ShardFolder(folder)
    shard.unlink()
    with pytest.raises(MedpclipError, match="missing"):
        ShardFolder(folder)


def test_unknown_split_names_those_there(tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match="it has: train, test"):
        ShardFolder(write(tmp_path / "s"), "val")


def test_folder_of_folders(tmp_path: Path) -> None:
    write(tmp_path / "all" / "b")
    write(tmp_path / "all" / "a")
    (tmp_path / "all" / "a.private").mkdir()
    assert [path.name for path in shard_folders(tmp_path / "all")] == ["a", "b"]
    assert shard_folders(tmp_path / "all" / "a") == [tmp_path / "all" / "a"]
    with pytest.raises(MedpclipError, match="no such folder"):
        shard_folders(tmp_path / "nowhere")
    with pytest.raises(MedpclipError, match="not a folder of shards"):
        shard_folders(tmp_path / "all" / "a.private")


@pytest.mark.parametrize("data", [b"", b"no image", png(0)[:60]])
def test_unreadable_image_names_its_place(data: bytes) -> None:
    with pytest.raises(MedpclipError, match="shard: key: unreadable image"):
        decode_image(data, "shard: key")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def many(folder: Path, count: int) -> ShardFolder:
    with ShardWriter(folder, samples_per_shard=1) as writer:
        for i in range(count):
            writer.add(sample(i), png(i), "png")
        writer.finish(recipe={"name": "test"})
    return ShardFolder(folder)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_few_shards_are_open_at_once_and_none_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "_MAX_OPEN", 4)
    before = open_descriptors()
    shards = many(tmp_path / "s", 12)
    for i in [*range(12), *range(12), 11, 0, 11]:
        assert shards.image_bytes(i) == png(i) and open_descriptors() <= before + 4
    assert open_descriptors() == before + 4
    shards.close()
    assert open_descriptors() == before and shards.image_bytes(3) == png(3)
    del shards
    assert open_descriptors() == before


def test_a_forked_worker_opens_its_own(tmp_path: Path) -> None:
    shards = many(tmp_path / "s", 2)
    shards.image_bytes(0)
    inherited = dict(shards._files)
    child = os.fork()
    if child == 0:
        good = shards.image_bytes(1) == png(1) and list(shards._files) == [shards.rows[1].shard]
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert dict(shards._files) == inherited and shards.image_bytes(0) == png(0)


def test_the_least_used_shard_is_closed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "_MAX_OPEN", 2)
    shards = many(tmp_path / "s", 3)
    for i in (0, 1, 0, 2):
        shards.image_bytes(i)
    assert list(shards._files) == [shards.rows[0].shard, shards.rows[2].shard]


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "x" * 91, "ä"])
def test_keys_that_a_tar_would_garble_are_refused(tmp_path: Path, key: str) -> None:
    bad = sample(0)
    bad.key = key
    with ShardWriter(tmp_path / "s") as writer, pytest.raises(MedpclipError, match="its key can't name a member"):
        writer.add(bad, png(0), "png")


def test_what_is_no_json_leaves_no_half_sample(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s") as writer:
        for i, value in enumerate((float("nan"), object())):
            bad = sample(i)
            bad.extra = {"later": value}
            with pytest.raises(MedpclipError, match="no JSON"):
                writer.add(bad, png(0), "png")
        writer.add(sample(0), png(0), "png")  # the refused key is free again
        writer.finish()
    assert len(ShardFolder(tmp_path / "s")) == 1


def test_empty_words_are_counted_too(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s") as writer:
        plain, slashed = sample(0), sample(1)
        plain.modality, slashed.regions[0].category = "", "a/b"
        writer.add(plain, png(0), "png")
        writer.add(slashed, png(1), "png")
        counts = writer.finish()["splits"]["train"]
    assert counts["modality"] == {"": 1, "m": 1} and counts["category"] == {"a/b": 1}


def test_a_shard_that_can_not_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), ShardWriter(tmp_path / "s") as writer:
        writer.add(sample(0), png(0), "png")
        monkeypatch.setattr(os, "fsync", full)
        writer.finish()
    assert not any((tmp_path / "s").iterdir())


def test_writing_atomically_forgets_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".a.part").write_text("left by a kill, for all to read")
    (tmp_path / ".a.part").chmod(0o644)
    shards_module.write_atomically(tmp_path / "a", b"secret", 0o600)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        shards_module.write_atomically(tmp_path / "a", b"more")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"secret"


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"].append(m["shards"][0]), r"'shards\[3\]' is broken"),
        (lambda m: m["splits"].pop("test"), r"'shards\[2\]' is broken"),
        (lambda m: m["splits"]["test"].pop("category"), r"'splits\.test' is broken"),
        (lambda m: m["splits"].update(val=3), r"'splits\.val' is broken"),
        (lambda m: m["shards"][0].update(samples=2), "it names 3 samples, manifest.json 2"),
    ],
)
def test_manifests_that_contradict_themselves(tmp_path: Path, change: Any, message: str) -> None:
    folder = write(tmp_path / "s")
    change_manifest(folder, change)
    with pytest.raises(MedpclipError, match=message):
        ShardFolder(folder)


def test_an_index_of_wrong_types(tmp_path: Path) -> None:
    folder = write(tmp_path / "s")
    path = index_path(folder / "train-000000.tar")
    index = json.loads(path.read_text())
    index["jsons"][1][0] = 0.5
    path.write_text(json.dumps(index))
    with pytest.raises(MedpclipError, match="unreadable index .an offset is not a whole number"):
        ShardFolder(folder)
