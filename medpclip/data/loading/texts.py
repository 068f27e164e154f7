"""Texts: what can be said of images and regions, in words, and of which of them it is true.

A text states *facts* (term: red blood cell, modality: microscopy, place: upper left) and has a *wording*. Wordings are
made at load time, from the lexicon and templates, so that they can change without rebuilding shards. A step has each text
once, however many regions of however many ranks it fits, and `targets` says of every item and text whether the text is true,
false or unknown of it. Our design.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter

import numpy as np

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.facts import Facts

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "POSITIVE",
    "Facts",
    "Text",
    "TextSampling",
    "draw_image_text",
    "draw_region_text",
    "draw_region_texts",
    "known_of_regions",
    "targets",
]

POSITIVE, NEGATIVE, IGNORED = 1, -1, 0

Known = tuple[str, str, str]  # term, attribute, value

_PLACES = {
    "upper": "in the upper part of the image",
    "lower": "in the lower part of the image",
    "left": "in the left part of the image",
    "right": "in the right part of the image",
}
# How a region text states a fact, after its template. "left" of the image and the patient's left never look alike.
_STATED: dict[str, Callable[[str], str]] = {
    "size": lambda value: f", {value} in the image",
    "place": lambda value: f" {_PLACES.get(value, f'in the {value} of the image')}",
    "side": lambda value: f" on the patient's {value} side",
    "number": lambda value: f", {'the ' * value.startswith('only')}{value} of its kind in the image",
    "rank": lambda value: f", the {value} of its kind in the image",
    "modality": lambda value: f" on {value}",
}
_UNSAID = {("rank", "between")}
_ARTICLE = re.compile(r"\b([Aa]) (?=\{name\})")
# Initials that are spelled out with a vowel in front (an MRI, an X-ray), and words that begin with one but don't sound so.
_SPELLED_VOWEL = re.compile(r"(?!FLAIR|STIR|SARS)[AEFHILMNORSX](?:[A-Z0-9]|\b)")
_CONSONANT = re.compile(r"(?:eu|uni|ure|uri|ute|uve|us)", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Text:
    """Attributes:
    facts: what it states, as sorted (fact, value) pairs.
    wording: the sentence the text tower reads.
    """

    facts: tuple[tuple[str, str], ...]
    wording: str


@dataclass
class TextSampling:
    """How training words its texts.

    Attributes:
        budget: at most so many region texts per global batch; terms beyond it wait for another batch.
        synonyms: chance that a synonym stands for the term.
        descriptions: chance that the term's description follows it.
        attributes: chance, per term, of a second text that also states one attribute: place, size, patient's side,
            number, rank or modality.
        captions: chance that an image's caption is taken, where it has one, instead of a template.
        region_templates, image_templates: with {name}, which stands for the term or the modality; what else is stated
            follows. "a {name}" becomes "an {name}" where it should.
        bare: to compare with: a region's text is its term and nothing else, an image's its modality, its anatomy, one of
            its labels or a term that it shows, as the shards write them. What is said above of wording, attributes and
            captions then has no part.
    """

    budget: int = 256
    synonyms: float = 0.3
    descriptions: float = 0.1
    attributes: float = 0.3
    captions: float = 0.5
    region_templates: list[str] = field(
        default_factory=lambda: ["{name}", "a {name}", "an image region showing a {name}", "this is a {name}"]
    )
    image_templates: list[str] = field(
        default_factory=lambda: ["{name}", "a {name} image", "a medical image: {name}", "this is a {name} image"]
    )
    bare: bool = False

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"'budget' is {self.budget}, expected at least 1")
        for template in [*self.region_templates, *self.image_templates]:
            try:
                fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
            except ValueError:
                fields = set()
            if fields != {"name"}:
                raise ValueError(f"template {template!r} must have {{name}} and nothing else in braces")


def known_of_regions(items: Iterable[Facts]) -> set[Known]:
    """All that the region texts of a batch depend on: which terms there are, and which attributes with each.

    It is a set, and small, so ranks can share it, and draw the same texts whoever has which region.
    """
    known: set[Known] = set()
    for facts in items:
        term = facts["term"][0]
        known.add((term, "term", term))
        known.update((term, name, value) for name, value in _attributes(facts).items())
    return known


def _attributes(region: Facts) -> dict[str, str]:
    """What a text may state of a region beside its term."""
    stated = {name: values[0] for name, values in region.items() if name in _STATED}
    return {name: value for name, value in stated.items() if (name, value) not in _UNSAID}


def draw_region_texts(
    known: Iterable[Known], lexicon: Lexicon, sampling: TextSampling, rng: np.random.Generator
) -> list[Text]:
    """The region texts of a step, from what is known of all ranks' regions: one per term, some with an attribute more."""
    attributes: dict[str, dict[str, set[str]]] = {}
    for term, name, value in known:
        stated = attributes.setdefault(term, {})
        if name != "term":
            stated.setdefault(name, set()).add(value)
    terms = sorted(attributes)
    if len(terms) > sampling.budget:
        terms = sorted(rng.choice(terms, sampling.budget, replace=False).tolist())
    texts = [Text((("term", term),), _word_region(term, None, lexicon, sampling, rng)) for term in terms]
    for term in terms:
        if sampling.bare or len(texts) >= sampling.budget:
            break
        if rng.random() < sampling.attributes:
            fact = _draw_attribute(attributes[term], lexicon.side(term) is not None, rng)
            if fact is not None:
                wording = _word_region(term, fact, lexicon, sampling, rng)
                texts.append(Text(tuple(sorted([("term", term), fact])), wording))
    return list(dict.fromkeys(texts))


