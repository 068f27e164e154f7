"""The checker finds what is planted, in lines that name the place."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

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
    facts: dict[str, Any] = {"split": "train", "group": f"{i:032x}", "regions": [region]} | changes
    return Sample(f"{i:032x}", "test", modality="m", width=12, height=9, **facts)


def write(folder: Path, samples: list[Sample], image: bytes | None = None) -> Path:
    with ShardWriter(folder, samples_per_shard=3) as writer:
        for item in samples:
            writer.add(item, image or png(), "jpg" if (image or b"").startswith(b"\xff\xd8") else "png")
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
    group = "a" * 32
    folder = write(tmp_path / "s", [sample(0, group=group), sample(1, group=group, split="test")])
    assert f"group {group} is in several splits (test, train)" in problems(folder)


def test_key_in_two_shards(folder: Path) -> None:
    source, twin = folder / "train-000001.tar", folder / "train-000002.tar"
    twin.write_bytes(source.read_bytes())
    index_path(twin).write_bytes(index_path(source).read_bytes())
    edit_manifest(folder, lambda m: m["shards"].append(m["shards"][1] | {"name": twin.name}))
    assert "0003: the key is in train-000001.tar too" in problems(folder)


def test_workers_change_nothing(folder: Path) -> None:
    rewrite(folder, lambda parsed: parsed.update(split="val"))
    (folder / "train-000001.tar").unlink()
    found = list(check_folder(folder))
    assert len(found) > 3
    assert list(check_folder(folder, workers=2)) == found


@pytest.mark.parametrize("name", ["patients.csv", ".train-000009.tar.part", "notes/a.txt"])
def test_files_that_do_not_belong_there(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert f"{folder / name}: no part of a folder of shards" in problems(folder)


def with_tar(folder: Path, change: Any) -> None:
    """Write the first shard again, each member's header changed."""
    path = folder / "train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            change(member)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    "change",
    [
        {"uname": "anna"},
        {"gname": "clinic"},
        {"uid": 1000},
        {"mtime": 1_600_000_000},
        {"mtime": 1_600_000_000.5},
    ],
)
def test_headers_that_name_somebody(folder: Path, change: dict[str, Any]) -> None:
    with_tar(folder, lambda member: [setattr(member, name, value) for name, value in change.items()])
    found = problems(folder)
    assert "its header names an owner, a time or more" in found
    assert "anna" not in found and "clinic" not in found


def test_members_that_do_not_belong_there(folder: Path) -> None:
    with tarfile.open(folder / "train-000000.tar", "a", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO())
        link = tarfile.TarInfo("link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo(f"{0:032x}.png"), io.BytesIO())
    found = problems(folder)
    assert "notes.txt: has no sample" in found
    assert "link.json: is no plain file" in found
    assert f"{0:032x}.png: is there twice" in found


def jpeg(**options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 12), np.uint8)).save(stream, "JPEG", **options)
    return stream.getvalue()


def png_with_text(kind: str) -> bytes:
    stream, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("Name", "Anna", zip=kind == "zTXt")
    Image.fromarray(np.zeros((9, 12), np.uint8)).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (jpeg(comment="Anna"), "a JPEG comment"),
        (jpeg(exif=b"Exif\0\0Anna"), "JPEG segment APP1"),
        (jpeg(icc_profile=b"Anna"), "JPEG segment APP2"),
        (jpeg() + b"Anna", "bytes behind the JPEG's end"),
        (png_with_text("tEXt"), "PNG chunk tEXt"),
        (png_with_text("zTXt"), "PNG chunk zTXt"),
        (png() + b"Anna", "bytes behind the PNG's end"),
    ],
)
def test_images_with_metadata(tmp_path: Path, image: bytes, part: str) -> None:
    found = problems(write(tmp_path / "s", [sample(0)], image))
    assert f"the image carries {part}; rebuild the shard" in found
    assert "Anna" not in found
    assert problems(write(tmp_path / "good", [sample(0)], jpeg())) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(group="Anna Schmidt"), "its group is no hash"),
        (lambda s: s.update(volume={"id": "v", "index": 3, "count": 3, "axis": "z"}), "key 'volume' is broken"),
        (lambda s: s.update(volume={"index": 0, "count": 3}), "key 'volume' is broken"),
        (lambda s: s.update(captions=["Seen by Dr. Anna Schmidt."]), "captions[0] may identify somebody (NAME)"),
        (lambda s: s.update(captions=["No effusion.", " "]), "captions[1] is empty or has loose white space"),
    ],
)
def test_samples_that_no_build_writes(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    found = problems(folder)
    assert message in found
    assert "Anna" not in found


def test_volumes_are_whole(tmp_path: Path) -> None:
    def slice_of(i: int, index: int, **changes: Any) -> Sample:
        return sample(i, volume={"id": "v", "index": index, "count": 4, "axis": "z"}, **changes)

    group = "a" * 32
    good = [slice_of(i, i, group=group) for i in range(4)]
    assert problems(write(tmp_path / "good", good)) == ""
    twice = problems(write(tmp_path / "twice", [slice_of(0, 1, group=group), slice_of(1, 1, group=group)]))
    assert "its place in its volume is another sample's too" in twice
    apart = problems(write(tmp_path / "apart", [slice_of(0, 0, group=group), slice_of(1, 1)]))
    assert "its group is not that of its volume" in apart


def test_sums_of_the_manifest(folder: Path) -> None:
    edit_manifest(folder, lambda m: m.update(images={"found": 5, "written": 4, "quarantined": 1}))
    assert problems(folder) == ""
    edit_manifest(folder, lambda m: m["images"].update(found=6))
    assert "key 'images' doesn't add up with 4 in the shards" in problems(folder)
    edit_manifest(folder, lambda m: m.update(images=7))
    assert "key 'images' doesn't add up" in problems(folder)


def test_a_label_may_be_a_list(folder: Path) -> None:
    rewrite(folder, lambda parsed: parsed.update(labels={"finding": ["effusion", "nodule"], "view": "AP"}))
    assert problems(folder) == ""
