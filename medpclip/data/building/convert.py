"""One entry of a source -> checked, encoded samples and the faults of what can't be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medpclip.data.building.burned_in import suspect_burned_in
from medpclip.data.building.deidentification.deidentify import deidentify
from medpclip.data.building.deidentification.known_values import known_values
from medpclip.data.building.privacy import Salt
from medpclip.data.building.recipe import Recipe
from medpclip.data.building.regions import make_region
from medpclip.data.building.rules import ValueRule, has, reach
from medpclip.data.building.splits import Splitter
from medpclip.data.lexicon import Lexicon
from medpclip.data.pictures import Picture, PictureError, read_picture
from medpclip.data.readers import Entry, Fault, RawRegion, RawSample, UnusableError
from medpclip.data.schema import Region, Sample
from medpclip.data.shards import EncodedSample, encode_sample
from medpclip.errors import MedpclipError


@dataclass
class ConvertedSample:
    """A sample, and what only the build may know of it.

    Attributes:
        image: the entry's image file: private.
        part: which image of the file it is: private.
        digest: what byte-identical copies have alike: private.
        group: salted.
    """

    encoded: EncodedSample
    image: str
    part: str
    digest: str
    group: str


@dataclass
class Converted:
    """What became of some entries.

    Attributes:
        images, regions: how many were found.
        placeholders: kind -> how many identifying words captions lost.
        found: rule of the recipe, as "labels.finding" -> for how many images or regions there was something to look at.
    """

    samples: list[ConvertedSample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    images: int = 0
    regions: int = 0
    placeholders: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)

    def add(self, other: Converted) -> None:
        """What became of some more."""
        self.samples += other.samples
        self.faults += other.faults
        self.images += other.images
        self.regions += other.regions
        self.placeholders.update(other.placeholders)
        self.found.update(other.found)


class Converter:
    """Converts a recipe's entries, one by one and in any order.

    Args:
        recipe: what to read and how.
        source: the folder that the recipe's paths are relative to.
        salt: the lab's secret.
    """

    def __init__(self, recipe: Recipe, source: Path, salt: Salt) -> None:
        self.recipe, self.source, self.salt = recipe, source, salt
        self.reader = recipe.make_reader(source)
        self.splitter = Splitter(recipe.split, source)
        self.lexicon = Lexicon.load()

    def convert(self, entries: Iterable[Entry]) -> Converted:
        """All samples of some entries.

        Raises:
            MedpclipError: something that another entry would meet too, as a full memory.
        """
        out = Converted()
        for entry in entries:
            try:
                for raw in self.reader.samples(entry):
                    out.add(self._image(entry, raw))
            except UnusableError as unusable:
                _lose(out, unusable.fault)
            except MemoryError:
                raise MedpclipError(
                    f"{entry.image}: not enough memory to read it; build with fewer --workers"
                ) from None
            except MedpclipError:
                raise
            except Exception as error:  # a library met a file that nobody thought of: one file must not end the build
                _lose(out, _unexpected(entry, "", error, 0))
        return out

    def _image(self, entry: Entry, raw: RawSample) -> Converted:
        """One image -> one sample and the faults of its regions, or one fault that takes all; counted once either way."""
        regions = len(raw.regions) + sum(fault.regions for fault in raw.faults)
        out = Converted(faults=list(raw.faults), images=1, regions=regions)
        try:
            self._convert(entry, raw, out)
        except (MedpclipError, MemoryError):
            raise
        except Exception as error:  # what was done of it so far is thrown away, so that nothing is counted twice
            lost = _unexpected(entry, raw.part, error, len(raw.regions))
            return Converted(faults=[*raw.faults, lost], images=1, regions=regions)
        return out

    def _convert(self, entry: Entry, raw: RawSample, out: Converted) -> None:
        metadata = entry.metadata | raw.metadata
        try:
            picture = raw.picture or read_picture(self.source / entry.image)
            group, split = self._place(entry.image, metadata)
            modality = self._word(self.recipe.modality, metadata, "modality of the image is not in the recipe")
        except PictureError as error:
            lost = len(raw.regions)
            out.faults.append(Fault(entry.image, raw.part, error.reason, error.detail, images=1, regions=lost))
            return
        self._note_found(metadata, raw, out.found)
        regions, annotated = self._regions(raw, picture, out.faults)
        width, height = picture.size
        extra: dict[str, Any] = {"laterality": self.recipe.laterality}
        if self.recipe.midline:
            extra["midline"] = True
        if burned_in := suspect_burned_in(modality, picture.burned_in, self.lexicon):
            extra["burned_in_text"] = burned_in
        sample = Sample(
            key=self._hash("sample", f"{entry.image}\0{raw.part}" if raw.part else entry.image),
            source=self.recipe.name,
            split=split,
            group=self.salt.hash("group", f"{self.recipe.group.collection or self.recipe.name}\0{group}"),
            modality=modality,
            anatomy=self._anatomy(entry, metadata, out.faults),
            width=width,
            height=height,
            spacing=raw.spacing,
            volume=raw.volume
            and {"id": self._hash("volume", str(raw.metadata.get("volume", entry.image)))} | raw.volume,
            intensity=picture.intensity,
            captions=self._captions(entry, metadata, out),
            labels=self._facts(self.recipe.labels, metadata, entry.image, "", out.faults),
            annotated_terms=annotated,
            regions=regions,
            extra=extra,
        )
        try:
            encoded = encode_sample(sample, picture.data, picture.extension)
        except MedpclipError as error:  # it names the sample by its hash: nobody would find the file
            raise RuntimeError(str(error)) from None
        out.samples.append(ConvertedSample(encoded, entry.image, raw.part, picture.digest, sample.group))

    def _note_found(self, metadata: Mapping[str, Any], raw: RawSample, found: Counter[str]) -> None:
        """Count for which rules there was something to look at: one that never finds anything has a wrong key."""
        found.update(f"labels.{name}" for name, rule in self.recipe.labels.items() if rule.finds(metadata))
        found.update(f"captions.{key}" for key in self.recipe.captions if has(metadata, key))
        for name, rule in self.recipe.attributes.items():
            found[f"attributes.{name}"] += sum(rule.finds(region.metadata) for region in raw.regions)

    def _regions(self, raw: RawSample, picture: Picture, faults: list[Fault]) -> tuple[list[Region], list[str]]:
        """The good regions, and the terms of which none was lost: only those are still annotated exhaustively."""
        lost: set[str | None] = {None} if any(fault.regions for fault in raw.faults) else set()
        regions: list[Region] = []
        for item in raw.regions:
            term = self._term(item.label)
            result = self._region(item, len(regions) + 1, term, raw, picture)
            if isinstance(result, Region):
                facts = self._facts(self.recipe.attributes, item.metadata, item.file, item.key, faults)
                result.attributes = facts
                regions.append(result)
            else:
                faults.append(result)
                lost.add(term)
        annotated = [] if None in lost else [term for term in self.recipe.annotated_terms if term not in lost]
        return regions, annotated

    def _region(
        self, item: RawRegion, number: int, term: str | None, raw: RawSample, picture: Picture
    ) -> Region | Fault:
        if raw.size is not None and raw.size != picture.size:
            detail = "{}x{} stated, the image is {}x{}".format(*raw.size, *picture.size)
            return Fault(item.file, item.key, "image is of another size than stated", detail, 0, 1)
        if term is None:
            detail = f"{item.label!r}"
            return Fault(item.file, item.key, "label is not in the recipe's terms", detail, regions=1)
        return make_region(item, number, term, picture.size, self.reader.name)

    def _term(self, label: str) -> str | None:
        return self.recipe.terms.get(label) or (self.lexicon.find(label) if self.recipe.lexicon_terms else None)

    def _place(self, image: str, metadata: Mapping[str, Any]) -> tuple[str, str]:
        """The group (unsalted) and the split of an image."""
        group = self.recipe.group.find(image, metadata)
        if not group:  # its patient may be in another split: better lost than leaked
            rule = self.recipe.group
            detail = f"nothing in the metadata at '{rule.metadata}'" if rule.metadata else f"no match of {rule.path!r}"
            raise PictureError("patient or study of the image is not known", detail)
        split = self.splitter.split(image, group, metadata)
        if split is None:
            raise PictureError("image is in none of the published splits")
        return group, split

    def _word(self, rule: str | ValueRule, metadata: Mapping[str, Any], reason: str) -> str:
        if isinstance(rule, str):
            return rule
        words, strange = rule.read(metadata)
        if not words or len(words) > 1:
            raise PictureError(reason, f"{rule.key} is {strange or words}")
        return words[0]

    def _anatomy(self, entry: Entry, metadata: Mapping[str, Any], faults: list[Fault]) -> str | None:
        if not isinstance(self.recipe.anatomy, ValueRule):
            return self.recipe.anatomy
        found = self._facts({"anatomy": self.recipe.anatomy}, metadata, entry.image, "", faults).get("anatomy")
        return found if isinstance(found, str) else None

    def _facts(
        self, rules: Mapping[str, ValueRule], metadata: Mapping[str, Any], file: str, key: str, faults: list[Fault]
    ) -> dict[str, Any]:
        """What the recipe's rules say; a value that none of them knows is a fault that loses neither image nor region."""
        facts: dict[str, Any] = {}
        for name, rule in rules.items():
            words, strange = rule.read(metadata)
            if words is not None:
                facts[name] = words if rule.several else words[0]
            for value in strange:
                where = f"{key}: {name}" if key else f"labels.{name}"
                faults.append(Fault(file, where, "value of a label is not in the recipe", f"{rule.key} is {value!r}"))
        return facts

    def _captions(self, entry: Entry, metadata: Mapping[str, Any], out: Converted) -> list[str]:
        """The captions without what identifies a person; one that stays doubtful is quarantined, its image isn't."""
        captions: list[str] = []
        known = known_values(metadata) if self.recipe.captions else ()
        for name in self.recipe.captions:
            given = reach(metadata, name)
            for text in given if isinstance(given, list) else [given]:
                if not isinstance(text, str) or not text.strip():
                    continue
                whole = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character
                cleaned = deidentify(" ".join(whole.split()), known)
                out.placeholders.update(cleaned.counts)
                if cleaned.doubt:
                    out.faults.append(Fault(entry.image, f"captions.{name}", cleaned.doubt, cleaned.text))
                elif cleaned.text not in captions:
                    captions.append(cleaned.text)
        return captions

    def _hash(self, kind: str, text: str) -> str:
        return self.salt.hash(kind, f"{self.recipe.name}\0{text}")


def _lose(out: Converted, fault: Fault) -> None:
    out.add(Converted(faults=[fault], images=fault.images, regions=fault.regions))


def _unexpected(entry: Entry, part: str, error: Exception, regions: int) -> Fault:
    detail = f"{type(error).__name__}: {error}"
    return Fault(entry.image, part, "reader failed unexpectedly", detail, images=1, regions=regions)
