import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from medpclip.evaluation.metrics.bootstrap import bootstrap, percentile_interval
from medpclip.evaluation.metrics.calibration import BRIER, ECE, brier_scores, of_confidence, reliability
from medpclip.evaluation.metrics.metrics import value_of

answers = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40
)


@settings(max_examples=100, deadline=None)
@given(answers, st.integers(2, 15))
def test_error_equals_a_loop_over_bins(case, bins):
    confidence, right = np.array([c for c, _ in case]), np.array([r for _, r in case])
    expected, curve = 0.0, reliability(confidence, right, bins)
    for number, own in enumerate(curve):
        inside = [(c, r) for c, r in case if number / bins < c <= (number + 1) / bins or (c == 0 and number == 0)]
        assert own.cases == len(inside) and (own.low, own.high) == pytest.approx((number / bins, (number + 1) / bins))
        if not inside:
            assert own.confidence is None and own.accuracy is None
            continue
        sure, hits = np.mean(inside, axis=0)
        assert (own.confidence, own.accuracy) == pytest.approx((sure, hits))
        expected += len(inside) / len(case) * abs(sure - hits)
    found = of_confidence(confidence, right, np.zeros(len(case)), bins)[ECE]
    assert value_of(found, len(case)) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_brier_agrees_with_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    given_ = rng.dirichlet(np.ones(classes), 20)
    true = rng.integers(classes, size=20)
    scores = brier_scores(np.log(given_), true)
    found = value_of(of_confidence(given_.max(1), given_.argmax(1) == true, scores, 10)[BRIER], 20)
    assert found == pytest.approx(brier_score_loss(true, given_, labels=range(classes), scale_by_half=False))


def test_cases_that_were_not_asked_count_for_nothing():
    confidence, right = np.array([0.8, np.nan, 0.8]), np.array([True, True, False])
    values = np.log(np.array([[0.8, 0.2], [np.nan, np.nan], [0.2, 0.8]], np.float32))
    found = of_confidence(confidence, right, brier_scores(values, np.array([0, 0, 0])), 5)
    assert value_of(found[ECE], 3) == pytest.approx(0.3) and value_of(found[BRIER], 3) == pytest.approx(
        (0.08 + 1.28) / 2
    )
    assert sum(own.cases for own in reliability(confidence, right, 5)) == 2
    nothing = of_confidence(np.full(2, np.nan), right[:2], np.full(2, np.nan), 5)
    assert all(np.isnan(value_of(metric, 2)) for metric in nothing.values())


def test_planted_overconfidence_is_found_and_calibration_is_not_accused():
    rng = np.random.default_rng(0)
    confidence, groups = rng.uniform(0.5, 1, 4000), np.arange(4000) // 2
    honest, boasting = rng.random(4000) < confidence, rng.random(4000) < confidence - 0.2
    error = {name: of_confidence(confidence, right, np.zeros(4000), 15)[ECE] for name, right in
             (("honest", honest), ("boasting", boasting))}  # fmt: skip
    assert value_of(error["honest"], 4000) < 0.04 and value_of(error["boasting"], 4000) == pytest.approx(0.2, abs=0.03)
    low, high = percentile_interval(bootstrap(error["boasting"], groups, 300, 0), 0.95)
    assert 0.15 < low < 0.2 < high < 0.25
