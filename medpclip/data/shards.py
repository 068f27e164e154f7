"""Shards and the manifest: writing them so that nothing is half there, and reading any sample of them at once.

A folder of shards is

    train-000000.tar        a plain WebDataset tar: KEY.jpg|png|webp + KEY.json, fixed order, no time stamps
    train-000000.index.json where each member's bytes lie in it
    manifest.json           what all shards hold; written last, so a folder without it is unfinished

Only a folder with a manifest is read. A shard holds samples of one split.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medpclip.data.schema import SCHEMA_VERSION, SPLITS, Sample
from medpclip.errors import MedpclipError

MANIFEST = "manifest.json"
IMAGE_EXTENSIONS = ("jpg", "png", "webp")
_BLOCK = 512  # tar's unit


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.part")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def dump_json(data: Any) -> bytes:
    """JSON that is the same bytes for the same data, and refuses NaN."""
    return (json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


@dataclass
class ShardInfo:
    """A shard's row in the manifest."""

    name: str
    split: str
    samples: int
    regions: int
    bytes: int
    sha256: str


class ShardWriter:
    """Writes samples into shards of at most `samples_per_shard`, and finishes with the manifest.

    Use as a context manager; leaving it by an exception leaves no manifest, so the folder doesn't count as built.

    Args:
        folder: the output; made when missing, refused when it already holds a manifest.
        samples_per_shard: where a new shard begins.
    """

    def __init__(self, folder: Path, samples_per_shard: int = 1000) -> None:
        if (folder / MANIFEST).exists():
            raise MedpclipError(
                f"{folder}: already holds finished shards ({MANIFEST}); choose another folder or delete it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.samples_per_shard = samples_per_shard
        self._open: dict[str, _OpenShard] = {}
        self._done: list[ShardInfo] = []
        self._count = Counter[str]()
        self._keys: set[str] = set()
        self._splits: dict[str, Counter[str]] = {}

    def add(self, sample: Sample, image: bytes, extension: str) -> None:
        """Append one sample; `image` are the encoded bytes of a `extension` file of the sample's width and height."""
        assert extension in IMAGE_EXTENSIONS, extension
        sample.validate(sample.key)
        if sample.key in self._keys:
            raise MedpclipError(
                f"sample {sample.key}: its key occurs twice; the recipe must give each image its own name"
            )
        self._keys.add(sample.key)
        shard = self._open.get(sample.split)
        if shard is None:
            shard = _OpenShard(self.folder, sample.split, self._count[sample.split])
            self._open[sample.split] = shard
            self._count[sample.split] += 1
        shard.add(sample, image, extension)
        counts = self._splits.setdefault(sample.split, Counter())
        counts["samples"] += 1
        counts["regions"] += len(sample.regions)
        counts[f"modality/{sample.modality}"] += 1
        for region in sample.regions:
            counts[f"category/{region.category}"] += 1
        if len(shard.keys) >= self.samples_per_shard:
            self._done.append(self._open.pop(sample.split).close())

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Close the shards and write the manifest with `facts` (recipe, hash, salt fingerprint, quarantine counts)."""
        for split in list(self._open):
            self._done.append(self._open.pop(split).close())
        order = {split: i for i, split in enumerate(SPLITS)}
        shards = sorted(self._done, key=lambda s: (order[s.split], s.name))
        manifest = {
            "schema": SCHEMA_VERSION,
            **facts,
            "splits": {s: _nested(self._splits[s]) for s in SPLITS if s in self._splits},
            "shards": [vars(s) for s in shards],
        }
        write_atomically(self.folder / MANIFEST, dump_json(manifest))
        return manifest

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for shard in self._open.values():
            shard.abandon()


class _OpenShard:
    def __init__(self, folder: Path, split: str, number: int) -> None:
        self.folder, self.split = folder, split
        self.name = f"{split}-{number:06d}.tar"
        self.temporary = folder / f".{self.name}.part"
        self.stream = open(self.temporary, "wb")  # noqa: SIM115 (closed by close or abandon)
        self.tar = tarfile.open(fileobj=self.stream, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.keys: list[str] = []
        self.images: list[list[Any]] = []
        self.jsons: list[list[int]] = []
        self.regions = 0

    def add(self, sample: Sample, image: bytes, extension: str) -> None:
        data = json.dumps(sample.to_json(), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        offset, size = self._member(f"{sample.key}.{extension}", image)
        self.images.append([offset, size, extension])
        self.jsons.append(list(self._member(f"{sample.key}.json", data)))
        self.keys.append(sample.key)
        self.regions += len(sample.regions)

    def _member(self, name: str, data: bytes) -> tuple[int, int]:
        info = tarfile.TarInfo(name)
        info.size = len(data)  # mtime, uid and gid stay 0: the same samples give the same bytes
        start = self.tar.offset
        self.tar.addfile(info, io.BytesIO(data))
        return start + _BLOCK, len(data)

    def close(self) -> ShardInfo:
        self.tar.close()
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        final = self.folder / self.name
        os.replace(self.temporary, final)
        index = {"keys": self.keys, "images": self.images, "jsons": self.jsons}
        write_atomically(index_path(final), json.dumps(index, separators=(",", ":")).encode())
        return ShardInfo(self.name, self.split, len(self.keys), self.regions, final.stat().st_size, file_sha256(final))

    def abandon(self) -> None:
        self.stream.close()
        self.temporary.unlink(missing_ok=True)


class ShardFolder:
    """Random access to the samples of a finished folder, by `pread`: 11 microseconds a sample, in any order.

    Args:
        folder: a folder that `ShardWriter` finished.
        split: only that split's samples; all of them by default.

    Raises:
        MedpclipError: no manifest, another schema, a shard missing or of another size, an unreadable index.
    """

    def __init__(self, folder: str | Path, split: str | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if split is not None and split not in self.manifest["splits"]:
            has = ", ".join(self.manifest["splits"]) or "none"
            raise MedpclipError(f"{self.folder}/{MANIFEST}: no split {split!r} (it has: {has}); name one of those")
        self.rows: list[_Row] = []
        for shard in self.manifest["shards"]:
            if split is None or shard["split"] == split:
                self.rows += _read_index(self.folder, shard)
        self._files: dict[tuple[int, str], int] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        """How messages name a sample: shard and key."""
        return f"{self.rows[index].shard}: {self.rows[index].key}"

    def sample(self, index: int) -> Sample:
        """The sample's facts, validated."""
        row = self.rows[index]
        data = self._read(row.shard, row.json_offset, row.json_size)
        try:
            parsed = json.loads(data)
        except ValueError as error:
            raise MedpclipError(f"{self.where(index)}: broken JSON ({error}); rebuild the shard") from None
        return Sample.from_json(parsed, row.key, self.where(index))

    def image_bytes(self, index: int) -> bytes:
        row = self.rows[index]
        return self._read(row.shard, row.image_offset, row.image_size)

    def image(self, index: int) -> np.ndarray:
        """The decoded image, uint8 (height, width, 3)."""
        return decode_image(self.image_bytes(index), self.where(index))

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        # One descriptor per process: after a fork, workers open their own.
        key = (os.getpid(), shard)
        if key not in self._files:
            self._files[key] = os.open(self.folder / shard, os.O_RDONLY)
        data = os.pread(self._files[key], size, offset)
        if len(data) != size:
            raise MedpclipError(f"{self.folder / shard}: truncated (wanted {size} bytes at {offset}); copy it again")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}


