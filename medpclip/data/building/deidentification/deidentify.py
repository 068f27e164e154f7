"""Free text without the people in it: names, dates, identifiers and places become placeholders such as [NAME].

The rules are those of `deidentify_rules`; what is a name and what is medicine's own capital letter is decided word by
word with the lists of `deidentify_words` and the lexicon. Rules see what they were written for and nothing else: where
capital letters may be a name and no rule says so, the text is in doubt, and whoever calls leaves it out. They are
written for English; of other languages they know dates, titles, institutions and addresses.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from medpclip.data.building.deidentification.rules import (
    ACTING,
    CARET,
    CUED,
    DATE,
    DEGREED,
    ID,
    INITIALS,
    INSTITUTION,
    INSTITUTION_FIRST,
    INSTITUTION_LAST,
    KINDS,
    LABELLED,
    NAME,
    PLACE,
    RULES,
    TITLED,
    WHOLE_RULES,
)
from medpclip.data.building.deidentification.vocabulary import WORD, is_acronym, is_known, is_plain, stem
from medpclip.data.building.deidentification.words import EPONYMS, GIVEN_NAMES, PHRASES, PROPER

DOUBT_NAMES = "words with capital letters may be a name"
DOUBT_CAPITALS = "capital letters throughout tell no names apart"
DOUBT_SCRIPT = "letters of a script that the rules don't cover"
DOUBT_REST = "little but identifying words"
DOUBTS = (DOUBT_NAMES, DOUBT_CAPITALS, DOUBT_SCRIPT, DOUBT_REST)

# While rules run, a placeholder is one character that no rule matches: U+E000 and on, Unicode's private use area.
_MARKS = {kind: chr(0xE000 + i) for i, kind in enumerate(KINDS)}
_PHRASE_MARKS = {chr(0xE100 + i): phrase for i, phrase in enumerate(PHRASES)}
_PHRASES = re.compile("|".join(map(re.escape, PHRASES)))
_PRIVATE_USE = re.compile("[\ue000-\uf8ff]")
_ENDS_SENTENCE = frozenset('.!?:;([{\n"“”„«*•>|=/\ufffd')
_PLACE_CUES = frozenset(["in", "from", "at", "near", "to", "via"])
_PLAIN = frozenset(
    [
        "patient",
        "patients",
        "anonymous",
        "anonymized",
        "anonymised",
        "anon",
        "unknown",
        "phantom",
        "subject",
        "test",
        "none",
        "null",
        "name",
        "male",
        "female",
    ]
)
_SMALL_NAMES = GIVEN_NAMES - EPONYMS - {"jan", "leon", "nick", "roman", "rosa", "victor", "victoria"}
_FEWEST_WORDS_PER_MARK = 2
_SHOUTED_RUN = 4  # words in capitals: a sentence, not a name
_MOST_SINGLES, _MOST_SHARE = 3, 0.15


@dataclass(frozen=True)
class Cleaned:
    """A text after de-identification.

    Attributes:
        text: with placeholders: [NAME], [DATE], [ID], [PLACE], [INSTITUTION], [CONTACT], [AGE], [FILE].
        counts: kind of placeholder -> how many were put in; kinds without one are left out.
        doubt: why the text may still name somebody, one of `DOUBTS`, or None. A text in doubt is to be left out.
    """

    text: str
    counts: dict[str, int]
    doubt: str | None = None


def deidentify(text: str, known: Iterable[str] = ()) -> Cleaned:
    """Replace what identifies a person by placeholders.

    Kept are years, times told relative to others ("3 days later"), ages up to 89, states, measurements and the names
    that medicine gives to signs and diseases, as HIPAA's Safe Harbor allows (45 CFR 164.514(b)(2)(i)). The same text
    gives the same result, without network or model.

    Args:
        text: a caption or the value of an attribute.
        known: what the image's own metadata say of the patient and of those who saw him (name, identifiers, ...), as
            they stand there ("Last^First"); each and its parts are replaced wherever they are in the text.
    """
    text = _PHRASES.sub(lambda m: _mark_phrase(m.group()), _PRIVATE_USE.sub(" ", unicodedata.normalize("NFC", text)))
    for kind, pattern in (*WHOLE_RULES, *_known_patterns(tuple(known)), *RULES):
        text = pattern.sub(_MARKS[kind], text)
    text = INSTITUTION_FIRST.sub(_MARKS[INSTITUTION], text)
    text = INSTITUTION_LAST.sub(_institution, text)
    text = CARET.sub(_MARKS[NAME], text)
    text = TITLED.sub(_titled, text)
    text = DEGREED.sub(_MARKS[NAME], text)
    text = INITIALS.sub(_initials, text)
    text = LABELLED.sub(_labelled, text)
    text = CUED.sub(_cued, text)
    text = ACTING.sub(_acting, text)
    text, doubt = _walk(text)
    if any(ord(c) > 0x24F and c.isalpha() and not _is_covered(c) for c in text):
        doubt = DOUBT_SCRIPT
    return Cleaned(*_finish(text), doubt or _rest(text))


def _mark_phrase(phrase: str) -> str:
    return chr(0xE100 + PHRASES.index(phrase))


def _institution(match: re.Match[str]) -> str:
    """An institution's name has a word of its own; "The hospital" and "Emergency Clinic" have none."""
    own = (word for word in WORD.findall(match.group()) if word[0].isupper() and not is_plain(word))
    return _MARKS[INSTITUTION] if any(own) else match.group()


