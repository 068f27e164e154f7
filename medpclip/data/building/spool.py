"""Converted samples on their way to the shards: private files, one pair per chunk of entries, each whole or not there.

A build converts chunk by chunk, in any order and by any process, and assembles the shards when all chunks are there. A
chunk is

    000012.bin    the bytes of its images and facts
    000012.json   what lies where, what was found, and the faults; written last, so a chunk without it is converted anew

`plan.json` says what the chunks are of; a build continues only where it left a plan that is its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medpclip.data.building.convert import Converted, ConvertedSample
from medpclip.data.readers import Entry, Fault
from medpclip.data.shards import EncodedSample
from medpclip.errors import MedpclipError
from medpclip.files import write_atomically

PLAN = "plan.json"
_MODE = 0o600


@dataclass(frozen=True)
class Plan:
    """What a build converts, for telling whether two of them are the same.

    Attributes:
        recipe, recipe_sha256: its name and hash.
        salt: the salt's fingerprint.
        medpclip: the version that converts.
        entries: hash over what `scan` found, in its order.
        chunks: into how many chunks the entries are cut.
        parts: into how many parts the chunks are shared out.
    """

    recipe: str
    recipe_sha256: str
    salt: str
    medpclip: str
    entries: str
    chunks: int
    parts: int

    def differences(self, other: Plan) -> list[str]:
        """The names of what differs."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]


@dataclass(slots=True)
class SpooledSample:
    """Where a converted sample lies, and all of it but its bytes. The assembly holds those of all samples."""

    chunk: int
    place: int
    key: str
    split: str
    group: str
    digest: str
    image: str
    part: str
    modality: str
    categories: dict[str, int]
    extension: str
    start: int
    image_size: int
    facts_size: int


@dataclass
class SpooledChunk:
    """What a chunk says of itself."""

    samples: list[SpooledSample]
    faults: list[Fault]
    images: int
    regions: int
    placeholders: Counter[str]
    found: Counter[str]


