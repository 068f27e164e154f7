"""Recipes: YAML files that say where a source's files lie, which reader reads them, how its labels become terms."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medpclip.config import from_mapping, read_yaml, to_mapping
from medpclip.data.building.rules import GroupRule, SplitRule, TableRule, ValueRule, check_pattern
from medpclip.data.readers import READERS, Reader
from medpclip.errors import MedpclipError


@dataclass(frozen=True)
class Recipe:
    """One source.

    Attributes:
        name: short name, as "bccd_blood"; it is the `source` of its samples.
        title: what it is, in a line.
        modality: how the images were made; a lexicon term, or where the metadata say it.
        licence: of images and annotations.
        citation: whom to cite.
        reader: the annotation format, a key of `READERS`.
        terms: the source's label -> lexicon term; a label that isn't here is quarantined.
        lexicon_terms: a label that isn't in `terms` becomes the lexicon's term of that name, where there is one.
        options: the reader's own options.
        anatomy: what the images show; a lexicon term, or where the metadata say it.
        url: where the source is published.
        layout: "real": tested on files of the source; "documented": written from its public documentation alone.
        path_pattern: a regular expression over the image's path; its named groups join the image's metadata.
        annotated_terms: terms whose every instance is annotated in every image, so that absence means absence.
        group: how patients or studies are told apart.
        split: which group goes where.
        table: metadata from a CSV file.
        labels: image-level labels.
        attributes: what is stated of regions, from their own metadata.
        captions: keys of the image's metadata that hold free text; it is de-identified.
        laterality: "radiological" where the patient's right is on the picture's left, "mirrored" where it is on the
            right, "none" where sides mean nothing: only then may an image be flipped.
        midline: whether images show both sides of the body, with its midline near the middle, so that a place in the
            picture tells the patient's side.
    """

    name: str
    title: str
    modality: str | ValueRule
    licence: str
    citation: str
    reader: str
    terms: dict[str, str] = field(default_factory=dict)
    lexicon_terms: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    anatomy: str | ValueRule | None = None
    url: str | None = None
    layout: Literal["real", "documented"] | None = None
    path_pattern: str | None = None
    annotated_terms: list[str] = field(default_factory=list)
    group: GroupRule = field(default_factory=GroupRule)
    split: SplitRule = field(default_factory=SplitRule)
    table: TableRule | None = None
    labels: dict[str, ValueRule] = field(default_factory=dict)
    attributes: dict[str, ValueRule] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    laterality: Literal["radiological", "mirrored", "none"] = "none"
    midline: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ValueError(f"'name' is '{self.name}'; use small letters, digits, _ and -")
        if self.reader not in READERS:
            raise ValueError(f"'reader' is '{self.reader}'; known: {', '.join(READERS)}")
        if not all(self.terms.values()):
            raise ValueError("'terms' maps a label to nothing; write its term, or leave the label out")
        if self.path_pattern is not None:
            check_pattern(self.path_pattern, "path_pattern")
        rules = {"anatomy": self.anatomy} | {f"attributes.{name}": rule for name, rule in self.attributes.items()}
        for key, rule in rules.items():
            if isinstance(rule, ValueRule) and rule.several:
                raise ValueError(
                    f"'{key}' has 'separator' or 'columns', but can say one thing only; make it one of 'labels'"
                )
        if self.midline and self.laterality == "none":
            raise ValueError("'midline' is true, but 'laterality' is none; say which side is which")
        strange = set(self.annotated_terms) - set(self.terms.values())
        if strange and not self.lexicon_terms:
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

    def rule_names(self) -> list[str]:
        """The rules that look for something in the metadata, as the build counts them."""
        named = {"labels": self.labels, "attributes": self.attributes, "captions": self.captions}
        return [f"{what}.{name}" for what, names in named.items() for name in names]

    def words(self) -> set[str]:
        """All that it names what images and regions show: terms, or else words that only it knows."""
        rules = [self.modality, self.anatomy, *self.labels.values(), *self.attributes.values()]
        stated = {word for rule in rules if rule for word in ({rule} if isinstance(rule, str) else rule.words())}
        return stated | set(self.terms.values())

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
