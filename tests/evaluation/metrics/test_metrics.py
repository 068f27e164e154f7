import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from medpclip.evaluation.metrics.metrics import (
    ACCURACY,
    AUROC,
    AVERAGE_PRECISION,
    BALANCED_ACCURACY,
    MACRO_F1,
    MEAN_AUROC,
    MEAN_AVERAGE_PRECISION,
    SENSITIVITY,
    SPECIFICITY,
    Sums,
    auroc,
    average_precision,
    confusion_matrix,
    of_answers,
    of_binary,
    of_labels,
    of_ranking,
    value_of,
)


def same(a: float, b: float) -> bool:
    return math.isclose(a, b, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))


def values(metrics, cases: int) -> dict[str, float]:
    return {name: value_of(metric, cases) for name, metric in metrics.items()}


answered = st.integers(2, 6).flatmap(
    lambda c: st.tuples(
        st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=40)
    )
)
# Few different scores: ties are the rule. Now and then there is one kind of case only.
ranked = st.lists(st.tuples(st.booleans(), st.sampled_from([-1.5, 0.0, 0.25, 0.5, 2.0])), min_size=1, max_size=25)


@settings(max_examples=80, deadline=None)
@given(answered)
def test_answers_agree_with_scikit_learn(case):
    classes, pairs = case
    true, predicted = np.array(pairs).T
    found = values(of_answers(true, predicted, classes), len(true))
    assert same(found[ACCURACY], reference.accuracy_score(true, predicted))
    assert same(found[MACRO_F1], reference.f1_score(true, predicted, average="macro", zero_division=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are only predicted
        assert same(found[BALANCED_ACCURACY], reference.balanced_accuracy_score(true, predicted))
    expected = reference.confusion_matrix(true, predicted, labels=range(classes))
    assert (confusion_matrix(true, predicted, classes) == expected).all()


@settings(max_examples=150, deadline=None)
@given(ranked)
def test_ranked_metrics_agree_with_scikit_learn(case):
    positive, scores = np.array([p for p, _ in case]), np.array([s for _, s in case])
    found = values(of_binary(positive, scores, scores > 0.25), len(case))
    both = 0 < positive.sum() < len(case)
    assert same(found[AUROC], reference.roc_auc_score(positive, scores) if both else math.nan)
    has = positive.any()
    assert same(found[AVERAGE_PRECISION], reference.average_precision_score(positive, scores) if has else math.nan)
    said = scores > 0.25
    assert same(found[SENSITIVITY], reference.recall_score(positive, said) if has else math.nan)
    negative = reference.recall_score(~positive, ~said) if (~positive).any() else math.nan
    assert same(found[SPECIFICITY], negative)


@settings(max_examples=60, deadline=None)
@given(ranked)
def test_auroc_is_the_share_of_pairs_in_order_with_ties_counting_half(case):
    pairs = [(s > t) + 0.5 * (s == t) for p, s in case if p for q, t in case if not q]
    found = value_of(auroc(np.array([p for p, _ in case]), np.array([s for _, s in case])), len(case))
    assert same(found, float(np.mean(pairs)) if pairs else math.nan)


@settings(max_examples=60, deadline=None)
@given(ranked, st.integers(0, 100))
def test_a_weight_counts_as_so_many_cases(case, seed):
    positive, scores = np.array([p for p, _ in case]), np.array([s for _, s in case])
    predicted, true = (scores > 0).astype(int), positive.astype(int)
    weights = np.random.default_rng(seed).integers(0, 4, len(case))
    rows = np.repeat(np.arange(len(case)), weights)
    all_of = of_binary(positive, scores, scores > 0) | of_answers(true, predicted, 2)
    for name, metric in all_of.items():
        repeated = (
            of_binary(positive[rows], scores[rows], scores[rows] > 0) | of_answers(true[rows], predicted[rows], 2)
        )[name]
        assert same(float(metric(weights[None].astype(float))[0]), value_of(repeated, len(rows))), name


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_labels_are_means_over_those_that_can_be_measured(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(-1, 2, (12, 4)).astype(np.int8)
    truth[:, 0] = rng.choice([0, 1, -1])  # a label with one kind of case, or none
    scores = np.log(rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], (12, 4)))
    scores[rng.random((12, 4)) < 0.1] = np.nan
    found = values(of_labels(truth, scores), 12)
    precisions, areas, f1 = [], [], []
    for own, score in zip(truth.T, scores.T, strict=True):
        known = (own >= 0) & ~np.isnan(score)
        own, score = own[known] == 1, score[known]
        if own.any():
            precisions.append(reference.average_precision_score(own, score))
        if 0 < own.sum() < len(own):
            areas.append(reference.roc_auc_score(own, score))
        said = score > np.log(0.5)
        if own.any() or said.any():
            f1.append(reference.f1_score(own, said, zero_division=0))
    for name, expected in ((MEAN_AVERAGE_PRECISION, precisions), (MEAN_AUROC, areas), (MACRO_F1, f1)):
        assert same(found[name], float(np.mean(expected)) if expected else math.nan), name


def test_recall_and_found_leave_out_what_was_not_asked():
    best, found = np.array([0, 3, -1, 1]), {1: np.array([1.0, 0, np.nan, 0]), 2: np.array([0.5, 0, np.nan, 0.25])}
    assert values(of_ranking(best, found), 4) == {
        "recall@1": 1 / 3,
        "recall@2": 2 / 3,
        "found@1": 1 / 3,
        "found@2": 0.25,
    }
    assert np.isnan(list(values(of_ranking(np.array([-1]), {1: np.array([np.nan])}), 1).values())).all()


def test_unasked_cases_and_unknown_truths_count_for_nothing():
    true, predicted = np.array([0, 1, 1, -1]), np.array([0, -1, 1, 1])
    assert values(of_answers(true, predicted, 3), 4) == {BALANCED_ACCURACY: 1.0, ACCURACY: 1.0, MACRO_F1: 1.0}
    positive, scores = np.array([1, 0, -1, 1, 0]), np.array([0.9, 0.1, 0.5, np.nan, np.nan])
    assert set(values(of_binary(positive, scores, scores > 0.2), 5).values()) == {1.0}


def test_a_class_absent_from_the_truth_is_left_out():
    found = of_answers(np.array([0, 0, 1]), np.array([0, 2, 1]), 3)
    assert value_of(found[BALANCED_ACCURACY], 3) == 0.75  # (1/2 + 1) / 2, not / 3
    assert value_of(found[MACRO_F1], 3) == pytest.approx((2 / 3 + 1 + 0) / 3)  # the third class is answered


def test_no_case_is_no_number():
    nothing = np.zeros(0, np.int64)
    made = of_answers(nothing, nothing, 3) | of_binary(nothing, np.zeros(0), nothing > 0)
    assert all(np.isnan(value_of(metric, 0)) for metric in made.values())
    assert np.isnan(auroc(nothing, np.zeros(0))(np.ones((3, 0)))).all()
    assert np.isnan(average_precision(np.array([0, 0]), np.array([0.1, 0.2]))(np.ones((1, 2)))).all()


def test_sums_of_groups_give_the_same():
    rng = np.random.default_rng(0)
    true, predicted, groups = rng.integers(3, size=(3, 50))
    weights = rng.integers(0, 3, (4, 5)).astype(float)
    for metric in of_answers(true, predicted, 3).values():
        assert isinstance(metric, Sums)
        assert np.allclose(metric.of_groups(groups, 5)(weights), metric(weights[:, groups]))
