"""Texts: what can be said of images and regions, in words, and of which of them it is true.

A text states *facts* (term: red blood cell, modality: microscopy, place: upper left) and has a *wording*. Wordings are
made at load time, from the lexicon and templates, so that they can change without rebuilding shards. A batch draws each
text once, however many regions it fits, and `targets` says of every item and text whether the text is true, false or
unknown of it. Our design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter

import numpy as np

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.geometry import Window
from medpclip.data.schema import Region, Sample

POSITIVE, NEGATIVE, IGNORED = 1, -1, 0

# What is known of an image or region: fact -> all values that hold. A fact that is missing is unknown.
Facts = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
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
        attributes: chance, per term, of a second text that also states one attribute (place, size, modality).
        captions: chance that an image's caption is taken, where it has one, instead of a template.
        region_templates, image_templates: with {name}, which stands for all that is stated.
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


def image_facts(sample: Sample) -> dict[str, tuple[str, ...]]:
    """What is known of an image: modality, labels, captions."""
    facts: dict[str, tuple[str, ...]] = {"modality": (sample.modality,)}
    for name, value in sample.labels.items():
        facts[f"label.{name}"] = (str(value),)
    if sample.captions:
        facts["caption"] = tuple(sample.captions)
    return facts


def region_facts(region: Region, sample: Sample, window: Window) -> dict[str, tuple[str, ...]]:
    """What is known of a region: its term, the modality, and what its box says in the window that the model sees."""
    facts: dict[str, tuple[str, ...]] = {"term": (region.category,), "modality": (sample.modality,)}
    if region.bbox is not None:
        x1, y1, x2, y2 = (float(v) for v in window.unit_box(region.bbox))
        row, column = _third((y1 + y2) / 2, "upper", "lower"), _third((x1 + x2) / 2, "left", "right")
        # Most specific first, which is what gets stated; "left" stays true of what is at the upper left.
        facts["place"] = (f"{row} {column}", row, column) if row and column else (row or column or "centre",)
        area = (x2 - x1) * (y2 - y1)
        facts["size"] = ("large" if area > 0.15 else "small" if area < 0.01 else "middle-sized",)
    return facts


def draw_region_texts(
    items: Sequence[Facts], lexicon: Lexicon, sampling: TextSampling, rng: np.random.Generator
) -> list[Text]:
    """The region texts of a global batch: one per term, some with an attribute more.

    The draw depends on the *set* of facts only, not on their order, so ranks that share the list and the seed agree.
    """
    by_term: dict[str, list[Facts]] = {}
    for facts in items:
        by_term.setdefault(facts["term"][0], []).append(facts)
    terms = sorted(by_term)
    if len(terms) > sampling.budget:
        terms = sorted(rng.choice(terms, sampling.budget, replace=False).tolist())
    texts = [Text((("term", term),), _word_region(term, {}, lexicon, sampling, rng)) for term in terms]
    for term in terms:
        if len(texts) >= sampling.budget:
            break
        if rng.random() < sampling.attributes:
            stated = sorted({(k, v[0]) for facts in by_term[term] for k, v in facts.items() if k != "term"})
            if stated:
                fact = stated[int(rng.integers(len(stated)))]
                wording = _word_region(term, dict([fact]), lexicon, sampling, rng)
                texts.append(Text(tuple(sorted([("term", term), fact])), wording))
    return list(dict.fromkeys(texts))


def draw_image_texts(
    items: Sequence[Facts], lexicon: Lexicon, sampling: TextSampling, rng: np.random.Generator
) -> list[Text]:
    """One text per image, equal ones merged: a caption, or a template over modality and one label."""
    texts = []
    for facts in items:
        if "caption" in facts and rng.random() < sampling.captions:
            caption = facts["caption"][int(rng.integers(len(facts["caption"])))]
            texts.append(Text((("caption", caption),), caption))
            continue
        stated = {"modality": facts["modality"][0]}
        labels = sorted(name for name in facts if name.startswith("label."))
        if labels and rng.random() < 0.7:
            label = labels[int(rng.integers(len(labels)))]
            stated[label] = facts[label][0]
        template = sampling.image_templates[int(rng.integers(len(sampling.image_templates)))]
        name = ", ".join(_name(value, lexicon, sampling, rng) for value in stated.values())
        texts.append(Text(tuple(sorted(stated.items())), template.format(name=name)))
    return list(dict.fromkeys(texts))


def targets(items: Sequence[Facts], texts: Sequence[Text], lexicon: Lexicon) -> np.ndarray:
    """int8 (len(items), len(texts)): POSITIVE, NEGATIVE or IGNORED.

    Positive: every stated fact is true of the item. Negative: one is false. Ignored: none is false, but one is unknown
    of the item, or names an ancestor or descendant (in the lexicon) of what holds.
    """
    false = np.zeros((len(items), len(texts)), bool)
    unknown = np.zeros_like(false)
    stated: dict[tuple[str, str], list[int]] = {}
    for j, text in enumerate(texts):
        for fact in text.facts:
            stated.setdefault(fact, []).append(j)
    for (name, value), columns in stated.items():
        truth = np.array([_truth(facts.get(name), name, value, lexicon) for facts in items], np.int8)
        false[:, columns] |= (truth == NEGATIVE)[:, None]
        unknown[:, columns] |= (truth == IGNORED)[:, None]
    return np.where(false, NEGATIVE, np.where(unknown, IGNORED, POSITIVE)).astype(np.int8)


def _truth(known: tuple[str, ...] | None, name: str, value: str, lexicon: Lexicon) -> int:
    if known is None:
        return IGNORED
    if value in known:
        return POSITIVE
    if any(lexicon.related(value, own) for own in known):
        return IGNORED
    return NEGATIVE


def _word_region(
    term: str, attribute: Mapping[str, str], lexicon: Lexicon, sampling: TextSampling, rng: np.random.Generator
) -> str:
    name = _name(term, lexicon, sampling, rng)
    if "size" in attribute:
        name = f"{attribute['size']} {name}"
    wording = sampling.region_templates[int(rng.integers(len(sampling.region_templates)))].format(name=name)
    if "place" in attribute:
        wording += f" in the {attribute['place']} of the image"
    if "modality" in attribute:
        wording += f" on {attribute['modality']}"
    description = lexicon.description(term)
    if description and rng.random() < sampling.descriptions:
        wording += f": {description}"
    return wording


def _name(term: str, lexicon: Lexicon, sampling: TextSampling, rng: np.random.Generator) -> str:
    names = lexicon.names(term)
    if len(names) > 1 and rng.random() < sampling.synonyms:
        return names[1 + int(rng.integers(len(names) - 1))]
    return term


def _third(position: float, low: str, high: str) -> str:
    return low if position < 0.4 else high if position > 0.6 else ""
