"""Whether a word with a capital letter is medicine's own, or may be somebody's name."""

from __future__ import annotations

import re
from functools import lru_cache

from medpclip.data.building.deidentification.words import EPONYMS, HEADS, PROPER, REPORT, SURNAMES
from medpclip.data.lexicon import Lexicon

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W_]+)*")
_OWN = EPONYMS | PROPER
# What these end is no surname, with few exceptions.
_MEDICAL = re.compile(
    r"(?:itis|os[ei]s|oma(?:s|ta)?|a?emias?|path(?:y|ic|ies)|graph(?:y|ic|s|ies)|ograms?|scop(?:y|ic|ies)|ectom(?:y|ies)|[ot]om(?:y|ies)|"
    r"plasty|[ts]ions?|olog(?:y|ic|ical)|ular|oids?|genic|lytic|troph(?:y|ic)|plasia|plastic|stas[ei]s|megaly|algia|rrhage|"
    r"rrh?oea|phagia|uria|o?edema|pn(?:o?ea)|cyt(?:e|es|ic|osis)|ectas(?:is|ia)|tinib|mab|cillin|mycin|floxacin|azole|statin|"
    r"sartan|platin|taxel|rubicin|parin|i[sz]ed|ated|ical(?:ly)?|ously|ious|eous|[aeio]tic)$"
)


def is_known(word: str, following: str) -> bool:
    """Whether a word with a capital letter is medicine's own, a country's, or any word of a report."""
    lower = stem(word)
    if "-" in word and stem(word.partition("-")[0]) in _OWN:  # "Legionella-Ag", "Swan-Ganz"
        return True
    if lower in SURNAMES:
        next_word = WORD.search(following)
        return word.lower().endswith(("'s", "’s")) or bool(next_word and next_word.group().lower() in HEADS)
    return lower in _OWN or is_plain(word)


@lru_cache(maxsize=1 << 14)
def is_plain(word: str) -> bool:
    """Whether a word is one of reports or of the lexicon, or formed like a medical one."""
    lower = stem(word)
    if lower in REPORT or lower in _lexicon_words() or _MEDICAL.search(lower):
        return True
    for ending in ("s", "es", "ed", "ing", "ly"):
        if lower.endswith(ending) and (
            lower.removesuffix(ending) in REPORT or lower.removesuffix(ending) in _lexicon_words()
        ):
            return True
    parts = word.split("-")
    return len(parts) > 1 and ((parts[-1].islower() and len(parts[-1]) > 1) or all(map(_is_part, parts)))


def _is_part(part: str) -> bool:
    return len(part) < 3 or part.isdigit() or is_acronym(part) or part.lower() in _OWN or is_plain(part)


def is_acronym(word: str) -> bool:
    """ "CT", "COPD", "SpO2", "T": short, with more than one capital letter, or a letter."""
    return len(word) == 1 or (len(word) <= 6 and (sum(map(str.isupper, word)) > 1 or any(map(str.isdigit, word))))


def stem(word: str) -> str:
    """In small letters, without the genitive."""
    return word.lower().removesuffix("'s").removesuffix("’s")


@lru_cache(maxsize=1)
def _lexicon_words() -> frozenset[str]:
    lexicon = Lexicon.load()
    return frozenset(
        word.lower() for term in lexicon.terms for name in lexicon.names(term) for word in WORD.findall(name)
    )
