"""Terms that training leaves out, so that an evaluation can ask for what a model never saw. Our design.

By name: a term's kinds and parts are left out only where they are named too. A text is left out where it would name the
term; what the lexicon's sentences on other terms say stays as it is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.facts import Facts
from medpclip.data.loading.regions import RegionTable
from medpclip.data.shards import read_manifest
from medpclip.errors import MedpclipError


class LeftOut:
    """What `data.leave_out_terms` takes from a batch; nothing where it is empty.

    Args:
        terms: of regions.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        self.terms = frozenset(terms)
        self._lexicon = Lexicon.load() if terms else None
        names = {name for term in terms for name in (self._lexicon.names(term) if self._lexicon else ())}
        words = "|".join(re.escape(name) for name in sorted(names))
        self._named = re.compile(rf"(?<!\w)(?:{words})(?:e?s)?(?!\w)", re.IGNORECASE)

    def regions(self, table: RegionTable) -> np.ndarray:
        """Which of a table's regions are left out: bool (N,)."""
        return np.array([term in self.terms for term in table.terms], bool)[table.category]

    def of_images(self, known: list[Facts]) -> list[Facts]:
        """What is known of images, without the terms: what they show or don't, labels, anatomy, and captions that have
        the term's name or a synonym in them.

        A label that says nothing else is known to have no other value; anatomy and captions are then unknown.
        """
        return [self._of_image(facts) for facts in known] if self.terms else known

    def _of_image(self, facts: Facts) -> Facts:
        kept = {
            name: values if name == "modality" else tuple(value for value in values if not self._names(value, name))
            for name, values in facts.items()
        }
        return {name: values for name, values in kept.items() if values or name not in ("anatomy", "caption")}

    def _names(self, value: str, fact: str) -> bool:
        if fact == "caption":
            return self._named.search(value) is not None
        return value in self.terms or (self._lexicon is not None and self._lexicon.find(value) in self.terms)


@cache
def left_out(terms: tuple[str, ...]) -> LeftOut:
    """The `LeftOut` of some terms, made once."""
    return LeftOut(terms)


def check_left_out(terms: Sequence[str], folders: Iterable[Path], split: str) -> None:
    """Raises:
    MedpclipError: no region of the folders' split has one of the terms.
    """
    if not terms:
        return
    there = set[str]()
    for folder in folders:
        there |= read_manifest(folder)["splits"].get(split, {}).get("category", {}).keys()
    for term in terms:
        if term not in there:
            near = difflib.get_close_matches(term, there, 1) or sorted(there)[:3] or ["none"]
            raise MedpclipError(
                f"key 'data.leave_out_terms' has {term!r}, which is no region's term in the {split} split of data.shards; "
                f"there is {', '.join(near)}"
            )
