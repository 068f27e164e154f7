"""Converted chunks -> a folder of shards, the same bytes whoever converted them in whatever order."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medpclip import __version__
from medpclip.data.building.quarantine import Quarantine
from medpclip.data.building.recipe import Recipe
from medpclip.data.building.splits import refuse_torn_groups
from medpclip.data.building.spool import Plan, Spool, SpooledSample
from medpclip.data.readers import Fault
from medpclip.data.shards import MANIFEST, ShardWriter
from medpclip.errors import MedpclipError
from medpclip.files import file_sha256, flush_to_disk, write_atomically

ASSEMBLED = "assembled.json"  # in the private folder, from just before the shards appear until their chunks are gone


def assemble(
    recipe: Recipe, parts: Sequence[Spool], out: Path, private: Path, samples_per_shard: int
) -> dict[str, Any]:
    """Write the shards of all chunks, in the order of the samples' keys; `out` appears whole or not at all.

    Duplicates are found here, where all samples are known.

    Args:
        recipe: what was converted.
        parts: the spools of all parts; together they hold every chunk of one plan.
        out: the folder to make.
        private: where the quarantine and the log go.
        samples_per_shard: where a new shard begins.

    Returns:
        The manifest.

    Raises:
        MedpclipError: parts of different builds, a part or chunk missing, or nothing usable.
    """
    plan, homes = _agree(recipe, parts, out)
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # what an interrupted assembly left
    try:
        with Quarantine(private) as quarantine, ShardWriter(temporary, samples_per_shard) as writer:
            manifest = _Assembly(recipe, plan, homes, quarantine, writer).run(parts[0].scan_faults())
        _note(private, temporary / MANIFEST, [part.folder for part in parts])
        os.replace(temporary, out)
        flush_to_disk(out.absolute().parent)
    except OSError as error:
        raise MedpclipError(
            f"{out}: can't be written ({error.strerror}); make room there and run the same command again: it goes on "
            "from what is converted"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def assembled(private: Path, manifest: Path) -> list[Path] | None:
    """The folders of chunks that a manifest was made of, if that was noted and they weren't deleted yet; else None."""
    try:
        note = json.loads((private / ASSEMBLED).read_bytes())
        return [private / folder for folder in note["folders"]] if note["manifest"] == file_sha256(manifest) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(private: Path, manifest: Path, folders: Sequence[Path]) -> None:
    """Before the shards appear: whoever finds them and this knows that these chunks, and no others, are in them."""
    note = {"manifest": file_sha256(manifest), "folders": [os.path.relpath(folder, private) for folder in folders]}
    write_atomically(private / ASSEMBLED, json.dumps(note).encode(), 0o600)


def _agree(recipe: Recipe, parts: Sequence[Spool], out: Path) -> tuple[Plan, list[Spool]]:
    """The one plan of all parts, and where each chunk lies."""
    if not parts:
        raise MedpclipError(f"{out}: no converted part to merge; run medpclip data build with --part first")
    plan = parts[0].plan()
    for part in parts:
        other = part.plan()
        if other.salt != plan.salt:
            raise MedpclipError(
                f"{part.folder}: converted with another salt (fingerprint {other.salt}, {parts[0].folder} has "
                f"{plan.salt}); convert all parts with the same --salt-file"
            )
        if differences := plan.differences(other):
            raise MedpclipError(
                f"{part.folder}: part of another build than {parts[0].folder} (differs in {', '.join(differences)}); "
                "convert it again"
            )
    if plan.recipe_sha256 != recipe.sha256():
        raise MedpclipError(f"{parts[0].folder}: converted by another recipe than this '{recipe.name}'; convert again")
    homes: dict[int, Spool] = {chunk: part for part in parts for chunk in part.chunks()}
    missing = [chunk for chunk in range(plan.chunks) if chunk not in homes]
    if missing:
        lacking = sorted({chunk % plan.parts + 1 for chunk in missing})
        names = ", ".join(str(number) for number in lacking[:20]) + (", ..." if len(lacking) > 20 else "")
        raise MedpclipError(
            f"{out}: {len(missing)} of {plan.chunks} chunks are not converted (of part {names} of {plan.parts}); "
            "run their medpclip data build --part again"
        )
    return plan, [homes[chunk] for chunk in range(plan.chunks)]


class _Assembly:
    """One run of `assemble`."""

    def __init__(
        self, recipe: Recipe, plan: Plan, homes: list[Spool], quarantine: Quarantine, writer: ShardWriter
    ) -> None:
        self.recipe, self.plan, self.homes = recipe, plan, homes
        self.quarantine, self.writer = quarantine, writer
        self.found = Counter[str]()
        self.written = Counter[str]()
        self.placeholders = Counter[str]()
        self.rules = Counter[str]()

    def run(self, scanned: Sequence[Fault]) -> dict[str, Any]:
        self.quarantine.log(f"recipe {self.recipe.name} {self.recipe.sha256()}, medpclip {__version__}")
        for fault in scanned:
            self.found.update(images=fault.images, regions=fault.regions)
            self.quarantine.add(fault)
        samples = self._leave_out_copies(self._gather())
        refuse_torn_groups((sample.image, sample.group, sample.split) for sample in samples)
        for sample in sorted(samples, key=lambda sample: sample.key):
            self.writer.add_encoded(self.homes[sample.chunk].load(sample))
            self.written.update(images=1, regions=sum(sample.categories.values()))
        self._reconcile()
        return self.writer.finish(**self._facts())

    def _gather(self) -> list[SpooledSample]:
        samples: list[SpooledSample] = []
        for number, home in enumerate(self.homes):
            chunk = home.read(number)
            samples += chunk.samples
            self.found.update(images=chunk.images, regions=chunk.regions)
            self.placeholders.update(chunk.placeholders)
            self.rules.update(chunk.found)
            for fault in chunk.faults:
                self.quarantine.add(fault)
        return samples

    def _leave_out_copies(self, samples: list[SpooledSample]) -> list[SpooledSample]:
        """Without byte-identical copies, which might land in another split, or be annotated in another way.

        The order of paths decides which one stays, not that of keys, so that every lab keeps the same one.
        """
        first: dict[str, SpooledSample] = {}
        kept = []
        for sample in sorted(samples, key=lambda sample: (sample.image, sample.chunk, sample.place)):
            original = first.setdefault(sample.digest, sample)
            if original is sample:
                kept.append(sample)
            else:
                reason, regions = "image is a duplicate of another", sum(sample.categories.values())
                self.quarantine.add(Fault(sample.image, sample.part, reason, original.image, 1, regions))
        return kept

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
            raise MedpclipError(f"nothing usable for recipe '{self.recipe.name}' ({why})")

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
            "salt": self.plan.salt,
            "images": self._counts("images", self.quarantine.images),
            "regions": self._counts("regions", self.quarantine.regions),
            "quarantine": self.quarantine.reasons,
            "deidentified": dict(sorted(self.placeholders.items())),
            "unused_rules": [rule for rule in recipe.rule_names() if not self.rules[rule]],
        }

    def _counts(self, what: str, lost: int) -> dict[str, int]:
        return {"found": self.found[what], "written": self.written[what], "quarantined": lost}
