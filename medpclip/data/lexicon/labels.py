"""How sources write their labels, brought to one form, so that "kidney_left" and "Left Kidney" are the same word."""

from __future__ import annotations

import re
import unicodedata

_SIDES = {"left": "left", "right": "right"}
_SHORT_SIDES = {"l": "left", "r": "right", "lt": "left", "rt": "right"}
# British and American spellings: any of the two to one of them, wherever it stands in a word.
_SPELLINGS = (
    ("tumour", "tumor"),
    ("haem", "hem"),
    ("oedem", "edem"),
    ("oesoph", "esoph"),
    ("grey", "gray"),
    ("fibre", "fiber"),
    ("centre", "center"),
    ("foet", "fet"),
    ("colour", "color"),
    ("coeli", "celi"),
    ("leuco", "leuko"),
    ("leukaem", "leukem"),
    ("naev", "nev"),
    ("caec", "cec"),
    ("paed", "ped"),
    ("rrhoe", "rrhe"),
    ("faec", "fec"),
    ("isation", "ization"),
    ("disk", "disc"),
    ("humour", "humor"),
)
_PLURALS = {
    "bronchi": "bronchus",
    "bullae": "bulla",
    "menisci": "meniscus",
    "metastases": "metastasis",
    "nuclei": "nucleus",
    "phalanges": "phalanx",
    "teeth": "tooth",
    "thrombi": "thrombus",
    "vertebrae": "vertebra",
}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")
_BLANKS = re.compile(r"[\s_\-+,.():]+")
_UNDERSTOOD = re.compile(r"[\w\s\-+,.():/&*']*")


def normal_form(word: str) -> str | None:
    """A label in small letters, American spelling, with single blanks, and its side, if any, in front.

    None for what says more than a name: a doubt ("pneumonia?"), a sign at either end ("tumour-"), a comparison.
    """
    text = unicodedata.normalize("NFKC", word).replace("’", "'").strip()
    if not _UNDERSTOOD.fullmatch(text) or (text and (text[0] in "+-" or text[-1] in "+-")):
        return None
    text = text.casefold().replace("'", "").replace("/", " / ")
    words = [_spell(part) for part in _BLANKS.sub(" ", text).split()]
    words = ["and" if part == "&" else part for part in words]
    return " ".join(_side_first(words)) or None


def without_plurals(form: str) -> str:
    """A normal form with each word in the singular, or what stands for it alike for both ("pancrea")."""
    return " ".join(_singular(word) for word in form.split(" "))


def split_camel(word: str) -> str:
    """LeftLung -> Left Lung."""
    return _CAMEL.sub(" ", word)


def _spell(word: str) -> str:
    for british, american in _SPELLINGS:
        word = word.replace(british, american)
    return str(int(word)) if word.isdecimal() else word


def _side_first(words: list[str]) -> list[str]:
    sides = [i for i, word in enumerate(words) if word in _SIDES]
    if not sides and len(words) > 1:  # "L" alone, or within, may be anything
        sides = [i for i in (0, len(words) - 1) if words[i] in _SHORT_SIDES]
    if len(sides) != 1:
        return words
    side = words[sides[0]]
    return [_SIDES.get(side) or _SHORT_SIDES[side], *words[: sides[0]], *words[sides[0] + 1 :]]


def _singular(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
