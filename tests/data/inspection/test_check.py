"""The checker finds what is planted, in lines that name the place."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.data.inspection.check import check_folder
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import MANIFEST, ShardWriter, index_path
from medpclip.files import file_sha256


def png(width: int = 12, height: int = 9) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def sample(i: int, **changes: Any) -> Sample:
    region = Region(1, "lung", bbox=[1.0, 1.0, 3.0, 3.0], segmentation=encode_mask(np.eye(9, 12)))
    facts: dict[str, Any] = {"split": "train", "group": f"g{i}", "regions": [region]} | changes
    return Sample(f"{i:04x}", "test", modality="m", width=12, height=9, **facts)


def write(folder: Path, samples: list[Sample], image: bytes | None = None) -> Path:
    with ShardWriter(folder, samples_per_shard=3) as writer:
        for item in samples:
            writer.add(item, image or png(), "png")
        writer.finish()
    return folder


def problems(folder: Path) -> str:
    return "\n".join(check_folder(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "s", [sample(i) for i in range(4)])


def edit_manifest(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def rewrite(folder: Path, change: Any) -> None:
    """Change the first JSON in the first shard and make hash and index right again, as a careful forger would."""
    path = folder / "train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    name, data = members[1]
    parsed = json.loads(data)
    change(parsed)
    members[1] = (name, json.dumps(parsed).encode())
    index: dict[str, Any] = {"keys": [], "images": [], "jsons": []}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            offset = tar.offset + 512
            tar.addfile(info, io.BytesIO(data))
            key, _, extension = name.partition(".")
            if extension == "json":
                index["jsons"].append([offset, len(data)])
            else:
                index["keys"].append(key)
                index["images"].append([offset, len(data), extension])
    index_path(path).write_text(json.dumps(index))
    edit_manifest(folder, lambda m: m["shards"][0].update(sha256=file_sha256(path), bytes=path.stat().st_size))


def test_good_folder_has_no_problem(folder: Path) -> None:
    assert problems(folder) == ""
    rewrite(folder, lambda parsed: None)
    assert problems(folder) == ""


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    assert "no such folder" in problems(tmp_path / "none")
    assert "not a folder of shards" in problems(tmp_path)


def test_a_flipped_byte_breaks_the_hash(folder: Path) -> None:
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "its SHA-256 is not the one in manifest.json" in problems(folder)


@pytest.mark.parametrize("keep", [0, 100, 700, 1600, 3000])
def test_truncated_shard(folder: Path, keep: int) -> None:
    path = folder / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    found = problems(folder)
    assert f"{keep} bytes, manifest.json says" in found
    assert "key 'splits.train.samples' is 4" in found


def test_missing_and_unlisted_shards(folder: Path) -> None:
    (folder / "train-000001.tar").rename(folder / "train-000009.tar")
    found = problems(folder)
    assert "train-000001.tar: listed in manifest.json but missing" in found
    assert "train-000009.tar: not listed in manifest.json" in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["images"][0].__setitem__(0, 7), "lies at (512, "),
        (lambda index: index["keys"].pop(), "unreadable index"),
        (lambda index: index.pop("jsons"), "key 'jsons' is missing"),
        (lambda index: [part.pop() for part in index.values()], "the index says None"),
    ],
)
def test_wrong_index(folder: Path, change: Any, message: str) -> None:
    path = index_path(folder / "train-000000.tar")
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    assert message in problems(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(width=13, regions=[]), "the image is 12x9, the JSON says 13x9"),
        (lambda s: s.update(split="val"), "its split is 'val', the shard's 'train'"),
        (lambda s: s.update(schema=3), "schema is 3"),
        (lambda s: s["regions"][0].update(bbox=[1, 1, 99, 1]), "box reaches outside"),
        (lambda s: s["regions"][0]["segmentation"].update(counts="1"), "regions[0]: run lengths are broken"),
        (lambda s: s["regions"].pop(), "key 'splits.train.regions' is 4, the shards hold 3"),
        (lambda s: s.update(modality="x"), "key 'splits.train.modality' is {'m': 4}, the shards hold {'m': 3, 'x': 1}"),
        (lambda s: s["regions"][0].update(category="x"), "key 'splits.train.category'"),
    ],
)
def test_forged_sample(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    assert message in problems(folder)


def test_image_that_does_not_decode(tmp_path: Path) -> None:
    assert "unreadable image" in problems(write(tmp_path / "s", [sample(0)], png()[:40]))


def test_group_in_two_splits(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [sample(0, group="a"), sample(1, group="a", split="test")])
    assert "group a is in several splits (test, train)" in problems(folder)


def test_key_in_two_shards(folder: Path) -> None:
    source, twin = folder / "train-000001.tar", folder / "train-000002.tar"
    twin.write_bytes(source.read_bytes())
    index_path(twin).write_bytes(index_path(source).read_bytes())
    edit_manifest(folder, lambda m: m["shards"].append(m["shards"][1] | {"name": twin.name}))
    assert "0003: the key is in train-000001.tar too" in problems(folder)
