"""The parts of a recipe that turn what a source says of its images into groups, splits, labels and attributes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medpclip.data.lexicon import Lexicon


@dataclass(frozen=True)
class ValueRule:
    """What a source states in its own words -> ours. Nothing but our words gets into a shard.

    Give one of `values` (with `lexicon`, `separator`), `ranges` and `columns`.

    Attributes:
        key: where the metadata have it; dots reach into nested objects.
        values: the source's value -> our word.
        lexicon: a value that is not in `values` becomes the lexicon's term of that name, where there is one.
        separator: what stands between several values in one text, as "|"; all of them hold.
        ranges: our word -> [from, below) for numbers, as {"child": [0, 18]}.
        columns: key of a column -> our word, which holds where the column has one of `present`.
        present: what a column says where its word holds.
        absent: what it says where it doesn't; an empty cell counts as this where another column says something.
        unlabelled: values that mean "not known"; so does a missing one. Of `columns`, one makes all unknown.
    """

    key: str | None = None
    values: dict[str, str] = field(default_factory=dict)
    lexicon: bool = False
    separator: str | None = None
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    present: list[str] = field(default_factory=lambda: ["1", "1.0", "true", "True", "TRUE", "yes", "Yes"])
    absent: list[str] = field(default_factory=lambda: ["0", "0.0", "false", "False", "FALSE", "no", "No"])
    unlabelled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = [bool(self.values) or self.lexicon, bool(self.ranges), bool(self.columns)]
        if sum(given) != 1:
            raise ValueError("expected one of 'values' (or 'lexicon'), 'ranges' and 'columns'")
        if (self.key is None) != bool(self.columns):
            raise ValueError("'columns' names its own keys; everything else needs 'key'")

    @property
    def several(self) -> bool:
        """Whether it may say several words at once, and so gives a list."""
        return self.separator is not None or bool(self.columns)

    def finds(self, metadata: Mapping[str, Any]) -> bool:
        """Whether the metadata have what it looks for at all, known or not."""
        return any(has(metadata, key) for key in (self.columns or [self.key or ""]))

    def words(self) -> set[str]:
        """The words that it states itself."""
        return {*self.values.values(), *self.ranges, *self.columns.values()}

    def read(self, metadata: Mapping[str, Any]) -> tuple[list[str] | None, list[str]]:
        """Our words for an image or region, and the values that the rule doesn't know.

        The words are None where nothing is known; with `columns` they may be empty: it is known that none holds.
        """
        if self.columns:
            stated = {word: lookup(metadata, key) for key, word in self.columns.items()}
            known = {word: value for word, value in stated.items() if value is not None}
            understood = {*self.present, *self.absent, *self.unlabelled}
            strange = [value for value in known.values() if value not in understood]
            if not known or strange or any(value in self.unlabelled for value in known.values()):
                return None, strange  # a list without the doubtful word would deny it
            return [word for word, value in known.items() if value in self.present], []
        assert self.key is not None
        value = lookup(metadata, self.key)
        if value is None or value in self.unlabelled:
            return None, []
        parts = [part.strip() for part in value.split(self.separator)] if self.separator else [value]
        words: list[str] = []
        strange = []
        for part in parts:
            if part in self.unlabelled or not part:
                continue
            word = self._word(part)
            if word is None:
                strange.append(part)
            else:
                words.append(word)
        return list(dict.fromkeys(words)) or None, strange

    def _word(self, value: str) -> str | None:
        if self.ranges:
            try:
                number = float(value)
            except ValueError:
                return None
            return next((word for word, (low, high) in self.ranges.items() if low <= number < high), None)
        return self.values.get(value) or (Lexicon.load().find(value) if self.lexicon else None)


@dataclass(frozen=True)
class GroupRule:
    """How to find the patient or study of an image. Without `metadata` and `path`, each image is its own group.

    Attributes:
        metadata: key of the image's metadata; dots reach into nested objects, as "metadata.patientid".
        path: a regular expression that finds the patient in the image's path; its one group, or else all of it.
        collection: whose patients these are, where several sources take images of one collection: recipes that state the
            same one find each other's patients by group. By default the recipe's own name.
        why: for readers of the recipe: what makes the rule right, or that the source doesn't tell patients apart.
    """

    metadata: str | None = None
    path: str | None = None
    collection: str | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if self.metadata is not None and self.path is not None:
            raise ValueError("has both 'metadata' and 'path'; keep one")
        if self.path is not None:
            check_pattern(self.path, "path")

    def find(self, image: str, metadata: Mapping[str, Any]) -> str | None:
        """The group of an image, unsalted; None where it should have one and hasn't."""
        if self.metadata is not None:
            return lookup(metadata, self.metadata)
        if self.path is not None:
            match = re.search(self.path, image)
            return (match.group(1 if match.re.groups else 0) or None) if match else None
        return image


