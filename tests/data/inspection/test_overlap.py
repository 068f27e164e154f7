"""Overlap finds what is planted, keeps different pictures apart, and refuses to compare groups of two salts."""

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from medpclip.data.inspection import fingerprints
from medpclip.data.inspection.fingerprints import distances, similarity
from medpclip.data.inspection.overlap import Thresholds, overlap
from medpclip.data.inspection.overlap_command import add_overlap
from medpclip.data.schema import Sample
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError

COUNT = 12


def picture(seed: int, kind: int = 0) -> Image.Image:
    """Pictures of one kind share their coarse layout and differ in detail, as radiographs of two patients do."""
    detail = gaussian_filter(np.random.default_rng(seed).normal(size=(200, 260)), 3)
    layout = gaussian_filter(np.random.default_rng(1000 + kind).normal(size=(200, 260)), 25)
    values = layout / np.abs(layout).max() + 0.6 * detail / np.abs(detail).max()
    return Image.fromarray(np.uint8(np.clip(128 + 80 * values, 0, 255)))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def crop(image: Image.Image) -> Image.Image:
    dx, dy = round(0.02 * image.width), round(0.02 * image.height)
    return image.crop((0, dy, image.width - dx, image.height))


PLANTS: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg 60": lambda image: jpeg(image, 60),
    "scaled": lambda image: jpeg(image.resize((182, 140), Image.Resampling.BICUBIC)),
    "brighter": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.1)),
    "darker": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.9)),
    "cropped": lambda image: jpeg(crop(image)),
    "as it is": png,
    "mirrored": lambda image: png(ImageOps.mirror(image)),
}


def write(
    folder: Path, images: list[bytes], split: str = "test", prefix: str = "", salt: str = "s1", group: str = "g{}"
) -> Path:
    with ShardWriter(folder, 5) as writer:
        for i, data in enumerate(images):
            with Image.open(io.BytesIO(data)) as image:
                size = image.size
            name = "jpg" if data[:2] == b"\xff\xd8" else "png"
            writer.add(Sample(f"{prefix}{i:04x}", "made-up", split, group.format(i), "drawing", *size), data, name)
        writer.finish(salt=salt)
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "s"
    return write(folder, [png(picture(i)) for i in range(COUNT)], "train", "a", group="a{}")


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_near_duplicates_are_found_each_with_its_own(train: Path, tmp_path: Path, plant: str) -> None:
    test = write(tmp_path / "s", [PLANTS[plant](picture(i)) for i in range(COUNT)], prefix="b", group="b{}")
    found = overlap(train, test)
    assert {(pair.a, pair.b) for pair in found.pairs} == {(i, i) for i in range(COUNT)}
    assert all(pair.flipped == (plant == "mirrored") for pair in found.pairs)
    assert (found.near_duplicates, found.touched, found.share, found.shared_keys) == (COUNT, COUNT, 1.0, 0)


def test_pictures_of_one_kind_are_no_duplicates(train: Path, tmp_path: Path) -> None:
    test = write(tmp_path / "s", [png(picture(100 + i)) for i in range(COUNT)], prefix="b", group="b{}")
    loose = overlap(train, test, thresholds=Thresholds(64, 256, -1))
    assert len(loose.pairs) == COUNT * COUNT  # every pair was looked at ...
    assert max(pair.similarity for pair in loose.pairs) < 0.5  # ... and none is near
    assert overlap(train, test).share == 0


def test_keys_and_groups(train: Path, tmp_path: Path) -> None:
    pictures = [png(picture(50 + i)) for i in range(3)]
    found = overlap(train, write(tmp_path / "keys", pictures, prefix="a", group="b{}"))
    assert (found.shared_keys, found.near_duplicates, found.touched) == (3, 0, 3)
    found = overlap(train, write(tmp_path / "groups", pictures, prefix="b", group="a1"))
    assert (found.shared_groups, found.images_in_shared_groups, found.touched) == (1, 3, 3)
    found = overlap(train, tmp_path / "groups", groups=False)
    assert (found.shared_groups, found.touched) == (None, 0)