def draw_region_text(facts: Facts, lexicon: Lexicon, sampling: TextSampling, rng: np.random.Generator) -> Text:
    """A text of one region alone: its term, with the chance `attributes` and one of its attributes."""
    term, fact = facts["term"][0], None
    if not sampling.bare and rng.random() < sampling.attributes:
        known = {name: {value} for name, value in _attributes(facts).items()}
        fact = _draw_attribute(known, lexicon.side(term) is not None, rng)
    stated = [("term", term)] if fact is None else sorted([("term", term), fact])
    return Text(tuple(stated), _word_region(term, fact, lexicon, sampling, rng))


def draw_image_text(facts: Facts, lexicon: Lexicon, sampling: TextSampling, rng: np.random.Generator) -> Text:
    """A text of one image: a caption, or a template over the modality, mostly with one fact more.

    The fact more is a label, the anatomy, or a term that the image shows. A bare text is any one of these or the modality.
    """
    more = sorted(name for name, values in facts.items() if values and _says_more(name))
    if sampling.bare:
        name, value = _draw_fact(facts, [*more, "modality"], rng)
        return Text(((name, value),), value)
    if "caption" in facts and rng.random() < sampling.captions:
        caption = facts["caption"][int(rng.integers(len(facts["caption"])))]
        return Text((("caption", caption),), caption)
    modality = facts["modality"][0]
    stated = {"modality": modality}
    template = sampling.image_templates[int(rng.integers(len(sampling.image_templates)))]
    wording = fill_template(template, _name(modality, lexicon, sampling, rng))
    if more and rng.random() < 0.7:
        name, value = _draw_fact(facts, more, rng)
        stated[name] = value
        word = _name(value, lexicon, sampling, rng)
        wording += {"anatomy": f" of the {word}", "present": f" showing {_article(word)} {word}"}.get(name, f", {word}")
    return Text(tuple(sorted(stated.items())), wording)


