"""Shards and the manifest: writing them so that nothing is half there, and reading any sample of them at once.

A folder of shards is

    train-000000.tar        a plain WebDataset tar: KEY.jpg|png|webp + KEY.json, fixed order, no time stamps
    train-000000.index.json where each member's bytes lie in it
    manifest.json           what all shards hold; written last, so a folder without it is unfinished

Only a folder with a manifest is read. A shard holds samples of one split.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image, UnidentifiedImageError

from medpclip.data.schema import SCHEMA_VERSION, SPLITS, Sample
from medpclip.errors import MedpclipError
from medpclip.files import dump_json, file_sha256, write_atomically

MANIFEST = "manifest.json"
IMAGE_EXTENSIONS = ("jpg", "png", "webp")
_BLOCK = 512  # tar's unit
_KEY = re.compile(r"[\w-]{1,90}", re.ASCII)  # WebDataset ends a key at the first dot; tar's names are short
_MAX_OPEN = 64  # shards held open by a reader: corpora have thousands, a process may open about a thousand files


@dataclass
class ShardInfo:
    """A shard's row in the manifest."""

    name: str
    split: str
    samples: int
    regions: int
    bytes: int
    sha256: str


@dataclass
class EncodedSample:
    """A checked sample as the bytes that go into a shard, and what the manifest counts of it.

    Attributes:
        categories: term -> regions.
        facts: the JSON.
        image: the encoded image.
    """

    key: str
    split: str
    modality: str
    categories: dict[str, int]
    facts: bytes
    image: bytes
    extension: str


def encode_sample(sample: Sample, image: bytes, extension: str) -> EncodedSample:
    """Check a sample and encode its facts; `image` are the bytes of a `extension` file of the sample's size.

    Raises:
        MedpclipError: the sample breaks the schema, or is no JSON.
    """
    assert extension in IMAGE_EXTENSIONS, extension
    if not _KEY.fullmatch(sample.key):
        raise MedpclipError(f"sample {sample.key!r}: its key can't name a member; use 1 to 90 of A-Z a-z 0-9 _ -")
    sample.validate(sample.key)
    try:
        facts = json.dumps(sample.to_json(), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise MedpclipError(f"sample {sample.key}: no JSON ({error}); give plain data and finite numbers") from None
    categories = dict(Counter(region.category for region in sample.regions))
    return EncodedSample(sample.key, sample.split, sample.modality, categories, facts, image, extension)


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
        self._splits: dict[str, _Counts] = {}

    def add(self, sample: Sample, image: bytes, extension: str) -> None:
        """Append one sample; `image` are the encoded bytes of a `extension` file of the sample's width and height."""
        self.add_encoded(encode_sample(sample, image, extension))

    def add_encoded(self, sample: EncodedSample) -> None:
        """Append one sample that `encode_sample` made."""
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
        shard.add(sample)
        self._splits.setdefault(sample.split, _Counts()).add(sample)
        if len(shard.keys) >= self.samples_per_shard:
            self._close(sample.split)

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Close the shards and write the manifest with `facts` (recipe, hash, salt fingerprint, quarantine counts)."""
        for split in list(self._open):
            self._close(split)
        order = {split: i for i, split in enumerate(SPLITS)}
        shards = sorted(self._done, key=lambda s: (order[s.split], s.name))
        manifest = {
            "schema": SCHEMA_VERSION,
            **facts,
            "splits": {s: self._splits[s].to_json() for s in SPLITS if s in self._splits},
            "shards": [vars(s) for s in shards],
        }
        write_atomically(self.folder / MANIFEST, dump_json(manifest))
        return manifest

    def _close(self, split: str) -> None:
        self._done.append(self._open[split].close())
        del self._open[split]  # not before: what fails to close is abandoned on the way out

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

    def add(self, sample: EncodedSample) -> None:
        offset, size = self._member(f"{sample.key}.{sample.extension}", sample.image)
        self.images.append([offset, size, sample.extension])
        self.jsons.append(list(self._member(f"{sample.key}.json", sample.facts)))
        self.keys.append(sample.key)
        self.regions += sum(sample.categories.values())

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
        with suppress(OSError):  # a full disk was reported where it was met
            self.stream.close()
        self.temporary.unlink(missing_ok=True)


class ShardFolder:
    """Random access to the samples of a finished folder, by `pread`: 11 microseconds a sample, in any order.

    At most 64 shards are held open, each process (a loader's workers) its own. For one thread at a time.

    Args:
        folder: a folder that `ShardWriter` finished.
        split: only that split's samples; all of them by default.

    Raises:
        MedpclipError: no manifest, another schema, a shard missing or of another size, an unreadable index.
    """

    def __init__(self, folder: str | Path, split: str | None = None) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()  # shard -> descriptor, the last used one last
        self._process = os.getpid()
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if split is not None and split not in self.manifest["splits"]:
            has = ", ".join(self.manifest["splits"]) or "none"
            raise MedpclipError(f"{self.folder}/{MANIFEST}: no split {split!r} (it has: {has}); name one of those")
        shards = [shard for shard in self.manifest["shards"] if split is None or shard["split"] == split]
        self.rows = _Rows((shard["name"], _read_index(self.folder, shard)) for shard in shards)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        """How messages name a sample: shard and key."""
        return f"{self.folder / self.rows[index].shard}: {self.rows[index].key}"

    def sample(self, index: int) -> Sample:
        """The sample's facts, validated."""
        row = self.rows[index]
        data = self._read(row.shard, row.json_offset, row.json_size)
        try:
            parsed = json.loads(data)
        except ValueError as error:
            raise MedpclipError(f"{self.where(index)}: broken JSON ({error}); rebuild the shard") from None
        return Sample.from_json(parsed, row.key, self.where(index))

    def read(self, index: int) -> tuple[_Row, bytes, bytes]:
        """Where a sample lies, its encoded image and its JSON, unchecked."""
        row = self.rows[index]
        image = self._read(row.shard, row.image_offset, row.image_size)
        return row, image, self._read(row.shard, row.json_offset, row.json_size)

    def image_bytes(self, index: int) -> bytes:
        row = self.rows[index]
        return self._read(row.shard, row.image_offset, row.image_size)

    def image(self, index: int) -> np.ndarray:
        """The decoded image, uint8 (height, width, 3)."""
        return decode_image(self.image_bytes(index), self.where(index))

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise MedpclipError(f"{self.folder / shard}: can't be read ({error.strerror}); copy it again") from None
        if len(data) != size:
            raise MedpclipError(f"{self.folder / shard}: truncated (wanted {size} bytes at {offset}); copy it again")
        return data

    def _descriptor(self, shard: str) -> int:
        if self._process != os.getpid():  # forked: these are this process's copies, and it opens its own
            self.close()
            self._process = os.getpid()
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            while len(self._files) >= _MAX_OPEN:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self.folder / shard, os.O_RDONLY)
        return self._files[shard]

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}


