"""Converted samples on their way to the shards: private files, one pair per chunk of entries, each whole or not there.

A build converts chunk by chunk, in any order and by any process, and assembles the shards when all chunks are there. A
chunk is

    000012.bin    the bytes of its images and facts
    000012.json   what lies where, what was found, and the faults; written last, so a chunk without it is converted anew

`plan.json` says what the chunks are of; a build continues only where it left a plan that is its own.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medpclip.data.building.convert import Converted, ConvertedSample
from medpclip.data.readers import Fault
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


@dataclass
class SpooledSample:
    """Where a converted sample lies, and all of it but its bytes."""

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
        return Plan(**self._read(PLAN)["plan"])

    def scan_faults(self) -> list[Fault]:
        """The faults of the scan."""
        return [Fault(**fault) for fault in self._read(PLAN)["faults"]]

    def has(self, chunk: int) -> bool:
        """Whether a chunk is converted."""
        return (self.folder / _name(chunk, "json")).exists()

    def chunks(self) -> list[int]:
        """The converted chunks, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.json"))

    def write(self, chunk: int, converted: Converted) -> None:
        """Put down one chunk; it is there when its JSON is."""
        rows: list[dict[str, Any]] = []
        start = 0
        temporary = self.folder / f".{_name(chunk, 'bin')}.part"
        temporary.unlink(missing_ok=True)
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
        }
        write_atomically(self.folder / _name(chunk, "json"), _dump(facts), _MODE)

    def read(self, chunk: int) -> SpooledChunk:
        """What a chunk holds, without the bytes."""
        data = self._read(_name(chunk, "json"))
        samples = [SpooledSample(chunk, place, **row) for place, row in enumerate(data["samples"])]
        faults = [Fault(**fault) for fault in data["faults"]]
        return SpooledChunk(samples, faults, data["images"], data["regions"], Counter(data["placeholders"]))

    def load(self, sample: SpooledSample) -> EncodedSample:
        """The sample with its bytes."""
        path = self.folder / _name(sample.chunk, "bin")
        size = sample.image_size + sample.facts_size
        with open(path, "rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), size, sample.start)
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