def _draw_fact(facts: Facts, names: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    name = names[int(rng.integers(len(names)))]
    return name, facts[name][int(rng.integers(len(facts[name])))]


def targets(items: Sequence[Facts], texts: Sequence[Text], lexicon: Lexicon) -> np.ndarray:
    """int8 (len(items), len(texts)): POSITIVE, NEGATIVE or IGNORED.

    Positive: every stated fact is true of the item. Negative: one is false. Ignored: none is false, but one is unknown
    of the item, or names an ancestor or descendant (in the lexicon) of what holds; of the anatomy, a part or whole too.
    Texts of one wording are one to who reads it: true where any of them is, false where all are.

    Sides: a term with a side of its own is on that side whatever else is said. A kidney on the left *is* a left kidney,
    for items and texts alike, and what is known to lie on the right is never a left kidney.
    """
    false = np.zeros((len(items), len(texts)), bool)
    unknown = np.zeros_like(false)
    stated: dict[str, dict[str, list[int]]] = {}
    implied: dict[str, list[int]] = {}
    for j, text in enumerate(texts):
        facts = dict(text.facts)
        if "term" in facts:
            if "side" in facts:
                facts["term"] = lexicon.sided(facts["term"], facts["side"]) or facts["term"]
            if own := lexicon.side(facts["term"]):
                implied.setdefault(own, []).append(j)
        for name, value in facts.items():
            stated.setdefault(name, {}).setdefault(value, []).append(j)
    with_sides = _with_sides(items, lexicon) if "term" in stated else items
    for name, columns in stated.items():
        truth = _truth(with_sides, name, list(columns), lexicon)
        # A text states each fact once at most, so that no column stands twice here.
        place = [j for js in columns.values() for j in js]
        each = np.repeat(truth, [len(js) for js in columns.values()], axis=1)
        false[:, place] |= each == NEGATIVE
        unknown[:, place] |= each == IGNORED
    if implied:
        truth = _truth(with_sides, "side", list(implied), lexicon)
        for column, places in enumerate(implied.values()):
            false[:, places] |= truth[:, column, None] == NEGATIVE
    truth = np.where(false, NEGATIVE, np.where(unknown, IGNORED, POSITIVE)).astype(np.int8)
    readings: dict[str, list[int]] = {}
    for j, text in enumerate(texts):
        readings.setdefault(text.wording, []).append(j)
    for alike in readings.values():
        if len(alike) > 1:
            truth[:, alike] = truth[:, alike].max(1, keepdims=True)  # NEGATIVE < IGNORED < POSITIVE
    return truth


def _with_sides(items: Sequence[Facts], lexicon: Lexicon) -> list[Facts]:
    """Regions with what term and side say of one another: kidney, left -> kidney, left kidney; left kidney -> left."""
    made: dict[tuple[tuple[str, ...] | None, tuple[str, ...] | None], dict[str, tuple[str, ...]]] = {}
    out: list[Facts] = []
    for facts in items:
        key = facts.get("term"), facts.get("side")
        if key not in made:
            made[key] = _side_facts(*key, lexicon)
        out.append({**facts, **made[key]} if made[key] else facts)
    return out


def _side_facts(
    terms: tuple[str, ...] | None, sides: tuple[str, ...] | None, lexicon: Lexicon
) -> dict[str, tuple[str, ...]]:
    if not terms:
        return {}
    if own := lexicon.side(terms[0]):
        return {"side": (own,)}
    sided = lexicon.sided(terms[0], sides[0]) if sides else None
    return {"term": (*terms, sided)} if sided else {}


def _truth(items: Sequence[Facts], name: str, values: Sequence[str], lexicon: Lexicon) -> np.ndarray:
    """int8 (len(items), len(values)): whether each value of a fact is true of each item, found once for equal items."""
    rows: dict[tuple[tuple[str, ...] | None, ...], int] = {}
    keys = (name, "absent") if name == "present" else (name,)
    index = [rows.setdefault(tuple(facts.get(key) for key in keys), len(rows)) for facts in items]
    column = {value: j for j, value in enumerate(values)}
    above = lexicon.wholes if name == "anatomy" else lexicon.ancestors
    ups = {value: above(value) for value in values}
    below: dict[str, list[int]] = {}
    for value, up in ups.items():
        for term in up:
            below.setdefault(term, []).append(column[value])
    table = np.full((len(rows), len(values)), IGNORED, np.int8)
    for (known, *rest), row in rows.items():
        line = table[row]
        if name == "present":
            _presence(line, known or (), rest[0] or (), column, below, lexicon)
        elif known is not None:
            line[:] = NEGATIVE
            for own in known:
                line[[column[term] for term in above(own) if term in column] + below.get(own, [])] = IGNORED
            line[[column[own] for own in known if own in column]] = POSITIVE
    return table[index]


def _presence(
    line: np.ndarray,
    present: Sequence[str],
    absent: Sequence[str],
    column: Mapping[str, int],
    below: Mapping[str, Sequence[int]],
    lexicon: Lexicon,
) -> None:
    """What shows a left kidney shows a kidney; what shows no kidney shows no left one; all else is unknown."""
    shown = set(present).union(*map(lexicon.ancestors, present))
    for term in set(absent) - shown:
        line[list(below.get(term, ()))] = NEGATIVE
        if term in column:
            line[column[term]] = NEGATIVE
    line[[column[term] for term in shown if term in column]] = POSITIVE


def _draw_attribute(known: Mapping[str, set[str]], sided: bool, rng: np.random.Generator) -> tuple[str, str] | None:
    """One attribute that some region of a term has, each kind of fact with the same chance; None where there is none."""
    names = sorted(name for name in known if not (sided and name == "side"))  # such a term says its side itself
    if not names:
        return None
    name = names[int(rng.integers(len(names)))]
    return name, sorted(known[name])[int(rng.integers(len(known[name])))]


def _word_region(
    term: str, fact: tuple[str, str] | None, lexicon: Lexicon, sampling: TextSampling, rng: np.random.Generator
) -> str:
    if sampling.bare:
        return term
    name = _name(term, lexicon, sampling, rng)
    wording = fill_template(sampling.region_templates[int(rng.integers(len(sampling.region_templates)))], name)
    if fact is not None:
        wording += _STATED[fact[0]](fact[1])
    description = lexicon.description(term)
    if description and rng.random() < sampling.descriptions:
        wording += f": {description}"
    return wording


def _name(term: str, lexicon: Lexicon, sampling: TextSampling, rng: np.random.Generator) -> str:
    names = lexicon.names(term)
    if len(names) > 1 and rng.random() < sampling.synonyms:
        return names[1 + int(rng.integers(len(names) - 1))]
    return term


def _says_more(name: str) -> bool:
    return name in ("anatomy", "present") or name.startswith("label.")


def fill_template(template: str, name: str, **others: str | None) -> str:
    """A template with its {name}, and whatever else it has in braces; "a {name}" becomes "an {name}" where it should."""
    if _article(name) == "an":
        template = _ARTICLE.sub(r"\1n ", template)
    return template.format(name=name, **others)


def _article(name: str) -> str:
    vowel = name[:1].lower() in ("a", "e", "i", "o", "u") and not _CONSONANT.match(name)
    if name[:1].isupper() and name[1:2] and not name[1:2].islower():  # initials
        vowel = bool(_SPELLED_VOWEL.match(name))
    return "an" if vowel else "a"