class Spool:
    """The private folder of one part of a build.

    Args:
        folder: where its chunks lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, plan: Plan, scanned: list[Fault]) -> None:
        """Make the folder, or take up the one that an interrupted build of the same plan left.

        Args:
            plan: what is to be built.
            scanned: the faults of the scan, kept for the assembly.

        Raises:
            MedpclipError: the folder holds chunks of another plan, or can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if (self.folder / PLAN).exists():
                differences = self.plan().differences(plan)
                if differences:
                    raise MedpclipError(
                        f"{self.folder}: an interrupted build lies here that differs in {', '.join(differences)}; "
                        "delete the folder to begin anew"
                    )
                return
            data = {"plan": asdict(plan), "faults": [asdict(fault) for fault in scanned]}
            write_atomically(self.folder / PLAN, _dump(data), _MODE)
        except OSError as error:
            raise MedpclipError(f"{self.folder}: can't be written ({error.strerror}); choose another --out") from None

    def plan(self) -> Plan:
        """What the chunks are of."""
        try:
            return Plan(**self._read(PLAN)["plan"])
        except (KeyError, TypeError):
            raise MedpclipError(
                f"{self.folder / PLAN}: written by another version; delete the folder to begin anew"
            ) from None

    def scan_faults(self) -> list[Fault]:
        """The faults of the scan."""
        return [Fault(**fault) for fault in self._read(PLAN)["faults"]]

    def has(self, chunk: int) -> bool:
        """Whether a chunk is converted."""
        return (self.folder / _name(chunk, "json")).exists()

    def stamp(self, chunk: int) -> str:
        """What was written with a converted chunk to know its files by."""
        return str(self._read(_name(chunk, "json")).get("stamp"))

    def chunks(self) -> list[int]:
        """The converted chunks, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.json"))

    def write(self, chunk: int, converted: Converted, stamp: str) -> None:
        """Put down one chunk; it is there when its JSON is.

        Args:
            chunk: its number.
            converted: what became of its entries.
            stamp: what to know their files by.
        """
        rows: list[dict[str, Any]] = []
        start = 0
        (self.folder / _name(chunk, "json")).unlink(missing_ok=True)  # of files that have changed since
        # A name of its own: where folders can't be locked, another machine may convert the same chunk.
        temporary = self.folder / f".{_name(chunk, 'bin')}.{secrets.token_hex(4)}.part"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "wb") as stream:
            for sample in converted.samples:
                rows.append(_row(sample, start))
                start += stream.write(sample.encoded.image) + stream.write(sample.encoded.facts)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self.folder / _name(chunk, "bin"))
        facts = {
            "samples": rows,
            "faults": [asdict(fault) for fault in converted.faults],
            "images": converted.images,
            "regions": converted.regions,
            "placeholders": dict(converted.placeholders),
            "found": dict(converted.found),
            "stamp": stamp,
        }
        write_atomically(self.folder / _name(chunk, "json"), _dump(facts), _MODE)

    def read(self, chunk: int) -> SpooledChunk:
        """What a chunk holds, without the bytes."""
        data = self._read(_name(chunk, "json"))
        samples = [SpooledSample(chunk, place, **_shared(row)) for place, row in enumerate(data["samples"])]
        faults = [Fault(**fault) for fault in data["faults"]]
        counts = (Counter(data["placeholders"]), Counter(data["found"]))
        return SpooledChunk(samples, faults, data["images"], data["regions"], *counts)

    def load(self, sample: SpooledSample) -> EncodedSample:
        """The sample with its bytes."""
        path = self.folder / _name(sample.chunk, "bin")
        size = sample.image_size + sample.facts_size
        try:
            with open(path, "rb", buffering=0) as stream:
                data = os.pread(stream.fileno(), size, sample.start)
        except OSError as error:
            raise MedpclipError(f"{path}: can't be read ({error.strerror}); convert this part again") from None
        if len(data) != size:
            raise MedpclipError(f"{path}: truncated; delete {path.with_suffix('.json').name} beside it and build again")
        return EncodedSample(
            sample.key,
            sample.split,
            sample.modality,
            sample.categories,
            data[sample.image_size :],
            data[: sample.image_size],
            sample.extension,
        )

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            data: dict[str, Any] = json.loads(path.read_bytes())
            return data
        except OSError as error:
            raise MedpclipError(f"{path}: can't be read ({error.strerror}); convert this part again") from None
        except ValueError as error:
            raise MedpclipError(f"{path}: broken JSON ({error}); delete it and build again") from None


def stamp(entries: Iterable[Entry], source: Path) -> str:
    """What tells whether the files of some entries have changed: a hash of what was found in annotations when the
    source was listed, and of the sizes and times (to the second, as archives keep them) of the files that are read later.
    """
    digest = hashlib.sha256()
    for entry in entries:
        # Neither addresses of objects nor the folder's place are what an annotation says.
        said = re.sub(r" at 0x[0-9a-f]+", "", repr(entry.annotation)).replace(f"{source}/", "")
        digest.update(f"{entry.image}\0{said}\0".encode("utf-8", "surrogatepass"))
        for path in (source / entry.image, *_paths(entry.annotation)):
            try:
                status = path.stat()
            except (OSError, ValueError):  # a row of a table is an entry too
                continue
            digest.update(f"{status.st_size} {int(status.st_mtime)}\0".encode())
    return digest.hexdigest()


def _paths(annotation: Any) -> Iterator[Path]:
    """The files that a reader noted for an entry."""
    if isinstance(annotation, Path):
        yield annotation
    elif isinstance(annotation, Mapping):
        yield from _paths(list(annotation.values()))
    elif isinstance(annotation, (list, tuple)):
        for item in annotation:
            yield from _paths(item)
    elif is_dataclass(annotation):
        yield from _paths([getattr(annotation, f.name) for f in fields(annotation)])


def spools(private: Path) -> Iterator[Spool]:
    """The parts that lie in a private folder, in order."""
    for path in sorted(private.glob(f"part-*-of-*/{PLAN}")):
        yield Spool(path.parent)


def part_folder(private: Path, part: int, parts: int) -> Path:
    """Where the chunks of one part lie."""
    return private / f"part-{part}-of-{parts}"


def _dump(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()  # ASCII: paths may hold bytes that are no UTF-8


def _name(chunk: int, extension: str) -> str:
    return f"{chunk:06d}.{extension}"


def _shared(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose words that come again are one object each in memory: there may be millions of rows."""
    for name in ("split", "part", "modality", "extension", "image", "group"):
        row[name] = sys.intern(row[name])
    row["categories"] = _categories(tuple(row["categories"].items()))
    return row


@lru_cache(maxsize=4096)
def _categories(items: tuple[tuple[str, int], ...]) -> dict[str, int]:
    return {sys.intern(term): count for term, count in items}


def _row(sample: ConvertedSample, start: int) -> dict[str, Any]:
    encoded = sample.encoded
    return {
        "key": encoded.key,
        "split": encoded.split,
        "group": sample.group,
        "digest": sample.digest,
        "image": sample.image,
        "part": sample.part,
        "modality": encoded.modality,
        "categories": encoded.categories,
        "extension": encoded.extension,
        "start": start,
        "image_size": len(encoded.image),
        "facts_size": len(encoded.facts),
    }
