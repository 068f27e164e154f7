"""Texts: what is drawn, and of which items they are true."""

import numpy as np
import pytest

from medpclip.data.lexicon import Lexicon, Term
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.texts import (
    IGNORED,
    NEGATIVE,
    POSITIVE,
    Text,
    TextSampling,
    draw_image_texts,
    draw_region_texts,
    region_facts,
    targets,
)
from medpclip.data.schema import Region, Sample
from medpclip.errors import MedpclipError

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
    return Text(tuple(sorted({"term": term, **more}.items())), "")


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
    texts = draw_region_texts(items, LEXICON, sampling, np.random.default_rng(3))
    assert texts == draw_region_texts(items[::-1], LEXICON, sampling, np.random.default_rng(3))
    assert (targets(items, texts, LEXICON) == POSITIVE).any(1).all()
    assert len({t.wording for t in texts}) == len(texts)
    stated = [t for t in texts if len(t.facts) == 2]
    assert stated and all(
        any(dict(t.facts)[k] in t.wording for k in ("size", "place") if k in dict(t.facts)) for t in stated
    )


def test_the_budget_holds() -> None:
    items = [facts(f"term {i}") for i in range(50)]
    texts = draw_region_texts(items, LEXICON, TextSampling(budget=20, attributes=1.0), np.random.default_rng(0))
    assert len(texts) == 20


def test_equal_captions_are_one_text_true_of_all_their_images() -> None:
    items = [{"modality": ("CT",), "caption": ("a scan",)}, {"modality": ("CT",), "caption": ("a scan", "another")},
             {"modality": ("MRI",)}]  # fmt: skip
    texts = [Text((("caption", "a scan"),), "a scan"), Text((("modality", "CT"),), "CT")]
    expected = [[POSITIVE, POSITIVE], [POSITIVE, POSITIVE], [IGNORED, NEGATIVE]]
    assert targets(items, texts, LEXICON).tolist() == expected
    drawn = draw_image_texts(items[:1] * 5, LEXICON, TextSampling(captions=1.0), np.random.default_rng(0))
    assert drawn == [texts[0]]


def test_facts_of_a_region_are_those_of_the_window_it_is_seen_in() -> None:
    sample = Sample("k", "s", "train", "g", "CT", 200, 100)
    region = Region(0, "rib", bbox=[10, 10, 30, 20])
    whole = region_facts(region, sample, Window.whole(200, 100))
    assert whole["place"] == ("upper left", "upper", "left") and whole["modality"] == ("CT",)
    # Seen in a window to its left, it lies in the middle, and large.
    close = region_facts(region, sample, Window(0, 0, 50))
    assert close["place"] == ("centre",) and close["size"] == ("large",)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"a": Term("x", "d", parents=["b"])}, "unknown parent 'b'"),
        ({"a": Term("x", "d", parents=["b"]), "b": Term("x", "d", parents=["a"])}, "its own ancestor"),
        ({"a": Term("x", "d", synonyms=["c"]), "b": Term("x", "d", synonyms=["C"])}, "means both 'a' and 'b'"),
    ],
)
def test_a_lexicon_that_contradicts_itself_is_refused(terms: dict[str, Term], message: str) -> None:
    with pytest.raises(MedpclipError, match=message):
        Lexicon(terms)


def test_the_shipped_lexicon_is_sound() -> None:
    assert len(Lexicon.load().terms) > 20