def _titled(match: re.Match[str]) -> str:
    """ "DR SMITH", but not "DR Chest", which is digital radiography."""
    title, *rest = WORD.findall(match.group())
    return match.group() if title == "DR" and all(map(is_plain, rest)) else _MARKS[NAME]


def _initials(match: re.Match[str]) -> str:
    """ "J. Smith", but not "S. Pneumoniae"."""
    surname = match.group().split()[-1].split(".")[-1]
    return match.group() if surname.lower() in PROPER or is_acronym(surname) else _MARKS[NAME]


def _labelled(match: re.Match[str]) -> str:
    person = match.group("any") or match.group("person")
    words = WORD.findall(person)
    if all(is_plain(word) or (word.islower() and match.group("any") is None) for word in words):
        return match.group()
    start = match.start("any" if match.group("any") else "person") - match.start()
    return match.group()[:start] + _MARKS[NAME]


def _cued(match: re.Match[str]) -> str:
    """After "by" or "patient": the words up to the first that is medicine's own."""
    whole, offset = match.group(), match.start("person") - match.start()
    after = match.string[match.end() : match.end() + 30]
    words = list(WORD.finditer(match.group("person")))
    if match.group().lower().startswith(("from ", "for ", "with ", "to ")) and len(words) < 2:
        return whole  # a place or a thing; the walk over single words decides
    end = 0
    for i, word in enumerate(words):
        following = words[i + 1].group() if i + 1 < len(words) else after
        if is_known(word.group(), following) or is_acronym(word.group()):
            break
        end = word.end()
    return whole[:offset] + _MARKS[NAME] + whole[offset + end :] if end else whole


def _acting(match: re.Match[str]) -> str:
    person = match.group("person")
    return match.group() if is_plain(person) else _MARKS[NAME] + match.group()[len(person) :]


def _walk(text: str) -> tuple[str, str | None]:
    """Runs of words with capital letters that no rule explained: given names are replaced, other runs are in doubt."""
    words = list(WORD.finditer(text))
    shouted_text = sum(w.group().isupper() and len(w.group()) > 3 for w in words) > 0.5 * len(words)
    small = {w.group() for w in words if w.group().islower()}
    out: list[str] = []
    at = singles = 0
    doubt = DOUBT_NAMES if small & _SMALL_NAMES else None
    for run in _runs(text, words):
        given = [_is_given(run, i) for i in range(len(run))]
        shouted = shouted_text or (len(run) >= _SHOUTED_RUN and all(w.group().isupper() for w in run))
        if shouted and not all(_is_plain_shout(run, i, text) for i in range(len(run))):
            doubt = doubt or DOUBT_CAPITALS
        names = [not _explained(run, i, small, text, shouted, any(given)) for i in range(len(run))]
        strange = [n or g for n, g in zip(names, given, strict=True)]
        first_of_sentence = _starts_sentence(text, run[0].start())
        if any(given):
            first, last = strange.index(True), len(strange) - 1 - strange[::-1].index(True)
        elif sum(strange) > 1:
            doubt = doubt or DOUBT_NAMES
            continue
        elif sum(strange) == 1 and not (first_of_sentence and strange[0]):
            first = last = strange.index(True)
            singles += 1
        else:
            continue
        before = text[: run[first].start()].split()[-1:]
        kind = PLACE if not any(given) and before and before[0].lower() in _PLACE_CUES else NAME
        out += [text[at : run[first].start()], _MARKS[kind]]
        at = run[last].end()
    if singles > _MOST_SINGLES and singles > _MOST_SHARE * len(words):
        doubt = DOUBT_CAPITALS
    return "".join([*out, text[at:]]), doubt


