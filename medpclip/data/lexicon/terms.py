"""Terms as the YAML files have them, and what makes a file of them sound."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from medpclip.config import from_mapping
from medpclip.errors import MedpclipError

# The kinds of terms, and the terms that each kind starts from. A term from which no parents lead to a root of its own
# kind is an orphan.
ROOTS: dict[str, tuple[str, ...]] = {
    "modality": ("medical image",),
    "anatomy": ("anatomical structure",),
    "finding": ("abnormality", "no finding"),
    "lesion": ("lesion",),
    "cell": ("cell", "cell part", "microorganism"),
    "device": ("device",),
    "phantom": ("phantom image", "phantom object"),  # drawings: no word of a real source means one
}
MIRRORED = {"left": "right", "right": "left"}
_SENTENCE = re.compile(r"[A-Z0-9](?:[^.!?\n]|[.!?](?! ))*\.")
_CODE = re.compile(r"(?:UBERON|CL|GO):[0-9]{7}")


@dataclass(frozen=True)
class Term:
    """What the lexicon says of one term.

    Attributes:
        kind: one of `ROOTS`.
        description: one sentence on what it is or looks like.
        synonyms: other words that people use for it; texts use them too.
        parents: the terms that it is a kind of.
        side: the patient's side that it lies on, for one of a pair.
        part_of: for anatomy: the terms that it is a part of. Parts of a parent's wholes needn't say so again.
        labels: what sources call it, but people don't say, as "autochthon"; only `Lexicon.find` knows them.
        codes: identifiers of Uberon (UBERON), the Cell Ontology (CL) or the Gene Ontology (GO).
    """

    kind: str
    description: str
    synonyms: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    side: Literal["left", "right"] | None = None
    part_of: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """All that means the term, besides its name."""
        return [*self.synonyms, *self.labels]


def read_terms(files: Iterable[Path]) -> tuple[dict[str, Term], dict[str, str]]:
    """The terms of some YAML files, and the file of each.

    Raises:
        MedpclipError: naming file and term: unreadable, an unknown key or kind, a term twice, a description that is
            not one sentence, a code of an unknown form, a side that the name doesn't have.
    """
    terms: dict[str, Term] = {}
    origin: dict[str, str] = {}
    for path in files:
        for name, term in _typed(_read(path), str(path)).items():
            if name in terms:
                raise MedpclipError(f"{path}: term {name!r} is defined twice; keep one")
            if fault := _fault(name, term):
                raise MedpclipError(f"{path}: term {name!r} {fault}")
            terms[name], origin[name] = term, str(path)
    return terms, origin


def mirror_name(name: str) -> str | None:
    """The name with left for right or right for left; None unless it has exactly one of the two."""
    words = name.split(" ")
    places = [i for i, word in enumerate(words) if word in MIRRORED]
    if len(places) != 1:
        return None
    return " ".join(MIRRORED[word] if i == places[0] else word for i, word in enumerate(words))


@dataclass(frozen=True)
class _File:
    terms: dict[str, Term]


def _typed(data: dict[str, Any], where: str) -> dict[str, Term]:
    try:
        return from_mapping(_File, {"terms": data}, where).terms
    except MedpclipError as error:  # the files have no key "terms" around their terms
        raise MedpclipError(str(error).replace("'terms.", "'")) from None


def _fault(name: str, term: Term) -> str | None:
    if name != " ".join(name.split()) or not name:
        return "has stray blanks in its name; write it with single ones"
    if term.kind not in ROOTS:
        return f"is of the unknown kind {term.kind!r}; known: {', '.join(ROOTS)}"
    if not _SENTENCE.fullmatch(term.description):
        return f"has the description {term.description!r}; write one sentence, with a capital and a full stop"
    if strange := [code for code in term.codes if not _CODE.fullmatch(code)]:
        return f"has the code {strange[0]!r}; expected UBERON:, CL: or GO: and seven digits"
    if term.side is not None and (mirror_name(name) is None or term.side not in name.split(" ")):
        return f"has the side {term.side!r}, which its name doesn't say; name it, or leave the side out"
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MedpclipError(f"{path}: unreadable lexicon ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(data, dict):
        raise MedpclipError(
            f"{path}: is no mapping of terms; expected 'term:' with 'kind:' and 'description:' below it"
        )
    return data


# The parser in C reads all files in 40 ms, the one in Python in 300.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
    """The safe loader, refusing repeated keys: the later would silently replace the earlier."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"{key.value!r} is stated twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
