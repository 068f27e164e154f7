"""A deep look at a folder of shards: every byte, image, sample and count, and nothing that doesn't belong there."""

from __future__ import annotations

import json
import multiprocessing
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from medpclip.data.inspection.image_metadata import image_metadata
from medpclip.data.schema import Sample
from medpclip.data.shards import MANIFEST, decode_image, index_path, read_manifest
from medpclip.errors import MedpclipError
from medpclip.files import file_sha256
from medpclip.progress import Progress

_BROKEN = (MedpclipError, OSError, ValueError, KeyError, TypeError, tarfile.TarError)
_HASH = re.compile(r"[0-9a-f]{20,64}")


def check_folder(folder: Path, workers: int = 1, progress: bool = False) -> Iterator[str]:
    """The problems of a folder of shards, one line each; none means that it is good.

    Checked are the manifest and its sums; of each shard the hash, the index, and what tar says of owners and times; of
    each sample the schema, the image (it decodes, has the stated size, and carries no metadata), each mask (its run
    lengths fill the image), captions (they hold nothing that de-identification would replace), key and group (hashes;
    no key twice, no group in two splits), and the place in its volume; the counts per split, modality and category; and
    that the folder holds no other file.

    Args:
        folder: of shards.
        workers: processes; the order of the problems doesn't depend on it.
        progress: show a bar on standard error.
    """
    try:
        manifest = read_manifest(folder)
    except MedpclipError as error:
        yield str(error)
        return
    tally = _Tally()
    shards = manifest["shards"]
    with Progress(folder.name, sum(s["samples"] for s in shards), shown=progress) as bar:
        for shard, report in zip(shards, _reports(folder, shards, workers), strict=True):
            yield from report.problems
            for fact in report.facts:
                yield from tally.add(fact, folder / shard["name"])
            bar.advance(shard["samples"])
    yield from _strangers(folder, manifest)
    yield from tally.problems(folder, manifest)
    yield from _sums(folder, manifest)


@dataclass(frozen=True)
class _Fact:
    """What the folder as a whole has to know of a sample."""

    key: str
    group: str
    split: str
    modality: str
    regions: int
    categories: dict[str, int]
    volume: dict[str, Any] | None


@dataclass
class _Report:
    """What was found in one shard."""

    problems: list[str] = field(default_factory=list)
    facts: list[_Fact] = field(default_factory=list)


def _reports(folder: Path, shards: list[dict[str, Any]], workers: int) -> Iterator[_Report]:
    work = partial(_check_shard, folder)
    if workers < 2 or len(shards) < 2:
        yield from map(work, shards)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=context) as pool:
        yield from pool.map(work, shards)


