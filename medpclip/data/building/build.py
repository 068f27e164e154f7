"""A recipe and a source folder -> a folder of shards, or nothing.

Every image and region that a reader finds ends in a shard or in the quarantine; the counts are compared at the end.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from medpclip import __version__
from medpclip.data.building.privacy import Salt
from medpclip.data.building.quarantine import Quarantine
from medpclip.data.building.recipe import Recipe, TableRule, lookup
from medpclip.data.building.regions import make_region
from medpclip.data.building.splits import Splitter
from medpclip.data.pictures import Picture, PictureError, read_picture
from medpclip.data.readers import Entry, Fault, RawSample, UnusableError
from medpclip.data.schema import Region, Sample
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError
from medpclip.files import file_sha256

_LOG_EVERY = 10.0  # seconds between progress lines where there is no terminal


def build(recipe: Recipe, source: Path, out: Path, salt: Salt, samples_per_shard: int = 1000) -> dict[str, Any]:
    """Convert a source; the folder `out` appears whole or not at all.

    Beside it the private folder `out`.private gets the quarantine and the log. Samples lie in the order of their keys,
    which has nothing to do with the source's.

    Args:
        recipe: what to read and how.
        source: the folder that the recipe's paths are relative to.
        out: the folder to make; it must not exist, or be empty.
        salt: the lab's secret.
        samples_per_shard: where a new shard begins.

    Returns:
        The manifest.

    Raises:
        MedpclipError: `out` is in use, the source doesn't fit the recipe, or nothing of it is usable.
    """
    if not source.is_dir():
        raise MedpclipError(f"{source}: no such folder; check --source")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise MedpclipError(f"{out}: exists and is not an empty folder; choose another --out or delete it")
    if samples_per_shard < 1:
        raise MedpclipError(f"samples per shard is {samples_per_shard}; give 1 or more")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise MedpclipError(f"{out}: can't be written ({error.strerror}); choose another --out") from None
    try:
        with Quarantine(out) as quarantine, ShardWriter(temporary, samples_per_shard) as writer:
            manifest = _Build(recipe, source, salt, quarantine, writer).run()
        temporary.chmod(0o755)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


class _Build:
    """One run of `build`."""

    def __init__(self, recipe: Recipe, source: Path, salt: Salt, quarantine: Quarantine, writer: ShardWriter) -> None:
        self.recipe, self.source, self.salt = recipe, source, salt
        self.quarantine, self.writer = quarantine, writer
        self.reader = recipe.make_reader(source)
        self.splitter = Splitter(recipe.split, source)
        self.found = Counter[str]()
        self.written = Counter[str]()
        self._twins: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        self.quarantine.log(f"recipe {self.recipe.name} {self.recipe.sha256()}, medpclip {__version__}")
        scanned = self.reader.scan()
        for fault in scanned:
            if isinstance(fault, Fault):
                self._find(fault.images, fault.regions)
                self.quarantine.add(fault)
        entries = [entry for entry in scanned if isinstance(entry, Entry)]
        if self.recipe.table is not None:
            _join_table(entries, self.recipe.table, self.source)
        self._twins = _find_twins([entry.image for entry in entries], self.source)
        keyed = sorted((self._hash("sample", entry.image), i) for i, entry in enumerate(entries))
        for key, i in _progress(keyed, self.recipe.name):
            self._convert(entries[i], key)
        self._reconcile()
        return self.writer.finish(**self._facts())

    def _convert(self, entry: Entry, key: str) -> None:
        """One entry -> one sample, or one fault that takes the image and its regions."""
        try:
            raw = self.reader.read(entry)
        except UnusableError as unusable:
            self._find(unusable.fault.images, unusable.fault.regions)
            self.quarantine.add(unusable.fault)
            return
        self._find(1, len(raw.regions) + sum(fault.regions for fault in raw.faults))
        for fault in raw.faults:
            self.quarantine.add(fault)
        try:
            picture = read_picture(self.source / entry.image)
            group, split = self._place(entry)
        except PictureError as error:
            fault = Fault(entry.image, "", error.reason, error.detail, images=1, regions=len(raw.regions))
            self.quarantine.add(fault)
            return
        regions, annotated = self._regions(entry, raw, picture)
        width, height = picture.size
        sample = Sample(
            key=key,
            source=self.recipe.name,
            split=split,
            group=self._hash("group", group),
            modality=self.recipe.modality,
            anatomy=self.recipe.anatomy,
            width=width,
            height=height,
            intensity=picture.intensity,
            labels=self._labels(entry),
            annotated_terms=annotated,
            regions=regions,
            extra={"laterality": self.recipe.laterality},
        )
        self.writer.add(sample, picture.data, picture.extension)
        self.written.update(images=1, regions=len(regions))

    def _regions(self, entry: Entry, raw: RawSample, picture: Picture) -> tuple[list[Region], list[str]]:
        """The good regions, and the terms of which none was lost: only those are still annotated exhaustively."""
        lost: set[str | None] = {None} if any(fault.regions for fault in raw.faults) else set()
        regions: list[Region] = []
        for item in raw.regions:
            if raw.size is not None and raw.size != picture.size:
                detail = "{}x{} stated, the image is {}x{}".format(*raw.size, *picture.size)
                result: Region | Fault = Fault(
                    item.file, item.key, "image is of another size than stated", detail, 0, 1
                )
            else:
                result = make_region(item, len(regions) + 1, self.recipe.terms, picture.size, self.reader.name)
            if isinstance(result, Region):
                regions.append(result)
            else:
                self.quarantine.add(result)
                lost.add(self.recipe.terms.get(item.label))
        annotated = [] if None in lost else [term for term in self.recipe.annotated_terms if term not in lost]
        return regions, annotated

    def _place(self, entry: Entry) -> tuple[str, str]:
        """The group (unsalted) and the split of an entry."""
        if entry.image in self._twins:  # it might land in another split, or be annotated in another way
            raise PictureError("image is a duplicate of another", self._twins[entry.image])
        rule = self.recipe.group
        group: str | None = entry.image
        if rule.metadata is not None:
            group = lookup(entry.metadata, rule.metadata)
        elif rule.path is not None:
            match = re.search(rule.path, entry.image)
            group = match.group(1 if match.re.groups else 0) if match else None
        if not group:  # its patient may be in another split: better lost than leaked
            raise PictureError("patient or study of the image is not known", f"group rule {vars(rule)}")
        split = self.splitter.split(entry.image, group)
        if split is None:
            raise PictureError("image is in none of the published splits")
        return group, split

    def _labels(self, entry: Entry) -> dict[str, str]:
        labels = {}
        for name, rule in self.recipe.labels.items():
            value = lookup(entry.metadata, rule.key)
            if value is None or value in rule.unlabelled:
                continue
            if value in rule.values:
                labels[name] = rule.values[value]
            else:
                reason = "value of an image label is not in the recipe"
                self.quarantine.add(Fault(entry.image, f"labels.{name}", reason, f"{rule.key} is {value!r}"))
        return labels

    def _hash(self, kind: str, text: str) -> str:
        return self.salt.hash(kind, f"{self.recipe.name}\0{text}")

    def _find(self, images: int, regions: int) -> None:
        self.found.update(images=images, regions=regions)

    def _reconcile(self) -> None:
        lost = {"images": self.quarantine.images, "regions": self.quarantine.regions}
        for what, count in lost.items():
            if self.found[what] != self.written[what] + count:
                raise AssertionError(
                    f"{what}: {self.found[what]} found, {self.written[what]} written, {count} quarantined"
                )
            text = f"{what}: {self.found[what]} found = {self.written[what]} written + {count} quarantined"
            self.quarantine.log(text)
        if not self.written["images"]:
            reasons = self.quarantine.reasons
            why = (
                f"most often: {next(iter(reasons))}; see {self.quarantine.path}"
                if reasons
                else "no image was found; check --source and 'options'"
            )
            raise MedpclipError(f"{self.source}: nothing usable for recipe '{self.recipe.name}' ({why})")

    def _facts(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "recipe": {
                "name": recipe.name,
                "sha256": recipe.sha256(),
                "title": recipe.title,
                "licence": recipe.licence,
                "citation": recipe.citation,
                "laterality": recipe.laterality,
            },
            "medpclip": __version__,
            "salt": self.salt.fingerprint,
            "images": self._counts("images", self.quarantine.images),
            "regions": self._counts("regions", self.quarantine.regions),
            "quarantine": self.quarantine.reasons,
        }

    def _counts(self, what: str, lost: int) -> dict[str, int]:
        return {"found": self.found[what], "written": self.written[what], "quarantined": lost}


def _find_twins(images: Iterable[str], source: Path) -> dict[str, str]:
    """Images whose file is the same, byte for byte, as that of one with a smaller path: path -> that path.

    The order of paths decides, not that of keys, so that every lab keeps the same one.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for image in sorted(images):
        path = source / image
        if path.is_file():
            by_size[path.stat().st_size].append(image)
    twins = {}
    for same_size in by_size.values():
        first: dict[str, str] = {}
        for image in same_size if len(same_size) > 1 else ():
            original = first.setdefault(file_sha256(source / image), image)
            if original != image:
                twins[image] = original
    return twins


