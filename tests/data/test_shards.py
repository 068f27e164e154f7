"""Shards: written whole or not at all, the same bytes each time, and read alike by us and by webdataset."""

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
