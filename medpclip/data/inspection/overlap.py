"""Which images of one corpus are in another one too: the same picture, the same key, the same patient.

Pictures are compared in three steps, each on what the one before left: a coarse hash of 64 bits between all pairs,
a fine hash of 256 bits, and the thumbnails' fine structure. Cost of the first: 1 million against 100,000 images are
10^11 distances, at about 3 x 10^8 a second and core; the rest is negligible beside reading the images once.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from medpclip.data.inspection.fingerprints import coarse_hash, distances, fine_hash, open_grey, similarity, thumbnail
from medpclip.data.shards import ShardFolder, read_manifest, shard_folders
from medpclip.errors import MedpclipError
from medpclip.progress import Progress

_CHUNK = 256  # images a worker takes at once
_BLOCK = 2048  # hashes of each side that are compared at once: 32 MiB of differences
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Thresholds:
    """When two pictures count as near-duplicates; measured on five sources (docs/explanation/overlap.md).

    Attributes:
        coarse: the largest distance of the coarse hashes, of 64 bits.
        fine: the largest distance of the fine hashes, of 256 bits.
        similarity: the smallest similarity of the fine structure, at most 1.
    """

    coarse: int = 10
    fine: int = 48
    similarity: float = 0.7

    def __post_init__(self) -> None:
        if not (0 <= self.coarse <= 64 and 0 <= self.fine <= 256 and -1 <= self.similarity <= 1):
            raise MedpclipError(
                f"thresholds are {self.coarse}, {self.fine} and {self.similarity}; "
                "give distances of 0 to 64 and 0 to 256, and a similarity of -1 to 1"
            )


@dataclass(frozen=True)
class Place:
    """Where an image lies."""

    folder: Path
    split: str | None
    index: int


@dataclass(frozen=True)
class Pair:
    """An image of A and one of B that show the same.

    Attributes:
        a, b: numbers of the images in A and in B.
        coarse, fine: distances of the hashes.
        similarity: of the fine structure.
        flipped: whether they agree when one is mirrored left to right.
    """

    a: int
    b: int
    coarse: int
    fine: int
    similarity: float
    flipped: bool


@dataclass
class Overlap:
    """What two corpora share.

    Attributes:
        images_a, images_b: how many were compared.
        pairs: near-duplicates, the most similar first.
        near_duplicates: images of B with a near-duplicate in A.
        shared_keys: images of B whose key is in A.
        shared_groups: groups of B that are in A, or None where groups weren't compared.
        images_in_shared_groups: images of B in those groups.
        touched: images of B that any of the three finds.
        across: {(source of A, source of B): near-duplicates of B}.
    """

    images_a: int
    images_b: int
    pairs: list[Pair]
    near_duplicates: int
    shared_keys: int
    shared_groups: int | None
    images_in_shared_groups: int
    touched: int
    across: dict[tuple[str, str], int]
    places_a: list[Place] = field(repr=False)
    places_b: list[Place] = field(repr=False)

    @property
    def share(self) -> float:
        """The share of B's images that A knows already."""
        return self.touched / self.images_b if self.images_b else 0.0

    def to_json(self) -> dict[str, Any]:
        """The numbers; they name sources, and neither files nor keys."""
        return {
            "images_a": self.images_a,
            "images_b": self.images_b,
            "pairs": len(self.pairs),
            "near_duplicates": self.near_duplicates,
            "shared_keys": self.shared_keys,
            "shared_groups": self.shared_groups,
            "images_in_shared_groups": self.images_in_shared_groups,
            "touched": self.touched,
            "share": self.share,
            "across": [{"a": a, "b": b, "near_duplicates": n} for (a, b), n in sorted(self.across.items())],
        }