@dataclass(frozen=True)
class _Row:
    shard: str
    key: str
    image_offset: int
    image_size: int
    extension: str
    json_offset: int
    json_size: int


class _Rows(Sequence[_Row]):
    """The rows of all shards, in arrays: as objects, a million of them take half a gigabyte, in every loader process."""

    def __init__(self, shards: Iterable[tuple[str, Iterable[_Row]]]) -> None:
        self._shards: list[str] = []
        keys: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        for name, given in shards:
            rows = list(given)
            self._shards.append(name)
            keys.append(np.array([row.key.encode() for row in rows], np.bytes_))
            numbers.append(np.array([(row.image_offset, row.image_size, row.json_offset, row.json_size,
                                      IMAGE_EXTENSIONS.index(row.extension)) for row in rows], np.int64))  # fmt: skip
        self._starts = np.cumsum([0, *map(len, keys)]).tolist()
        self._keys = np.concatenate(keys) if keys else np.zeros(0, np.bytes_)
        self._numbers = np.concatenate(numbers) if keys else np.zeros((0, 5), np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> _Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Row]: ...
    def __getitem__(self, index: int | slice) -> _Row | list[_Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # IndexError where there is none
        shard = self._shards[bisect_right(self._starts, place) - 1]
        image, image_size, facts, facts_size, extension = self._numbers[place].tolist()
        key = self._keys[place].decode()
        return _Row(shard, key, image, image_size, IMAGE_EXTENSIONS[extension], facts, facts_size)


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode to uint8 (height, width, 3); alpha is dropped, grey is repeated.

    Raises:
        MedpclipError: naming `where`, for a truncated or unreadable file.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError:  # its own message has the address of the bytes in memory
        raise MedpclipError(f"{where}: unreadable image (of no known format); rebuild the shard") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MedpclipError(f"{where}: unreadable image ({error}); rebuild the shard") from None


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
    except OSError as error:
        raise MedpclipError(f"{path}: can't be read ({error.strerror}); check its permissions") from None
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
    names = set[str]()
    for i, shard in enumerate(manifest["shards"]):
        if not _is_shard_row(shard) or shard["name"] in names or shard["split"] not in manifest["splits"]:
            raise MedpclipError(f"{path}: key 'shards[{i}]' is broken; build the shards again")
        names.add(shard["name"])
    for split, counts in manifest["splits"].items():
        if not isinstance(counts, dict) or not all(isinstance(counts.get(k), dict) for k in ("modality", "category")):
            raise MedpclipError(f"{path}: key 'splits.{split}' is broken; build the shards again")
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


def _read_index(folder: Path, shard: dict[str, Any]) -> Iterable[_Row]:
    path = folder / shard["name"]
    if not path.is_file():
        raise MedpclipError(f"{path}: listed in {MANIFEST} but missing; copy it here or build again")
    if path.stat().st_size != shard["bytes"]:
        raise MedpclipError(
            f"{path}: {path.stat().st_size} bytes, {MANIFEST} says {shard['bytes']}; copy it again or build again"
        )
    try:
        index = json.loads(index_path(path).read_bytes())
        rows = [
            _Row(shard["name"], key, *image, *member)
            for key, image, member in zip(index["keys"], index["images"], index["jsons"], strict=True)
        ]
        if len(rows) != shard["samples"]:
            raise ValueError(f"it names {len(rows)} samples, {MANIFEST} {shard['samples']}")
        if any(type(row.image_offset + row.image_size + row.json_offset + row.json_size) is not int for row in rows):
            raise ValueError("an offset is not a whole number")
        if any(row.extension not in IMAGE_EXTENSIONS or not _KEY.fullmatch(row.key) for row in rows):
            raise ValueError("a key or an extension is none")
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MedpclipError(f"{index_path(path)}: unreadable index ({error}); build the shards again") from None


class _Counts:
    """What the manifest says of a split."""

    def __init__(self) -> None:
        self.samples = self.regions = 0
        self.modality, self.category = Counter[str](), Counter[str]()

    def add(self, sample: EncodedSample) -> None:
        self.samples += 1
        self.regions += sum(sample.categories.values())
        self.modality[sample.modality] += 1
        self.category.update(sample.categories)

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "regions": self.regions,
            "modality": dict(sorted(self.modality.items())),
            "category": dict(sorted(self.category.items())),
        }


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
