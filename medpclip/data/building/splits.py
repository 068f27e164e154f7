"""Train, val and test: whole groups, the same in every lab."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medpclip.data.building.rules import SplitRule
from medpclip.errors import MedpclipError


class Splitter:
    """Says which split an image goes to.

    Args:
        rule: the recipe's rule.
        source: the source's folder, for published lists.

    Raises:
        MedpclipError: a published list is missing, or has an image in two splits.
    """

    def __init__(self, rule: SplitRule, source: Path) -> None:
        self.rule = rule
        self._listed = _read_lists(rule.files, source) if rule.files else None

    def listed(self) -> str:
        """What the published lists say, as text that is the same for the same lists."""
        return json.dumps(sorted((self._listed or {}).items()))

    def split(self, image: str, group: str, metadata: Mapping[str, Any]) -> str | None:
        """The split of an image (path relative to the source) of an unsalted group; None if the published ones lack it.

        A published split may tear groups apart: whoever has all images must look (`refuse_torn_groups`).
        """
        if self._listed is not None:
            path = PurePosixPath(image)
            names = (image, path.with_suffix("").as_posix(), path.name, path.stem, group)
            return next((self._listed[name] for name in names if name in self._listed), None)
        if self.rule.folders is not None:
            tops = {folder: split for split, folder in self.rule.folders.items()}
            return next((s for top, s in tops.items() if PurePosixPath(image).is_relative_to(top)), None)
        if self.rule.metadata is not None:
            words, _ = self.rule.metadata.read(metadata)
            return words[0] if words else None
        return draw_split(group, self.rule)


def refuse_torn_groups(placed: Iterable[tuple[str, str, str]]) -> None:
    """Raise `MedpclipError` if images of one group are in two splits; `placed` are (image, group, split)."""
    of_group: dict[str, str] = {}
    for image, group, split in placed:
        if of_group.setdefault(group, split) != split:
            raise MedpclipError(
                f"key 'split': the published split has images of one group in '{of_group[group]}' and '{split}' "
                f"(for one, {image}); split by fractions, or make the group rule finer"
            )


def draw_split(group: str, rule: SplitRule) -> str:
    """The split of a group: a pure function of the rule's seed and the group's own, unsalted name.

    Each group draws by itself, so a group never changes sides when others are added. The fractions hold on average.
    """
    digest = hashlib.sha256(f"{rule.seed}\0{group}".encode("utf-8", "surrogateescape")).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    if draw < rule.train:
        return "train"
    # Sums in floating point may end a hair below 1: the last split with a fraction takes the rest.
    return "val" if draw < rule.train + rule.val or rule.test == 0 else "test"


def _read_lists(files: Mapping[Any, str], source: Path) -> dict[str, str]:
    listed: dict[str, str] = {}
    for split, name in files.items():
        path = source / name
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise MedpclipError(
                f"{path}: unreadable list ({why}); check the recipe's key 'split.files.{split}'"
            ) from None
        if path.suffix.lower() == ".csv":
            lines = [row[0] for row in list(csv.reader(lines))[1:] if row]
        for line in filter(None, map(str.strip, lines)):
            if listed.setdefault(line, split) != split:
                raise MedpclipError(f"{path}: '{line}' is in '{listed[line]}' and in '{split}'; keep one")
    return listed
