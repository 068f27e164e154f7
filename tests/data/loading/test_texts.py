"""Texts: what is drawn, and of which items they are true."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpclip.data.lexicon import Lexicon, Term
from medpclip.data.loading.facts import image_facts, look, region_facts
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.regions import RegionTable
from medpclip.data.loading.texts import (
    IGNORED,
    NEGATIVE,
    POSITIVE,
    Facts,
    Text,
    TextSampling,
    draw_image_text,
    draw_region_text,
    draw_region_texts,
    known_of_regions,
    targets,
)
from medpclip.data.schema import Region, Sample

LEXICON = Lexicon(
    {
        "lung": Term("structure", "An organ of breathing."),
        "left lung": Term("structure", "The one on the left.", parents=["lung"]),
        "right lung": Term("structure", "The one on the right.", synonyms=["dexter lung"], parents=["lung"]),
        "rib": Term("structure", "A bone."),
    }
)


def facts(term: str, **more: str) -> dict[str, tuple[str, ...]]:
    return {"term": (term,)} | {key: (value,) for key, value in more.items()}


def text(term: str, **more: str) -> Text:
    return stating({"term": term, **more})


def stating(stated: dict[str, str]) -> Text:
    """A text with a wording of its own."""
    facts = tuple(sorted(stated.items()))
    return Text(facts, repr(facts))


def test_three_values() -> None:
    items = [facts("left lung", place="left"), facts("left lung"), facts("right lung", place="left"), facts("lung")]
    texts = [
        text("left lung"),
        text("left lung", place="left"),
        text("left lung", place="right"),
        text("lung"),
        text("rib"),
    ]
    P, N, X = POSITIVE, NEGATIVE, IGNORED
    expected = [
        [P, P, N, X, N],  # its ancestor is true but says less: ignored
        [P, X, X, X, N],  # its place is unknown
        [N, N, N, X, N],
        [X, X, X, P, N],  # may be the left one
    ]
    assert targets(items, texts, LEXICON).tolist() == expected


def test_a_general_place_is_true_of_a_special_one_and_relatives_are_never_false() -> None:
    corner = {"term": ("rib",), "place": ("upper left", "upper", "left"), "modality": ("left lung",)}
    texts = [text("rib", place=place) for place in ("left", "upper left", "centre")] + [text("rib", modality="lung")]
    assert targets([corner], texts, LEXICON).tolist() == [[POSITIVE, POSITIVE, NEGATIVE, IGNORED]]


@pytest.mark.parametrize("template", ["a", "{name} on {modality}", "{name", "{}"])
def test_templates_that_cannot_be_filled_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="must have"):
        TextSampling(region_templates=[template])


def test_every_region_has_its_text_and_the_draw_ignores_order() -> None:
    items = [facts("left lung", size="large"), facts("rib", place="upper left"), facts("rib"), facts("right lung")]
    sampling = TextSampling(attributes=1.0)
    texts = draw_region_texts(known_of_regions(items), LEXICON, sampling, np.random.default_rng(3))
    assert texts == draw_region_texts(known_of_regions(items[::-1]), LEXICON, sampling, np.random.default_rng(3))
    assert (targets(items, texts, LEXICON) == POSITIVE).any(1).all()
    assert len({t.wording for t in texts}) == len(texts)
    stated = [t for t in texts if len(t.facts) == 2]
    assert stated and all(
        any(dict(t.facts)[k] in t.wording for k in ("size", "place") if k in dict(t.facts)) for t in stated
    )


def test_the_budget_holds() -> None:
    items = [facts(f"term {i}") for i in range(50)]
    texts = draw_region_texts(
        known_of_regions(items), LEXICON, TextSampling(budget=20, attributes=1.0), np.random.default_rng(0)
    )
    assert len(texts) == 20


def test_equal_captions_are_one_text_true_of_all_their_images() -> None:
    items = [{"modality": ("CT",), "caption": ("a scan",)}, {"modality": ("CT",), "caption": ("a scan", "another")},
             {"modality": ("MRI",)}]  # fmt: skip
    texts = [Text((("caption", "a scan"),), "a scan"), Text((("modality", "CT"),), "CT")]
    expected = [[POSITIVE, POSITIVE], [POSITIVE, POSITIVE], [IGNORED, NEGATIVE]]
    assert targets(items, texts, LEXICON).tolist() == expected
    assert draw_image_text(items[0], LEXICON, TextSampling(captions=1.0), np.random.default_rng(0)) == texts[0]


# Sides. A small lexicon of its own: the left of a pair, a part of it, and what is left by name only.
SIDES = Lexicon(
    {
        "organ": Term("anatomy", ""),
        "kidney": Term("anatomy", "", parents=["organ"], part_of=["belly"]),
        "left kidney": Term("anatomy", "", parents=["kidney"], side="left"),
        "right kidney": Term("anatomy", "", parents=["kidney"], side="right"),
        "rib": Term("anatomy", ""),
        "left rib": Term("anatomy", "", parents=["rib"], side="left"),
        "right rib": Term("anatomy", "", parents=["rib"], side="right"),
        "left rib 3": Term("anatomy", "", parents=["left rib"], side="left"),
        "right rib 3": Term("anatomy", "", parents=["right rib"], side="right"),
        "left ventricle": Term("anatomy", "", parents=["organ"]),
        "belly": Term("anatomy", ""),
        "body": Term("anatomy", ""),
    }
)


def test_terms_and_sides() -> None:
    P, N, X = POSITIVE, NEGATIVE, IGNORED
    items = [
        facts("left kidney"), facts("left kidney", side="right"), facts("kidney", side="left"),
        facts("kidney", side="right"), facts("kidney"), facts("rib", side="right"), facts("right rib 3"),
    ]  # fmt: skip
    texts = [
        text("left kidney"), text("kidney", side="left"), text("kidney"), text("kidney", side="right"),
        text("left rib 3"), text("rib", side="right"), text("organ", side="left"),
    ]  # fmt: skip
    assert targets(items, texts, SIDES).tolist() == [
        [P, P, X, N, N, N, X],
        [P, P, X, N, N, N, X],  # the term's own side goes before what was read from the picture
        [P, P, P, N, N, N, X],
        [N, N, P, P, N, N, N],
        [X, X, P, X, N, N, X],  # may be either
        [N, N, N, N, N, P, N],  # a rib on the right is no left third rib
        [N, N, N, N, N, X, N],  # a right rib it is, but which one is not said
    ]


def reference(item: Facts, text: Text, lexicon: Lexicon) -> int:
    """Truth by the rules, one pair at a time: "true", "false" or unknown of each statement, then of all."""

    def up(term: str, parts: bool = False) -> set[str]:
        entry = lexicon.terms.get(term)
        above = [] if entry is None else [*entry.parents, *(entry.part_of if parts else [])]
        return {term}.union(*(up(other, parts) for other in above)) if above else {term}

    def statement(name: str, value: str, known: tuple[str, ...]) -> int:
        if value in known:
            return POSITIVE
        near = [value in up(own, name == "anatomy") or own in up(value, name == "anatomy") for own in known]
        return IGNORED if any(near) else NEGATIVE

    own = dict(item)
    stated = dict(text.facts)
    if "term" in own:
        term = own["term"][0]
        entry = lexicon.terms.get(term)
        if entry is not None and entry.side:
            own["side"] = (entry.side,)
        elif "side" in own and f"{own['side'][0]} {term}" in lexicon.terms:
            sided = f"{own['side'][0]} {term}"
            if lexicon.terms[sided].side:
                own["term"] = (term, sided)
    results = []
    if "term" in stated:
        sided = f"{stated.get('side')} {stated['term']}"
        if sided in lexicon.terms and lexicon.terms[sided].side:
            stated["term"] = sided
        entry = lexicon.terms.get(stated["term"])
        if entry is not None and entry.side and own.get("side", (entry.side,)) != (entry.side,):
            results.append(NEGATIVE)
    for name, value in stated.items():
        if name == "present":
            shown = set().union(*map(up, own.get("present", ())))
            absent = set(own.get("absent", ())) - shown
            results.append(POSITIVE if value in shown else NEGATIVE if up(value) & absent else IGNORED)
        else:
            results.append(statement(name, value, own[name]) if name in own else IGNORED)
    return NEGATIVE if NEGATIVE in results else IGNORED if IGNORED in results else POSITIVE


TERMS = st.sampled_from([*SIDES.terms, "stone"])
REGION = st.fixed_dictionaries(
    {"term": TERMS.map(lambda v: (v,))},
    optional={
        "side": st.sampled_from([("left",), ("right",)]),
        "place": st.sampled_from([("upper left", "upper", "left"), ("left",), ("centre",)]),
        "number": st.sampled_from([("only one",), ("one of two",)]),
    },
)
REGION_TEXT = st.fixed_dictionaries(
    {"term": TERMS},
    optional={
        "side": st.sampled_from(["left", "right"]),
        "place": st.sampled_from(["upper left", "left", "centre"]),
        "number": st.sampled_from(["only one", "one of two"]),
    },
)
SOME = st.lists(TERMS, max_size=3, unique=True).map(tuple)
IMAGE = st.fixed_dictionaries(
    {"modality": st.sampled_from([("CT",), ("MRI",)])},
    optional={"anatomy": TERMS.map(lambda v: (v,)), "label.finding": SOME, "present": SOME, "absent": SOME},
)
IMAGE_TEXT = st.fixed_dictionaries(
    {"modality": st.sampled_from(["CT", "MRI"])},
    optional={"anatomy": TERMS, "label.finding": TERMS, "present": TERMS},
)


@pytest.mark.parametrize(("item", "stated"), [(REGION, REGION_TEXT), (IMAGE, IMAGE_TEXT)], ids=["regions", "images"])
def test_targets_are_those_of_the_rules_pair_by_pair(item: Any, stated: Any) -> None:
    @given(st.lists(item, max_size=6), st.lists(stated, max_size=6))
    def check(items: list[Facts], drawn: list[dict[str, str]]) -> None:
        texts = [stating(facts) for facts in drawn]
        expected = [[reference(item, text, SIDES) for text in texts] for item in items]
        found = targets(items, texts, SIDES)
        assert found.shape == (len(items), len(texts)) and found.dtype == np.int8
        assert found.tolist() == expected

    check()


def test_what_an_image_shows() -> None:
    items: list[Facts] = [
        {"present": ("left kidney",), "absent": ("rib",)},
        {"present": (), "absent": ("kidney",)},
        {"present": ("left kidney",), "absent": ("kidney",)},  # kidneys were annotated, the left one under its name
        {"present": ()},
    ]
    texts = [stating({"present": term}) for term in ("kidney", "left kidney", "right kidney", "rib", "left rib")]
    P, N, X = POSITIVE, NEGATIVE, IGNORED
    expected = [[P, P, X, N, N], [N, N, N, X, X], [P, P, X, X, X], [X, X, X, X, X]]
    assert targets(items, texts, SIDES).tolist() == expected


def test_the_anatomy_of_a_part_is_not_false_of_the_whole() -> None:
    items = [{"anatomy": ("belly",)}, {"anatomy": ("left kidney",)}, {"anatomy": ("rib",)}]
    texts = [stating({"anatomy": value}) for value in ("left kidney", "belly", "body")]
    P, N, X = POSITIVE, NEGATIVE, IGNORED
    assert targets(items, texts, SIDES).tolist() == [[X, P, N], [P, X, N], [N, N, N]]


def test_all_labels_of_a_list_hold_and_an_empty_one_holds_none() -> None:
    items = [{"label.finding": ("effusion", "mass")}, {"label.finding": ()}, {}]
    texts = [stating({"label.finding": value}) for value in ("mass", "effusion", "nodule")]
    P, N, X = POSITIVE, NEGATIVE, IGNORED
    assert targets(items, texts, LEXICON).tolist() == [[P, P, N], [N, N, N], [X, X, X]]


def test_a_wording_of_several_readings_is_true_where_any_of_them_is() -> None:
    items = [{"anatomy": ("chest",), "present": ("left kidney",)}, {"anatomy": ("left kidney",)}, {"anatomy": ("rib",)},
             {"anatomy": ("rib",), "absent": ("kidney",)}]  # fmt: skip
    texts = [Text(((name, "left kidney"),), "left kidney") for name in ("anatomy", "present")]
    P, N, X = POSITIVE, NEGATIVE, IGNORED
    assert targets(items, texts, SIDES).tolist() == [[P, P], [P, P], [X, X], [N, N]]


def test_bare_texts_are_names_and_nothing_else() -> None:
    bare = TextSampling(bare=True, synonyms=1.0, descriptions=1.0, attributes=1.0, captions=1.0)
    items = [facts("right lung", place="left", size="large"), facts("rib", modality="CT")]
    rng = np.random.default_rng(2)
    drawn = draw_region_texts(known_of_regions(items), LEXICON, bare, rng)
    assert drawn == [Text((("term", term),), term) for term in ("rib", "right lung")]
    assert [draw_region_text(item, LEXICON, bare, rng).wording for item in items] == ["right lung", "rib"]
    image = {"modality": ("CT",), "anatomy": ("chest",), "label.finding": ("mass", "effusion"), "label.none": (),
             "present": ("right lung",), "absent": ("rib",), "caption": ("a scan",)}  # fmt: skip
    texts = {draw_image_text(image, LEXICON, bare, rng) for _ in range(200)}
    assert {text.wording for text in texts} == {"CT", "chest", "mass", "effusion", "right lung"}
    assert all(text.facts[0][1] == text.wording for text in texts)
    assert (targets([image], sorted(texts), LEXICON) == POSITIVE).all()
    assert draw_image_text({"modality": ("MRI",), "caption": ("a scan",)}, LEXICON, bare, rng).wording == "MRI"


def test_a_regions_own_text_is_true_of_it() -> None:
    item = {"term": ("right lung",), "place": ("upper left", "upper", "left"), "rank": ("between",)}
    rng = np.random.default_rng(0)
    drawn = [draw_region_text(item, LEXICON, TextSampling(), rng) for _ in range(400)]
    assert (targets([item], drawn, LEXICON) == POSITIVE).all()
    with_place = [text for text in drawn if len(text.facts) == 2]
    assert {text.facts[0] for text in with_place} == {("place", "upper left")}
    assert 0.2 < len(with_place) / len(drawn) < 0.4  # `attributes` is 0.3
    assert any("dexter lung" in text.wording for text in drawn) and any("right lung" in text.wording for text in drawn)


def known(sample: Sample) -> tuple[Facts, Facts]:
    """Facts of the image and of its one region."""
    facts = [sample.to_json()]
    table = RegionTable.read(facts, [Window.whole(sample.width, sample.height)])
    shown = look(table)
    return image_facts(facts, table, shown)[0], region_facts(facts, table, shown, np.arange(1))[0]


def test_image_texts_state_what_holds() -> None:
    labels = {"finding": ["effusion", "mass"], "none": []}
    region = Region(0, "left lung", bbox=[10, 10, 30, 20])
    sample = Sample("k", "s", "train", "g", "CT", 99, 99, "chest", labels=labels, regions=[region])
    facts, rng = known(sample)[0], np.random.default_rng(1)
    texts = [draw_image_text(facts, LEXICON, TextSampling(synonyms=0), rng) for _ in range(300)]
    stated = {fact for text in texts for fact in text.facts}
    assert stated == {("modality", "CT"), ("anatomy", "chest"), ("present", "left lung"),
                      ("label.finding", "effusion"), ("label.finding", "mass")}  # fmt: skip
    assert (targets([facts], texts, LEXICON) == POSITIVE).all()
    wordings = " | ".join(text.wording for text in texts)
    assert " of the chest" in wordings and "showing a left lung" in wordings and ", mass" in wordings


def test_left_of_the_image_and_the_patients_left_are_worded_apart() -> None:
    region = Region(0, "lung", bbox=[60, 40, 30, 20])
    sample = Sample("k", "s", "train", "g", "CT", 100, 100, regions=[region], annotated_terms=["lung"],
                    extra={"laterality": "radiological", "midline": True})  # fmt: skip
    item = known(sample)[1]
    assert item["side"] == ("left",) and item["place"] == ("right",)
    found: dict[str, set[str]] = {}
    for seed in range(80):
        for text in draw_region_texts(
            known_of_regions([item]), LEXICON, TextSampling(attributes=1.0), np.random.default_rng(seed)
        ):
            for name, _ in text.facts:
                found.setdefault(name, set()).add(text.wording)
            assert targets([item], [text], LEXICON).tolist() == [[POSITIVE]]
    assert set(found) == {"term", "modality", "place", "size", "side", "number"}
    assert all(w.endswith(" on the patient's left side") or "side: " in w for w in found["side"])
    assert all("in the right part of the image" in w and "patient" not in w for w in found["place"])
    assert all("the only one of its kind in the image" in w for w in found["number"])


def test_a_side_is_not_stated_of_a_term_that_says_it() -> None:
    lexicon = Lexicon.load()
    items = [facts("left kidney", side="left", modality="CT"), facts("kidney", side="left", modality="CT")]
    stated = set()
    for seed in range(40):
        texts = draw_region_texts(
            known_of_regions(items), lexicon, TextSampling(attributes=1.0), np.random.default_rng(seed)
        )
        stated |= {t.facts for t in texts if len(t.facts) == 2}
    assert (("side", "left"), ("term", "kidney")) in stated and (
        ("side", "left"),
        ("term", "left kidney"),
    ) not in stated


@pytest.mark.parametrize(
    ("term", "wording"),
    [
        ("aorta", "an aorta"), ("lung", "a lung"), ("MRI", "an MRI"), ("CT", "a CT"), ("X-ray", "an X-ray"),
        ("uterus", "a uterus"), ("ulcer", "an ulcer"), ("ureter", "a ureter"), ("ultrasound", "an ultrasound"),
        ("CXR", "a CXR"), ("H&E histology", "an H&E histology"), ("FLAIR", "a FLAIR"), ("T cell", "a T cell"),
        ("urinary bladder", "a urinary bladder"), ("Achilles tendon", "an Achilles tendon"), ("eye", "an eye"),
    ],
)  # fmt: skip
def test_articles(term: str, wording: str) -> None:
    sampling = TextSampling(region_templates=["this is a {name}"], synonyms=0, descriptions=0, attributes=0)
    [text] = draw_region_texts(known_of_regions([{"term": (term,)}]), LEXICON, sampling, np.random.default_rng(0))
    assert text.wording == f"this is {wording}"