def _runs(text: str, words: list[re.Match[str]]) -> Iterator[list[re.Match[str]]]:
    """Neighbouring words that begin with a capital letter, with a space, a comma or an initial's dot between them."""
    run: list[re.Match[str]] = []
    for word in words:
        if not word.group()[0].isupper():
            continue
        between = text[run[-1].end() : word.start()] if run else ""
        if (run and between not in (" ", ", ", ". ")) or (between == ". " and len(run[-1].group()) > 1):
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _explained(run: list[re.Match[str]], i: int, small: set[str], text: str, shouted: bool, named: bool) -> bool:
    """Whether a word's capital letter says nothing; beside a given name, a word in capitals needs a better reason."""
    word = run[i].group()
    if word.isupper() and len(word) > 2 and named:
        return is_plain(word)
    if shouted and word.isupper():
        return True
    following = run[i + 1].group() if i + 1 < len(run) else text[run[i].end() : run[i].end() + 30]
    return word.lower() in small or is_acronym(word) or is_known(word, following)


def _is_plain_shout(run: list[re.Match[str]], i: int, text: str) -> bool:
    """Where all is in capitals, a word that is none of medicine's or of reports may be a name."""
    word = run[i].group()
    following = run[i + 1].group() if i + 1 < len(run) else text[run[i].end() : run[i].end() + 30]
    return not word.isupper() or len(word) < 4 or is_known(word, following)


def _is_given(run: list[re.Match[str]], i: int) -> bool:
    """A given name; one that is also an eponym only before another word with a capital letter."""
    word = stem(run[i].group())
    if word.partition("-")[0] not in GIVEN_NAMES:
        return False
    following = run[i + 1].group() if i + 1 < len(run) else ""
    return word not in EPONYMS or (bool(following) and not is_plain(following))


def _starts_sentence(text: str, at: int) -> bool:
    before = text[:at].rstrip(" \t'‘-–—")
    return not before or before[-1] in _ENDS_SENTENCE


@lru_cache(maxsize=256)
def _known_patterns(known: tuple[str, ...]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Patterns for values of the metadata: those with digits as they stand, names also part by part, any case."""
    ids, dates, names = set[str](), set[str](), set[str]()
    for value in (unicodedata.normalize("NFC", v).strip() for v in known):
        if re.fullmatch(r"(?:19|20)\d{6}", value):
            dates.add(value)
        elif any(map(str.isdigit, value)):
            if len(value) > 3 or not value.isdigit():  # "7" would take the number out of "7 days"
                ids.add(value)
        elif value.lower() not in _PLAIN:
            parts = [p for p in re.split(r"[\^=,;.\s]+", value) if p.lower() not in _PLAIN]
            names.update(p for p in parts if len(p) > 2)
            names.update([" ".join(parts), " ".join(parts[::-1])] if len(parts) > 1 else [])
            names.update(p for p in parts if len(parts) == 1 and len(p) == 2)
    found = []
    for kind, values in ((ID, ids), (DATE, dates), (NAME, names)):
        spelt = sorted({s for value in values for s in _spellings(value)}, key=lambda s: (-len(s), s))
        if spelt:
            pattern = "|".join(map(_spelt, spelt))
            found.append((kind, re.compile(rf"(?<![^\W_])(?:{pattern})(?:['’]s)?(?![^\W_])", re.I)))
    return tuple(found)


def _spelt(value: str) -> str:
    """A pattern for a value; a name that is a word of reports too ("White") counts only with a capital letter."""
    if is_plain(value) and value.isalpha():
        return f"(?-i:{re.escape(value.capitalize())}|{re.escape(value.upper())})"
    return re.escape(value).replace(r"\ ", r"[\s^_,]+")


def _spellings(name: str) -> Iterator[str]:
    """With its accents, without them, and German vowels both ways."""
    yield name
    yield "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c)).replace("ß", "ss")
    pairs = (("ä", "ae"), ("ö", "oe"), ("ü", "ue"), ("ß", "ss"))
    long = short = name.lower()
    for umlaut, letters in pairs:
        long, short = long.replace(umlaut, letters), short.replace(letters, umlaut)
    yield from (long, short)


def _finish(text: str) -> tuple[str, dict[str, int]]:
    counts = {kind: text.count(mark) for kind, mark in _MARKS.items() if mark in text}
    for kind, mark in _MARKS.items():
        text = text.replace(mark, f"[{kind}]")
    for mark, phrase in _PHRASE_MARKS.items():
        text = text.replace(mark, phrase)
    return text, counts


def _rest(text: str) -> str | None:
    marks = sum(text.count(mark) for mark in _MARKS.values())
    return DOUBT_REST if marks and len(WORD.findall(text)) < _FEWEST_WORDS_PER_MARK * marks else None


def _is_covered(letter: str) -> bool:
    """Greek, Latin with diacritics (Vietnamese), and letter-like symbols such as Å and µ."""
    return "\u0370" <= letter <= "\u03ff" or "\u1e00" <= letter <= "\u1eff" or "\u2100" <= letter <= "\u214f"
