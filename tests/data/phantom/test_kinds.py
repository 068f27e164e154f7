"""The table of kinds, and what the pairs share: measured on finished images, not on the drawing code."""

import io
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from medpclip.data.lexicon import Lexicon
from medpclip.data.phantom.kinds import CATEGORIES, KINDS, LOOKS, PAIRS, kinds_of
from medpclip.data.phantom.scene import draw_sample

_ALLOWED = {"place": {"zone"}, "texture": {"texture", "period"}, "shape": {"shape"}}
_FLAT = [(how, *pair) for how, pairs in PAIRS.items() for pair in pairs]


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, np.ndarray]]:
    """Per category of the pairs: grey histograms, and box and area figures, of 700 training images."""
    rows: dict[str, list[tuple[np.ndarray, list[float]]]] = {}
    for index in range(700):
        sample, data = draw_sample(11, "train", index, index)
        with Image.open(io.BytesIO(data)) as picture:
            grey = np.asarray(picture.convert("L"))
        side = max(sample.width, sample.height)
        for region in sample.regions:
            mask, (x, y, w, h) = region.mask(), region.bbox
            histogram = np.bincount(grey[mask] // 8, minlength=32) / mask.sum()
            figures = [
                max(w, h) / side,
                w / h,
                mask.sum() / side**2,
                (x + w / 2) / sample.width,
                (y + h / 2) / sample.height,
            ]
            rows.setdefault(region.category, []).append((histogram, figures))
    return {
        name: {"grey": np.mean([h for h, _ in found], axis=0), "figures": np.array([f for _, f in found])}
        for name, found in rows.items()
    }


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov distance over its critical value at 0.1 %: above 1, the samples differ."""
    at = np.concatenate([a, b])
    gap = np.abs((a[:, None] <= at).mean(axis=0) - (b[:, None] <= at).mean(axis=0)).max()
    return gap / (1.95 * np.sqrt(1 / len(a) + 1 / len(b)))


def test_pairs_differ_in_one_property_only() -> None:
    by_name = {kind.category: kind for kind in KINDS}
    for how, first, second in _FLAT:
        differ = {
            f.name
            for f in fields(by_name[first])
            if getattr(by_name[first], f.name) != getattr(by_name[second], f.name)
        }
        assert differ - {"category"} and differ - {"category"} <= _ALLOWED[how], (first, second)


def test_enough_pairs_and_kinds() -> None:
    assert all(len(PAIRS[how]) >= 2 for how in ("place", "texture", "shape"))
    assert len(set(CATEGORIES)) == len(CATEGORIES) == 24
    assert all(4 <= len(kinds_of(look)) <= 6 for look in LOOKS)


@pytest.mark.parametrize(("how", "first", "second"), _FLAT)
def test_grey_levels_are_alike(how: str, first: str, second: str, measured: dict[str, dict[str, np.ndarray]]) -> None:
    gap = np.cumsum(measured[first]["grey"] - measured[second]["grey"])
    assert np.abs(gap).max() < 0.08


@pytest.mark.parametrize(("how", "first", "second"), _FLAT)
def test_boxes_and_areas_are_alike(
    how: str, first: str, second: str, measured: dict[str, dict[str, np.ndarray]]
) -> None:
    a, b = measured[first]["figures"], measured[second]["figures"]
    for column in range(3):  # longer side, aspect, area
        assert _distance(a[:, column], b[:, column]) < 1.0
    if how != "place":
        assert _distance(a[:, 3], b[:, 3]) < 1.0 and _distance(a[:, 4], b[:, 4]) < 1.0


@pytest.mark.parametrize(("first", "second"), PAIRS["place"])
def test_place_pairs_lie_apart(first: str, second: str, measured: dict[str, dict[str, np.ndarray]]) -> None:
    axis = 3 if "kidney" in first else 4
    a, b = measured[first]["figures"][:, axis], measured[second]["figures"][:, axis]
    low, high = (b, a) if "kidney" in first else (a, b)  # the patient's left is the picture's right
    assert low.max() < high.min()


def test_the_test_for_alikeness_finds_a_difference(measured: dict[str, dict[str, np.ndarray]]) -> None:
    big, small = measured["stellate gland"]["figures"], measured["fat vacuole"]["figures"]
    assert _distance(big[:, 0], small[:, 0]) > 1.0
    gap = np.cumsum(measured["stellate gland"]["grey"] - measured["fat vacuole"]["grey"])
    assert np.abs(gap).max() > 0.3


def test_every_term_is_in_the_lexicon() -> None:
    lexicon = Lexicon.load()
    for term in (*CATEGORIES, *LOOKS):
        assert lexicon.description(term), term
        assert len(lexicon.names(term)) >= 2, term
    for _, first, second in _FLAT:
        assert not lexicon.related(first, second)
        assert lexicon.ancestors(first) & lexicon.ancestors(second)