@dataclass(frozen=True)
class _Row:
    shard: str
    key: str
    image_offset: int
    image_size: int
    extension: str
    json_offset: int
    json_size: int


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode to uint8 (height, width, 3); alpha is dropped, grey is repeated.

    Raises:
        MedpclipError: naming `where`, for a truncated or unreadable file.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MedpclipError(f"{where}: unreadable image ({error}); restore the file or drop it") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder, checked for being one."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise MedpclipError(f"{folder}: no such folder; give a folder of shards (medpclip data build makes one)")
    if not path.is_file():
        raise MedpclipError(
            f"{folder}: no {MANIFEST}; not a folder of shards, or its build did not finish: build it again"
        )
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise MedpclipError(f"{path}: broken JSON ({error}); build the shards again") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("shards"), list):
        raise MedpclipError(f"{path}: key 'shards' is missing or not a list; build the shards again")
    if manifest.get("schema") != SCHEMA_VERSION:
        raise MedpclipError(
            f"{path}: key 'schema' is {manifest.get('schema')!r}, this one reads {SCHEMA_VERSION}; rebuild or update"
        )
    if not isinstance(manifest.get("splits"), dict):
        raise MedpclipError(f"{path}: key 'splits' is missing or not an object; build the shards again")
    for i, shard in enumerate(manifest["shards"]):
        if not _is_shard_row(shard):
            raise MedpclipError(f"{path}: key 'shards[{i}]' is broken; build the shards again")
    if not manifest["shards"]:
        raise MedpclipError(f"{path}: lists no shard; the build found no usable sample: look at its quarantine")
    return manifest


def _is_shard_row(shard: Any) -> bool:
    types = {"name": str, "split": str, "samples": int, "regions": int, "bytes": int, "sha256": str}
    return (
        isinstance(shard, dict)
        and all(isinstance(shard.get(key), kind) for key, kind in types.items())
        and Path(shard["name"]).name == shard["name"]  # never a path that leads out of the folder
    )


def index_path(shard: Path) -> Path:
    """Where the member offsets of a shard lie."""
    return shard.with_name(shard.stem + ".index.json")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: io.BufferedReader) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _read_index(folder: Path, shard: dict[str, Any]) -> Iterable[_Row]:
    path = folder / shard["name"]
    if not path.is_file():
        raise MedpclipError(f"{path}: listed in {MANIFEST} but missing; copy it here or build again")
    if path.stat().st_size != shard["bytes"]:
        raise MedpclipError(
            f"{path}: {path.stat().st_size} bytes, {MANIFEST} says {shard['bytes']}; truncated, or of another build"
        )
    try:
        index = json.loads(index_path(path).read_bytes())
        return [
            _Row(shard["name"], key, *image, *member)
            for key, image, member in zip(index["keys"], index["images"], index["jsons"], strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MedpclipError(f"{index_path(path)}: unreadable index ({error}); build the shards again") from None


def _nested(counts: Counter[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"samples": counts["samples"], "regions": counts["regions"], "modality": {}, "category": {}}
    for name in sorted(counts):
        head, _, tail = name.partition("/")
        if tail:
            out[head][tail] = counts[name]
    return out


def shard_folders(folder: Path) -> list[Path]:
    """The finished folder itself, or those directly below a folder of such folders, sorted.

    Raises:
        MedpclipError: neither the one nor the other.
    """
    if not (folder / MANIFEST).is_file() and folder.is_dir():
        below = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))
        if below:
            return below
    read_manifest(folder)  # says what is wrong
    return [folder]