def _strangers(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Whatever else lies in the folder: it goes along when the folder is shared."""
    listed = {folder / shard["name"] for shard in manifest["shards"]}
    own = {folder / MANIFEST} | listed | {index_path(path) for path in listed}
    for path in sorted(folder.rglob("*")):
        if path not in own:
            where = f"not listed in {MANIFEST}" if path.suffix == ".tar" else "no part of a folder of shards"
            yield f"{path}: {where}; delete it or build again"


def _sums(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Found = written + quarantined, written = what the shards hold."""
    for what, count in (("images", "samples"), ("regions", "regions")):
        stated = manifest.get(what)
        if stated is None:  # phantoms have no source
            continue
        held = sum(shard[count] for shard in manifest["shards"])
        try:
            good = stated["found"] == stated["written"] + stated["quarantined"] and stated["written"] == held
        except (KeyError, TypeError):
            good = False
        if not good:
            yield f"{folder / MANIFEST}: key '{what}' doesn't add up with {held} in the shards; build again"


class _Tally:
    """What was seen in all shards of a folder."""

    def __init__(self) -> None:
        self.splits: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.groups: dict[str, set[str]] = {}
        self.volumes: dict[str, dict[str, Any]] = {}

    def add(self, fact: _Fact, path: Path) -> Iterator[str]:
        if fact.key in self.keys:
            yield f"{path}: {fact.key}: the key is in {self.keys[fact.key]} too; build again"
        self.keys[fact.key] = path.name
        empty = {"samples": 0, "regions": 0, "modality": Counter(), "category": Counter()}
        counts = self.splits.setdefault(fact.split, empty)
        counts["samples"] += 1
        counts["regions"] += fact.regions
        counts["modality"][fact.modality] += 1
        counts["category"].update(fact.categories)
        self.groups.setdefault(fact.group, set()).add(fact.split)
        if fact.volume is not None:
            yield from self._add_slice(fact, fact.volume, path)

    def _add_slice(self, fact: _Fact, volume: dict[str, Any], path: Path) -> Iterator[str]:
        seen = self.volumes.setdefault(str(volume.get("id")), {"group": fact.group, "places": set()})
        place = (volume.get("axis"), volume.get("index"))
        if place in seen["places"]:
            yield f"{path}: {fact.key}: its place in its volume is another sample's too; build again"
        if fact.group != seen["group"]:
            yield f"{path}: {fact.key}: its group is not that of its volume; build again"
        seen["places"].add(place)

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


def _check_shard(folder: Path, shard: dict[str, Any]) -> _Report:
    report = _Report()
    try:
        report.problems += _shard_problems(folder / shard["name"], shard, report.facts)
    except _BROKEN as error:
        report.problems.append(f"{folder / shard['name']}: {_one_line(error)}")
    return report


def _shard_problems(path: Path, shard: dict[str, Any], facts: list[_Fact]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path}: listed in {MANIFEST} but missing; copy it here or build again"
        return
    if path.stat().st_size != shard["bytes"]:
        yield f"{path}: {path.stat().st_size} bytes, {MANIFEST} says {shard['bytes']}; copy it again"
    elif file_sha256(path) != shard["sha256"]:
        yield f"{path}: its SHA-256 is not the one in {MANIFEST}; copy it again or build again"
    with tarfile.open(path, "r:") as tar:
        members: dict[str, tarfile.TarInfo] = {}
        for member in tar:
            yield from _header_problems(member, members, path)
            members[member.name] = member
        yield from _check_index(path, members)
        yield from _orphans(path, members)
        for name in [name for name in members if name.endswith(".json")]:
            key = name.partition(".")[0]
            try:
                sample = _check_sample(tar, members, key, f"{path}: {key}")
            except _BROKEN as error:
                yield _one_line(error)
                continue
            yield from _sample_problems(sample, f"{path}: {key}")
            categories = dict(Counter(region.category for region in sample.regions))
            facts.append(
                _Fact(key, sample.group, sample.split, sample.modality, len(sample.regions), categories, sample.volume)
            )
            if sample.split != shard["split"]:
                yield f"{path}: {key}: its split is {sample.split!r}, the shard's {shard['split']!r}; build again"
    for what, count in (("samples", len(facts)), ("regions", sum(fact.regions for fact in facts))):
        if shard[what] != count:
            yield f"{path}: holds {count} good {what}, {MANIFEST} says {shard[what]}; build again"


def _header_problems(member: tarfile.TarInfo, members: Iterable[str], path: Path) -> Iterator[str]:
    """A member is a plain file that says nothing of who made it and when."""
    if not member.isfile():
        yield f"{path}: {member.name}: is no plain file; build again"
    if member.name in members:
        yield f"{path}: {member.name}: is there twice; build again"
    said = (member.uname, member.gname, member.uid, member.gid, member.mtime, member.linkname, member.pax_headers)
    if any(said):
        yield f"{path}: {member.name}: its header names an owner, a time or more; build again"


def _orphans(path: Path, members: dict[str, tarfile.TarInfo]) -> Iterator[str]:
    for name in members:
        if f"{name.partition('.')[0]}.json" not in members:
            yield f"{path}: {name}: has no sample; build again"


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
    if strange := sorted(index.keys() - {"keys", "images", "jsons"}):
        yield f"{index_path(path)}: key {strange[0]!r} doesn't belong there; build again"
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
    data = _content(tar, members[images[0]], where)
    height, width = decode_image(data, where).shape[:2]
    if (width, height) != (sample.width, sample.height):
        raise MedpclipError(
            f"{where}: the image is {width}x{height}, the JSON says {sample.width}x{sample.height}; rebuild the shard"
        )
    if carried := image_metadata(data):
        raise MedpclipError(f"{where}: the image carries {', '.join(carried)}; rebuild the shard")
    return sample


def _sample_problems(sample: Sample, where: str) -> Iterator[str]:
    """What the schema allows and a build never writes."""
    from medpclip.data.building.deidentification.deidentify import deidentify

    for name in ("key", "group"):
        if not _HASH.fullmatch(getattr(sample, name)):
            yield f"{where}: its {name} is no hash in hexadecimal digits; build again"
    volume = sample.volume
    if volume is not None:
        index, count = volume.get("index"), volume.get("count")
        if not (isinstance(index, int) and isinstance(count, int) and 0 <= index < count and volume.get("id")):
            yield f"{where}: key 'volume' is broken, expected an id and 0 <= index < count; build again"
    for number, caption in enumerate(sample.captions):
        if caption != " ".join(caption.split()) or not caption:
            yield f"{where}: captions[{number}] is empty or has loose white space; build again"
        if found := deidentify(caption).counts:
            yield f"{where}: captions[{number}] may identify somebody ({', '.join(found)}); build again"


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    stream = tar.extractfile(member)
    if stream is None:
        raise MedpclipError(f"{where}: {member.name} is no plain file; build again")
    data = stream.read()
    if len(data) != member.size:
        raise MedpclipError(f"{where}: truncated; copy the shard again")
    return data


def _plain(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, Counter) else value


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"key {text} is missing" if isinstance(error, KeyError) else text or type(error).__name__
