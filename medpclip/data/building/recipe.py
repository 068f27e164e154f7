"""Recipes: YAML files that say where a source's files lie, which reader reads them, how its labels become terms."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medpclip.config import from_mapping, read_yaml, to_mapping
from medpclip.data.readers import READERS, Reader
from medpclip.errors import MedpclipError


@dataclass(frozen=True)
class GroupRule:
    """How to find the patient or study of an image. With none of the two, each image is its own group.

    Attributes:
        metadata: key of the image's metadata; dots reach into nested objects, as "metadata.patientid".
        path: a regular expression that finds the patient in the image's path; its one group, or else all of it.
    """

    metadata: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.metadata is not None and self.path is not None:
            raise ValueError("has both 'metadata' and 'path'; keep one")
        if self.path is not None:
            try:
                re.compile(self.path)
            except re.error as error:
                raise ValueError(f"'path' is no regular expression ({error})") from None


@dataclass(frozen=True)
class SplitRule:
    """Which split a group goes to: by fractions and a seed, or as published.

    Attributes:
        seed: another seed gives another split; the same one gives the same split in every lab.
        train: fraction of the groups, as the next two; they add up to 1.
        files: split -> text file of the source with one image per line (path, name or stem).
        folders: split -> first folder of the image's path.
    """

    seed: int = 0
    train: float = 0.7
    val: float = 0.1
    test: float = 0.2
    files: dict[Literal["train", "val", "test"], str] | None = None
    folders: dict[Literal["train", "val", "test"], str] | None = None

    def __post_init__(self) -> None:
        fractions = (self.train, self.val, self.test)
        if min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise ValueError(f"train, val and test are {fractions}; they must be >= 0 and add up to 1")
        if self.files is not None and self.folders is not None:
            raise ValueError("has both 'files' and 'folders'; keep one")


@dataclass(frozen=True)
class LabelRule:
    """An image-level label.

    Attributes:
        key: where the image's metadata have it; dots reach into nested objects.
        values: the source's value -> the label. Nothing but these values gets into a shard.
        unlabelled: values that mean "not known"; so does a missing one.
    """

    key: str
    values: dict[str, str]
    unlabelled: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TableRule:
    """A CSV file of the source whose rows are metadata of the images.

    Attributes:
        file: path below the source.
        key: the column that names the image.
        match: what that column holds: the image's path, name or stem.
    """

    file: str
    key: str
    match: Literal["path", "name", "stem"] = "stem"


@dataclass(frozen=True)
class Recipe:
    """One source.

    Attributes:
        name: short name, as "bccd_blood"; it is the `source` of its samples.
        title: what it is, in a line.
        modality: how the images were made; a lexicon term.
        licence: of images and annotations.
        citation: whom to cite.
        reader: the annotation format, a key of `READERS`.
        terms: the source's label -> lexicon term; a label that isn't here is quarantined.
        options: the reader's own options.
        anatomy: what the images show; a lexicon term.
        url: where the source is published.
        annotated_terms: terms whose every instance is annotated in every image, so that absence means absence.
        group: how patients or studies are told apart.
        split: which group goes where.
        table: metadata from a CSV file.
        labels: image-level labels.
        laterality: "radiological" where the patient's right is on the picture's left; "none" where sides mean nothing.
    """

    name: str
    title: str
    modality: str
    licence: str
    citation: str
    reader: str
    terms: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    anatomy: str | None = None
    url: str | None = None
    annotated_terms: list[str] = field(default_factory=list)
    group: GroupRule = field(default_factory=GroupRule)
    split: SplitRule = field(default_factory=SplitRule)
    table: TableRule | None = None
    labels: dict[str, LabelRule] = field(default_factory=dict)
    laterality: Literal["radiological", "none"] = "none"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ValueError(f"'name' is '{self.name}'; use small letters, digits, _ and -")
        if self.reader not in READERS:
            raise ValueError(f"'reader' is '{self.reader}'; known: {', '.join(READERS)}")
        if not all(self.terms.values()):
            raise ValueError("'terms' maps a label to nothing; write its term, or leave the label out")
        strange = set(self.annotated_terms) - set(self.terms.values())
        if strange:
            raise ValueError(f"'annotated_terms' has '{min(strange)}', which 'terms' doesn't map to")

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe and check it, its reader's options included.

        Raises:
            MedpclipError: naming the file, the key and the nearest known one.
        """
        recipe = from_mapping(cls, read_yaml(path), str(path))
        recipe.reader_options(str(path))
        return recipe

    def reader_options(self, where: str) -> Any:
        """The options as the reader's own dataclass, defaults filled in."""
        return from_mapping(READERS[self.reader][1], self.options, f"{where}: options")

    def make_reader(self, source: Path) -> Reader[Any]:
        """The reader of this recipe for a source folder."""
        return READERS[self.reader][0](source, self.reader_options(f"recipe {self.name}"))

    def sha256(self) -> str:
        """A hash of what the recipe says, whatever its comments, order of keys, and stated or implied defaults."""
        content = to_mapping(self) | {"options": to_mapping(self.reader_options(self.name))}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_recipe(name: str, folders: Sequence[Path]) -> Path:
    """The file of a recipe that is named by its path, or by its bare name in one of `folders`.

    Raises:
        MedpclipError: there is none; names those that there are.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    known = list_recipes(folders)
    if name in known:
        return known[name]
    where = ", ".join(str(folder) for folder in folders)
    raise MedpclipError(
        f"recipe '{name}': not found in {where} (there: {', '.join(known) or 'none'}); give its path, or --recipes DIR"
    )


def list_recipes(folders: Sequence[Path]) -> dict[str, Path]:
    """Bare name -> file of all recipes in `folders`; the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.y*ml")):
            found.setdefault(path.stem, path)
    return found


def lookup(metadata: Mapping[str, Any], key: str) -> str | None:
    """A value of an image's metadata as text, or None where it is missing, null or empty.

    The key is tried as it stands first, then its dots reach into nested objects.
    """
    value: Any = metadata.get(key)
    if key not in metadata:
        value = metadata
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or isinstance(value, (Mapping, list)):
        return None
    return str(value).strip() or None