def test_other_salt_is_refused_for_groups_alone(train: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "s", [png(picture(0))], prefix="b", salt="s2")
    with pytest.raises(MedpclipError, match=r"different salts \(s1 and s2\).*--no-groups") as caught:
        overlap(train, other)
    assert "\n" not in str(caught.value)
    assert overlap(train, other, groups=False).near_duplicates == 1


def test_folder_with_itself_across_splits_and_within(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s") as writer:
        for i, (seed, split) in enumerate(((0, "train"), (1, "train"), (0, "test"), (2, "test"))):
            data = png(picture(seed))
            writer.add(Sample(f"{i:04x}", "x", split, f"g{i}", "drawing", 260, 200), data, "png")
        writer.finish(salt="s")
    found = overlap(tmp_path / "s", tmp_path / "s", split_a="train", split_b="test")
    assert [(pair.a, pair.b) for pair in found.pairs] == [(0, 0)]
    assert (found.images_a, found.images_b, found.shared_keys) == (2, 2, 0)
    found = overlap(tmp_path / "s", tmp_path / "s")
    assert {(pair.a, pair.b) for pair in found.pairs} == {(0, 2), (2, 0)}
    assert (found.shared_keys, found.shared_groups) == (0, 0)


def test_workers_and_blocks_change_nothing(train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = write(tmp_path / "s", [jpeg(picture(i)) for i in range(COUNT)], prefix="b", group="b{}")
    one = overlap(train, test)
    monkeypatch.setattr("medpclip.data.inspection.overlap._BLOCK", 5)
    monkeypatch.setattr("medpclip.data.inspection.overlap._CHUNK", 5)
    assert overlap(train, test, workers=2).pairs == one.pairs


def test_distances_equal_a_count_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 1 << 63, (5, 1, 4), np.uint64), rng.integers(0, 1 << 63, (1, 7, 4), np.uint64)
    by_hand = [[sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(p, q, strict=True)) for q in b[0]] for p in a[:, 0]]
    assert distances(a, b).tolist() == by_hand
    monkeypatch.delattr(np, "bitwise_count", raising=False)  # older numpy
    assert fingerprints.distances(a, b).tolist() == by_hand


def test_similarity_of_flat_pictures_is_finite() -> None:
    flat = np.zeros((fingerprints.THUMBNAIL, fingerprints.THUMBNAIL), np.float32)
    assert similarity(flat, flat) == 0.0


def test_bad_input(train: Path, tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match="no split 'val'"):
        overlap(train, train, split_b="val")
    with pytest.raises(MedpclipError, match="no such folder"):
        overlap(train, tmp_path / "none")
    with pytest.raises(MedpclipError, match="thresholds"):
        Thresholds(coarse=65)
    with pytest.raises(MedpclipError, match="workers is 0"):
        overlap(train, train, workers=0)
    broken = write(tmp_path / "broken", [png(picture(0))], group="b{}")
    shard = broken / "test-000000.tar"
    data = bytearray(shard.read_bytes())
    data[512 + 40 : 512 + 400] = bytes(360)
    shard.write_bytes(data)
    with pytest.raises(MedpclipError, match=r"test-000000.tar: 0000: unreadable image"):
        overlap(train, broken)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_overlap(parser.add_subparsers())
    args = parser.parse_args(["overlap", *words])
    return int(args.run(args))


def test_command(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [jpeg(picture(0)), *(png(picture(70 + i)) for i in range(3))]
    test = str(write(tmp_path / "s", images, prefix="b", group="b{}"))
    out, sheet = tmp_path / "o.json", tmp_path / "pairs.png"
    assert run(str(train), test, "--json", str(out), "--sheet", str(sheet)) == 1
    text = capsys.readouterr().out
    assert text.startswith("A: 12 images, B: 4 images, 25.00 % of B known from A")
    numbers = json.loads(out.read_text())
    assert (numbers["share"], numbers["near_duplicates"], numbers["shared_groups"]) == (0.25, 1, 0)
    with Image.open(sheet) as drawn:
        assert drawn.size == (2 * 256 + 3 * 8, 256 + 36 + 8) and not drawn.text
    assert run(str(train), test, "--max-share", "0.25") == 0
    with pytest.raises(MedpclipError, match=r"ends in \.png"):
        run(str(train), test, "--sheet", "x.jpg")
    with pytest.raises(MedpclipError, match="--max-share is 2"):
        run(str(train), test, "--max-share", "2")