@dataclass(frozen=True)
class SplitRule:
    """Which split a group goes to: by fractions and a seed, or as published.

    Attributes:
        seed: another seed gives another split; the same one gives the same split in every lab.
        train: fraction of the groups, as the next two; they add up to 1.
        files: split -> text file of the source with one image (path, name or stem) or group per line; of a CSV file its
            first column below the header.
        folders: split -> first folder of the image's path.
        metadata: from the image's metadata; its words are "train", "val" and "test".
    """

    seed: int = 0
    train: float = 0.7
    val: float = 0.1
    test: float = 0.2
    files: dict[Literal["train", "val", "test"], str] | None = None
    folders: dict[Literal["train", "val", "test"], str] | None = None
    metadata: ValueRule | None = None

    def __post_init__(self) -> None:
        fractions = (self.train, self.val, self.test)
        if min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise ValueError(f"train, val and test are {fractions}; they must be >= 0 and add up to 1")
        if sum(rule is not None for rule in (self.files, self.folders, self.metadata)) > 1:
            raise ValueError("has several of 'files', 'folders' and 'metadata'; keep one")
        rule = self.metadata
        if rule is not None and (rule.lexicon or rule.several or not rule.words() <= {"train", "val", "test"}):
            raise ValueError("'metadata' must lead to 'train', 'val' and 'test'")


@dataclass(frozen=True)
class TableRule:
    """A CSV file of the source whose rows are metadata of the images.

    Attributes:
        file: path below the source.
        key: the column that names the image.
        match: what that column holds: the image's "path", "name" or "stem" (with or without extension), or what one
            of its metadata says, by its key ("case", say, where `path_pattern` has a group of that name).
        delimiter: between the cells.
        several: what several rows of one image are: an error ("refuse"), or one row of what they "agree" on.
    """

    file: str
    key: str
    match: str = "stem"
    delimiter: str = ","
    several: Literal["refuse", "agree"] = "refuse"


def check_pattern(pattern: str, key: str) -> None:
    """Raise `ValueError` unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{key}' is no regular expression ({error})") from None


def has(metadata: Mapping[str, Any], key: str) -> bool:
    """Whether there is such a key, with a value or without."""
    if key in metadata:
        return True
    first, _, rest = key.partition(".")
    inner = metadata.get(first)
    return bool(rest) and isinstance(inner, Mapping) and has(inner, rest)


def reach(metadata: Mapping[str, Any], key: str) -> Any:
    """What the metadata have at a key, or None; the key as it stands first, then its dots reach into nested objects."""
    if key in metadata:
        return metadata[key]
    value: Any = metadata
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def lookup(metadata: Mapping[str, Any], key: str) -> str | None:
    """What `reach` finds, as text; None where it is missing, null, empty, or more than one value."""
    value = reach(metadata, key)
    if value is None or isinstance(value, (Mapping, list)):
        return None
    return str(value).strip() or None