def overlap(
    a: Path,
    b: Path,
    *,
    split_a: str | None = None,
    split_b: str | None = None,
    groups: bool = True,
    thresholds: Thresholds | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Overlap:
    """Compare two corpora; an image is not compared with itself, so both may be the same folder.

    Args:
        a: a folder of shards, or a folder of such folders: what was trained on.
        b: likewise: what is to be evaluated on.
        split_a: only that split of A.
        split_b: only that split of B.
        groups: compare patients and studies too; needs one salt for both.
        thresholds: when pictures count as near-duplicates.
        workers: processes that read images.
        progress: show bars on standard error.

    Raises:
        MedpclipError: no shards there, no such split, another salt, an image that can't be read.
    """
    if workers < 1:
        raise MedpclipError(f"workers is {workers}; give 1 or more")
    thresholds = thresholds or Thresholds()
    folders_a, folders_b = _folders(a, split_a), _folders(b, split_b)
    if groups:
        _check_salts(folders_a, folders_b)
    sides = [_read(folders_a, split_a, workers, progress)]
    same = split_a == split_b and [f.resolve() for f in folders_a] == [f.resolve() for f in folders_b]
    sides.append(sides[0] if same else _read(folders_b, split_b, workers, progress))
    known, asked = sides
    pairs = _pairs(known, asked, thresholds, workers, progress)
    near = {pair.b for pair in pairs}
    keys = {key: place for key, place in zip(known.keys, known.identities, strict=True)}
    twins = {j for j, key in enumerate(asked.keys) if key in keys and keys[key] != asked.identities[j]}
    common, members = set[str](), set[int]()
    if groups:
        common, members = _shared_groups(known, asked)
    across: dict[tuple[str, str], set[int]] = {}
    for pair in pairs:
        across.setdefault((known.sources[pair.a], asked.sources[pair.b]), set()).add(pair.b)
    return Overlap(
        images_a=len(known.keys),
        images_b=len(asked.keys),
        pairs=pairs,
        near_duplicates=len(near),
        shared_keys=len(twins),
        shared_groups=len(common) if groups else None,
        images_in_shared_groups=len(members),
        touched=len(near | twins | members),
        across={names: len(images) for names, images in across.items()},
        places_a=known.places,
        places_b=asked.places,
    )


@dataclass
class _Side:
    """All images of a corpus, as far as they are compared."""

    places: list[Place]
    keys: list[str]
    groups: list[str]
    sources: list[str]
    coarse: np.ndarray  # uint64 (images, 1)
    fine: np.ndarray  # uint64 (images, 4)
    mirrored: np.ndarray  # uint64 (images, 5): both hashes of the mirrored picture
    identities: list[tuple[str, str]]  # folder and key: which image it is, under whatever name the folder was given


def _folders(path: Path, split: str | None) -> list[Path]:
    folders = [f for f in shard_folders(path) if split is None or split in read_manifest(f)["splits"]]
    if not folders:
        raise MedpclipError(f"{path}: no split {split!r}; name another one")
    return folders


def _check_salts(folders_a: Sequence[Path], folders_b: Sequence[Path]) -> None:
    """Groups are hashes with the lab's salt: those of two salts differ for the same patient."""
    salts: dict[str | None, Path] = {}
    for folder in (*folders_a, *folders_b):
        salts.setdefault(read_manifest(folder).get("salt"), folder)
    if len(salts) > 1:
        (first, one), (second, other) = list(salts.items())[:2]
        raise MedpclipError(
            f"{one} and {other}: built with different salts ({first or 'none'} and {second or 'none'}), their groups can't be "
            "compared; build both with one salt, or compare pictures alone with --no-groups"
        )


def _read(folders: Sequence[Path], split: str | None, workers: int, progress: bool) -> _Side:
    jobs = []
    for folder in folders:
        count = len(ShardFolder(folder, split))
        jobs += [(folder, split, start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    rows = [row for rows in _map(_fingerprint, jobs, workers, progress, "hash images") for row in rows]
    hashes = np.array([row[4] for row in rows], np.uint64).reshape(len(rows), 10)
    return _Side(
        places=[row[0] for row in rows],
        keys=[row[1] for row in rows],
        groups=[row[2] for row in rows],
        sources=[row[3] for row in rows],
        coarse=hashes[:, :1],
        fine=hashes[:, 1:5],
        mirrored=hashes[:, 5:],
        identities=[(str(row[0].folder.resolve()), row[1]) for row in rows],
    )


def _fingerprint(job: tuple[Path, str | None, int, int]) -> list[tuple[Place, str, str, str, np.ndarray]]:
    folder, split, start, stop = job
    shards = _opened(folder, split)
    rows = []
    for index in range(start, stop):
        sample, picture = shards.sample(index), _picture(shards, index)
        mirrored = ImageOps.mirror(picture)
        hashes = [f(p) for p in (picture, mirrored) for f in (coarse_hash, fine_hash)]
        rows.append((Place(folder, split, index), sample.key, sample.group, sample.source, np.concatenate(hashes)))
    return rows


def _picture(shards: ShardFolder, index: int) -> Image.Image:
    try:
        return open_grey(shards.image_bytes(index))
    except (OSError, SyntaxError, ValueError) as error:
        raise MedpclipError(f"{shards.where(index)}: unreadable image ({error}); rebuild the shard") from None


@lru_cache(maxsize=8)
def _opened(folder: Path, split: str | None) -> ShardFolder:
    return ShardFolder(folder, split)


def _pairs(known: _Side, asked: _Side, thresholds: Thresholds, workers: int, progress: bool) -> list[Pair]:
    """Candidates by both hashes, then each by its fine structure."""
    found: dict[tuple[int, int, bool], tuple[int, int]] = {}
    blocks = [(i, j) for i in range(0, len(known.keys), _BLOCK) for j in range(0, len(asked.keys), _BLOCK)]
    for i, j in _counted(blocks, len(blocks), "compare hashes", "block", progress):
        for flipped in (False, True):
            coarse = asked.mirrored[:, :1] if flipped else asked.coarse
            fine = asked.mirrored[:, 1:] if flipped else asked.fine
            near = distances(known.coarse[i : i + _BLOCK, None], coarse[None, j : j + _BLOCK])
            rows, columns = np.nonzero(near <= thresholds.coarse)
            closer = distances(known.fine[i + rows], fine[j + columns])
            for r, c, d in zip(rows, columns, closer, strict=True):
                if d <= thresholds.fine and known.identities[i + r] != asked.identities[j + c]:
                    found[int(i + r), int(j + c), flipped] = (int(near[r, c]), int(d))
    jobs = [(known.places[a], asked.places[b], flipped) for a, b, flipped in found]
    values = _map(_similarity, jobs, workers, progress, "compare pictures")
    pairs: dict[tuple[int, int], Pair] = {}
    for ((a, b, flipped), (coarse_distance, fine_distance)), value in zip(found.items(), values, strict=True):
        pair = Pair(a, b, coarse_distance, fine_distance, round(value, 4), flipped)
        if value >= thresholds.similarity and ((a, b) not in pairs or pairs[a, b].similarity < value):
            pairs[a, b] = pair
    return sorted(pairs.values(), key=lambda p: (-p.similarity, p.a, p.b))


def _similarity(job: tuple[Place, Place, bool]) -> float:
    a, b, flipped = job
    other = _thumbnail(b)
    return similarity(_thumbnail(a), other[:, ::-1] if flipped else other)


@lru_cache(maxsize=4096)
def _thumbnail(place: Place) -> np.ndarray:
    return thumbnail(_picture(_opened(place.folder, place.split), place.index))


def _shared_groups(known: _Side, asked: _Side) -> tuple[set[str], set[int]]:
    """Groups of B with an image in A that isn't the very same one, and B's images in them."""
    images: dict[str, set[tuple[str, str]]] = {}
    for group, identity in zip(known.groups, known.identities, strict=True):
        images.setdefault(group, set()).add(identity)
    members = {
        j
        for j, (group, identity) in enumerate(zip(asked.groups, asked.identities, strict=True))
        if images.get(group, set()) - {identity}
    }
    return {asked.groups[j] for j in members}, members


def _counted(items: Iterable[Item], total: int, name: str, unit: str, progress: bool) -> Iterator[Item]:
    with Progress(name, total, unit, shown=progress) as bar:
        for item in items:
            yield item
            bar.advance()


def _map(work: Callable[[Item], Result], jobs: Sequence[Item], workers: int, progress: bool, name: str) -> list[Result]:
    def bar(results: Iterable[Result]) -> list[Result]:
        return list(_counted(results, len(jobs), name, "picture", progress))

    if workers == 1 or len(jobs) < 2:
        return bar(map(work, jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        return bar(pool.map(work, jobs, chunksize=max(1, min(64, len(jobs) // (8 * workers)))))
