"""A deep look at a folder of shards: every byte, image, sample and count."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medpclip.data.schema import Sample
from medpclip.data.shards import MANIFEST, decode_image, index_path, read_manifest
from medpclip.errors import MedpclipError
from medpclip.files import file_sha256

_BROKEN = (MedpclipError, OSError, ValueError, KeyError, TypeError, tarfile.TarError)


def check_folder(folder: Path) -> Iterator[str]:
    """The problems of a folder of shards, one line each; none means that it is good.

    Checked are the manifest, the hash and the index of each shard, each sample against the schema, each image (it
    decodes, and has the stated size), each mask (its run lengths fill the image), each key (no two alike), the counts
    per split, modality and category, and that no group is in two splits.
    """
    try:
        manifest = read_manifest(folder)
    except MedpclipError as error:
        yield str(error)
        return
    tally = _Tally()
    for shard in manifest["shards"]:
        try:
            yield from _check_shard(folder, shard, tally)
        except _BROKEN as error:
            yield f"{folder / shard['name']}: {_one_line(error)}"
    listed = {shard["name"] for shard in manifest["shards"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path}: not listed in {MANIFEST}; delete it or build again"
    yield from tally.problems(folder, manifest)


class _Tally:
    """What was seen in all shards of a folder."""

    def __init__(self) -> None:
        self.splits: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.groups: dict[str, set[str]] = {}

    def add(self, sample: Sample) -> None:
        empty = {"samples": 0, "regions": 0, "modality": Counter(), "category": Counter()}
        counts = self.splits.setdefault(sample.split, empty)
        counts["samples"] += 1
        counts["regions"] += len(sample.regions)
        counts["modality"][sample.modality] += 1
        counts["category"].update(region.category for region in sample.regions)
        self.groups.setdefault(sample.group, set()).add(sample.split)

    def problems(self, folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
        for group, splits in self.groups.items():
            if len(splits) > 1:
                yield f"{folder}: group {group} is in several splits ({', '.join(sorted(splits))}); build again"
        stated = manifest["splits"]
        for split in sorted(self.splits.keys() | stated.keys()):
            found, told = self.splits.get(split, {}), stated.get(split, {})
            for key in ("samples", "regions", "modality", "category"):
                if found.get(key) != told.get(key):
                    yield (
                        f"{folder / MANIFEST}: key 'splits.{split}.{key}' is {told.get(key)}, "
                        f"the shards hold {_plain(found.get(key))}; build again"
                    )


def _check_shard(folder: Path, shard: dict[str, Any], tally: _Tally) -> Iterator[str]:
    path = folder / shard["name"]
    if not path.is_file():
        yield f"{path}: listed in {MANIFEST} but missing; copy it here or build again"
        return
    if path.stat().st_size != shard["bytes"]:
        yield f"{path}: {path.stat().st_size} bytes, {MANIFEST} says {shard['bytes']}; copy it again"
    elif file_sha256(path) != shard["sha256"]:
        yield f"{path}: its SHA-256 is not the one in {MANIFEST}; copy it again or build again"
    with tarfile.open(path, "r:") as tar:
        members = {member.name: member for member in tar if member.isfile()}
        yield from _check_index(path, members)
        samples = regions = 0
        for name in members:
            key, _, extension = name.partition(".")
            if extension != "json":
                continue
            if key in tally.keys:
                yield f"{path}: {key}: the key is in {tally.keys[key]} too; build again"
            tally.keys[key] = path.name
            try:
                sample = _check_sample(tar, members, key, f"{path}: {key}")
            except _BROKEN as error:
                yield _one_line(error)
                continue
            tally.add(sample)
            samples += 1
            regions += len(sample.regions)
            if sample.split != shard["split"]:
                yield f"{path}: {key}: its split is {sample.split!r}, the shard's {shard['split']!r}; build again"
    for what, count in (("samples", samples), ("regions", regions)):
        if shard[what] != count:
            yield f"{path}: holds {count} good {what}, {MANIFEST} says {shard[what]}; build again"


def _check_index(path: Path, members: dict[str, tarfile.TarInfo]) -> Iterator[str]:
    """Whether the index names every member of the tar, at its place."""
    try:
        index = json.loads(index_path(path).read_bytes())
        rows = zip(index["keys"], index["images"], index["jsons"], strict=True)
        indexed = {}
        for key, (offset, size, extension), (json_offset, json_size) in rows:
            indexed[f"{key}.{extension}"] = (offset, size)
            indexed[f"{key}.json"] = (json_offset, json_size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{index_path(path)}: unreadable index ({_one_line(error)}); build again"
        return
    actual = {name: (member.offset_data, member.size) for name, member in members.items()}
    for name in sorted(actual.keys() | indexed.keys()):
        if (place := actual.get(name)) != (told := indexed.get(name)):
            yield f"{index_path(path)}: {name} lies at {place}, the index says {told}; build again"


def _check_sample(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], key: str, where: str) -> Sample:
    """Decode and validate one sample; raises at its first problem."""
    try:
        parsed = json.loads(_content(tar, members[f"{key}.json"], where))
    except ValueError as error:
        if isinstance(error, MedpclipError):
            raise
        raise MedpclipError(f"{where}: broken JSON ({error}); rebuild the shard") from None
    sample = Sample.from_json(parsed, key, where)
    images = [name for name in members if name.startswith(f"{key}.") and name != f"{key}.json"]
    if len(images) != 1:
        raise MedpclipError(f"{where}: has {len(images)} images, expected one; build again")
    height, width = decode_image(_content(tar, members[images[0]], where), where).shape[:2]
    if (width, height) != (sample.width, sample.height):
        raise MedpclipError(
            f"{where}: the image is {width}x{height}, the JSON says {sample.width}x{sample.height}; rebuild the shard"
        )
    return sample


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None  # it is a plain file
    data = stream.read()
    if len(data) != member.size:
        raise MedpclipError(f"{where}: truncated; copy the shard again")
    return data


def _plain(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, Counter) else value


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"key {text} is missing" if isinstance(error, KeyError) else text or type(error).__name__
