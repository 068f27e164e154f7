"""Terms, and how they relate.

Each YAML file beside this one maps a term to

    left kidney:
      kind: anatomy
      synonyms: [left renal organ]
      parents: [kidney]
      side: left
      description: The kidney on the patient's left side.

`terms.Term` says what each key means, docs/reference/lexicon.md how to write one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from medpclip.data.lexicon.labels import normal_form, split_camel, without_plurals
from medpclip.data.lexicon.terms import MIRRORED, ROOTS, Term, mirror_name, read_terms
from medpclip.errors import MedpclipError

_FOLDER = Path(__file__).parent


class Lexicon:
    """Terms by name. A word that is not in it is a term without relatives.

    Args:
        terms: by name.
        origin: the file of each term, for messages.

    Raises:
        MedpclipError: a parent or whole that is no term, a cycle, a word that means two terms or stands twice, a side
            without its mirrored term.
    """

    def __init__(self, terms: dict[str, Term], origin: Mapping[str, str] | None = None) -> None:
        self.terms = terms
        self._origin = origin or {}
        self._ancestors: dict[str, frozenset[str]] = {}
        self._wholes: dict[str, frozenset[str]] = {}
        self._found: tuple[dict[str, str | None], dict[str, str | None]] | None = None
        self._check()

    @classmethod
    def load(cls, files: Sequence[Path] | None = None) -> Lexicon:
        """The terms of some YAML files; by default of all that medpclip ships (read once).

        Raises:
            MedpclipError: as `read_terms` and the class, or an orphan: no parents lead to a root of its kind.
        """
        return _shipped() if files is None else cls._read(files)

    @classmethod
    def _read(cls, files: Sequence[Path]) -> Lexicon:
        lexicon = cls(*read_terms(files))
        lexicon._check_orphans()
        return lexicon

    def names(self, term: str) -> list[str]:
        """The term and its synonyms."""
        return [term, *self.terms[term].synonyms] if term in self.terms else [term]

    def description(self, term: str) -> str | None:
        """One sentence on what the term means."""
        return self.terms[term].description if term in self.terms else None

    def ancestors(self, term: str) -> frozenset[str]:
        """All that the term is a kind of, itself excluded."""
        if term not in self._ancestors:
            self._ancestors[term] = self._above(term, parts=False)
        return self._ancestors[term]

    def related(self, a: str, b: str) -> bool:
        """Whether one of two different terms is an ancestor of the other, so that neither excludes the other."""
        return a in self.ancestors(b) or b in self.ancestors(a)

    def wholes(self, term: str) -> frozenset[str]:
        """All that the term is a kind or a part of, itself excluded: a picture of one may show the other."""
        if term not in self._wholes:
            self._wholes[term] = self._above(term, parts=True)
        return self._wholes[term]

    def side(self, term: str) -> str | None:
        """The patient's side, "left" or "right", that the term says by itself."""
        return self.terms[term].side if term in self.terms else None

    def sided(self, term: str, side: str) -> str | None:
        """The term for `term` on a side of the patient: kidney, left -> left kidney; None where there is none."""
        name = f"{side} {term}"
        found = self.terms.get(name)
        return name if found is not None and found.side == side and term in found.parents else None

    def mirror(self, term: str) -> str:
        """The term for the same thing on the patient's other side; the term itself where it says no side."""
        return (mirror_name(term) or term) if self.side(term) else term

    def find(self, word: str) -> str | None:
        """The term that a source's label means; None where that is none, or more than one.

        Compares names, synonyms and labels in full, whatever their case, blanks (also _ - +), spelling (British,
        American), place of the side ("kidney_left", "L Kidney") and plural. Never a part of a label, never a phantom.
        """
        exact, singular = self._words()
        for spelling in dict.fromkeys((word, split_camel(word))):
            form = normal_form(spelling)
            if form is None:
                return None
            if form in exact:
                return exact[form]
            if (folded := without_plurals(form)) in singular:
                return singular[folded]
        return None

    def _words(self) -> tuple[dict[str, str | None], dict[str, str | None]]:
        """Normal form -> term, and the same in the singular; None for forms of two terms."""
        if self._found is None:
            exact: dict[str, str | None] = {}
            singular: dict[str, str | None] = {}
            for name, term in self.terms.items():
                if term.kind == "phantom":
                    continue
                for form in filter(None, map(normal_form, [name, *term.words()])):
                    for index, key in ((exact, form), (singular, without_plurals(form))):
                        index[key] = name if index.get(key, name) == name else None
            self._found = exact, singular
        return self._found

    def _above(self, term: str, parts: bool) -> frozenset[str]:
        found: set[str] = set()
        queue = [term] if term in self.terms else []
        while queue:
            entry = self.terms[queue.pop()]
            new = {*entry.parents, *(entry.part_of if parts else ())} - found
            found |= new
            queue += new
        return frozenset(found)

    def _where(self, name: str) -> str:
        return f"{self._origin.get(name, 'lexicon')}: term {name!r}"

    def _check(self) -> None:
        meaning: dict[str, str] = {}
        for name, term in self.terms.items():
            words = [word.casefold() for word in (name, *term.words())]
            for word in words:
                if meaning.setdefault(word, name) != name:
                    raise MedpclipError(f"{self._where(name)}: {word!r} means {meaning[word]!r} too; rename one")
            if twice := {word for word in words if words.count(word) > 1}:
                raise MedpclipError(f"{self._where(name)} has the word {min(twice)!r} twice; keep one")
            for key, others in (("parent", term.parents), ("whole", term.part_of)):
                if unknown := [other for other in others if other not in self.terms]:
                    raise MedpclipError(f"{self._where(name)} has the unknown {key} {unknown[0]!r}; define it")
        for name, term in self.terms.items():
            if name in self.wholes(name):
                raise MedpclipError(f"{self._where(name)} is its own ancestor or part; break the cycle")
            self._check_side(name, term)

    def _check_side(self, name: str, term: Term) -> None:
        if term.side is not None:
            other = self.terms.get(mirror_name(name) or "")
            if other is None or other.side != MIRRORED[term.side]:
                raise MedpclipError(f"{self._where(name)} has a side, but {mirror_name(name)!r} hasn't; define both")
        for parent in term.parents:
            above = self.terms[parent].side
            if above is not None and above != term.side:
                raise MedpclipError(f"{self._where(name)} is not on the {above}, as its parent {parent!r} is")

    def _check_orphans(self) -> None:
        for name, term in self.terms.items():
            if not ({name} | self.ancestors(name)) & set(ROOTS[term.kind]):
                roots = " or ".join(repr(root) for root in ROOTS[term.kind])
                raise MedpclipError(f"{self._where(name)} is an orphan; give it parents that lead to {roots}")


def shipped_files() -> list[Path]:
    """The YAML files of the terms that medpclip ships."""
    return sorted(_FOLDER.glob("*.yaml"))


@lru_cache(maxsize=1)
def _shipped() -> Lexicon:
    return Lexicon._read(shipped_files())
