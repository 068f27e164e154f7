import numpy as np
import pytest
from scipy.special import log_softmax

from medpclip.data.lexicon import Lexicon
from medpclip.data.lexicon.lexicon import Term
from medpclip.evaluation.sections.candidates import askable, related_classes, related_notes, without_related

CLASSES = ["CT", "blood smear microscopy", "fluorescence microscopy", "microscopy"]


@pytest.fixture
def related() -> np.ndarray:
    return related_classes(CLASSES)


def test_kinds_of_one_another_are_related_siblings_and_strangers_are_not(related):
    expected = np.zeros((4, 4), bool)
    for kind in (1, 2):
        expected[kind, 3] = expected[3, kind] = True
    assert (related == expected).all()
    own = Lexicon({"a": Term("x", ""), "b": Term("x", "", parents=["a"]), "c": Term("x", "", parents=["b"])})
    assert related_classes(["c", "no term", "a"], own).tolist() == [
        [False, False, True],
        [False, False, False],
        [True, False, False],
    ]


def test_masking_afterwards_is_masking_before_the_softmax(related):
    logits = np.random.default_rng(0).normal(0, 9, (20, 4))
    true = np.arange(20) % 4
    found = without_related(log_softmax(logits, axis=1).astype(np.float32), true, related)
    before = log_softmax(np.where(related[true], -np.inf, logits), axis=1)
    np.testing.assert_allclose(found, before, rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32 and np.isneginf(found[true == 3][:, 1:3]).all()


def test_rows_that_were_not_asked_stay_so_and_unrelated_values_are_untouched(related):
    values = np.full((2, 4), np.nan, np.float32)
    assert np.isnan(without_related(values, np.array([0, 0]), related)).all()
    assert np.isnan(without_related(values, np.array([3, 3]), related)).any(axis=1).all()
    plain = np.zeros((2, 2), np.float32)
    assert without_related(plain, np.array([0, 1]), np.zeros((2, 2), bool)) is plain


def test_a_class_whose_candidates_are_all_related_cannot_be_asked(related):
    assert askable(related).all()
    alone = related_classes(CLASSES[1:])
    assert askable(alone).tolist() == [True, True, False]
    assert related_notes("what", "images", CLASSES[1:], [0, 2, 2], alone) == [
        "what: for 1 images of 'blood smear microscopy' the candidates 'microscopy', since one is a kind of the other",
        "what: for 2 images of 'microscopy' the candidates 'blood smear microscopy', 'fluorescence microscopy', since one "
        "is a kind of the other; no other candidate is left, so they are not measured",
    ]
