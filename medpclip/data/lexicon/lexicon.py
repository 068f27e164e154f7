"""Terms, and how they relate.

Each YAML file beside this one maps a term to

    red blood cell:
      kind: cell
      synonyms: [erythrocyte, RBC]
      parents: [blood cell]
      description: A disc-shaped cell without nucleus that carries oxygen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml

from medpclip.config import from_mapping
from medpclip.errors import MedpclipError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Term:
    """What the lexicon says of one term."""

    kind: str
    description: str
    synonyms: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)


class Lexicon:
    """Terms by name. A word that is not in it is a term without relatives.

    Raises:
        MedpclipError: a parent that is no term, a cycle, a synonym that means two terms.
    """

    def __init__(self, terms: dict[str, Term]) -> None:
        self.terms = terms
        self._ancestors: dict[str, frozenset[str]] = {}
        self._check()

    @classmethod
    def load(cls, files: Sequence[Path] | None = None) -> Lexicon:
        """The terms of some YAML files; by default of all that medpclip ships (read once)."""
        return _shipped() if files is None else cls._read(files)

    @classmethod
    def _read(cls, files: Iterable[Path]) -> Lexicon:
        terms: dict[str, Term] = {}
        for path in files:
            try:
                data = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError) as error:
                raise MedpclipError(f"{path}: unreadable lexicon ({' '.join(str(error).split())})") from None
            for name, entry in (data or {}).items():
                if name in terms:
                    raise MedpclipError(f"{path}: term {name!r} is defined twice; keep one")
                terms[name] = from_mapping(Term, entry, f"{path}: {name}")
        return cls(terms)

    def names(self, term: str) -> list[str]:
        """The term and its synonyms."""
        return [term, *self.terms[term].synonyms] if term in self.terms else [term]

    def description(self, term: str) -> str | None:
        """One sentence on what the term means."""
        return self.terms[term].description if term in self.terms else None

    def ancestors(self, term: str) -> frozenset[str]:
        """All that the term is a kind of, itself excluded."""
        if term not in self._ancestors:
            found: set[str] = set()
            queue = list(self.terms[term].parents) if term in self.terms else []
            while queue:
                parent = queue.pop()
                if parent not in found:
                    found.add(parent)
                    queue += self.terms[parent].parents
            self._ancestors[term] = frozenset(found)
        return self._ancestors[term]

    def related(self, a: str, b: str) -> bool:
        """Whether one of two different terms is an ancestor of the other, so that neither excludes the other."""
        return a in self.ancestors(b) or b in self.ancestors(a)

    def _check(self) -> None:
        meaning: dict[str, str] = {}
        for name, term in self.terms.items():
            for word in [name, *term.synonyms]:
                if meaning.setdefault(word.lower(), name) != name:
                    raise MedpclipError(
                        f"lexicon: {word!r} means both {meaning[word.lower()]!r} and {name!r}; rename one"
                    )
            for parent in term.parents:
                if parent not in self.terms:
                    raise MedpclipError(f"lexicon: term {name!r} has the unknown parent {parent!r}; define it")
        for name in self.terms:
            if name in self.ancestors(name):
                raise MedpclipError(f"lexicon: term {name!r} is its own ancestor; break the cycle")


@lru_cache(maxsize=1)
def _shipped() -> Lexicon:
    return Lexicon._read(sorted(_FOLDER.glob("*.yaml")))