def _join_table(entries: Iterable[Entry], rule: TableRule, source: Path) -> None:
    """Add each image's row of the CSV file to its metadata."""
    path = source / rule.file
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream)
            if rule.key not in (table.fieldnames or ()):
                columns = ", ".join(table.fieldnames or ()) or "none"
                raise MedpclipError(
                    f"{path}: no column '{rule.key}' (it has: {columns}); check the recipe's 'table.key'"
                )
            rows: dict[str, dict[str, Any]] = {}
            for row in table:
                if rows.setdefault(row[rule.key], row) is not row:
                    raise MedpclipError(f"{path}: '{row[rule.key]}' is in two rows; keep one")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise MedpclipError(f"{path}: unreadable table ({why}); check the recipe's key 'table.file'") from None
    for entry in entries:
        name = PurePosixPath(entry.image)
        key = {"path": entry.image, "name": name.name, "stem": name.stem}[rule.match]
        entry.metadata = entry.metadata | rows.get(key, {})


def _progress(items: list[Any], name: str) -> Iterator[Any]:
    """A bar with rate and remaining time on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=name, unit="image")
        return
    start = last = time.monotonic()
    for i, item in enumerate(items):
        now = time.monotonic()
        if now - last >= _LOG_EVERY:
            rate = i / (now - start)
            left = (len(items) - i) / rate
            print(f"{name}: {i}/{len(items)} images, {rate:.1f}/s, {left:.0f} s left", file=sys.stderr)
            last = now
        yield item
