import time

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from medpclip.evaluation.metrics import bootstrap as module
from medpclip.evaluation.metrics.bootstrap import bootstrap, group_numbers, percentile_interval, seed_of
from medpclip.evaluation.metrics.metrics import BALANCED_ACCURACY, Metric, auroc, of_answers


def planted(seed: int, n: int = 60, groups: int = 9, classes: int = 4, skill: float = 0.6):
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=n)
    predicted = np.where(rng.random(n) < skill, true, rng.integers(classes, size=n))
    return true, predicted, rng.integers(groups, size=n)


def balanced(true, predicted) -> Metric:
    return of_answers(true, predicted, 4)[BALANCED_ACCURACY]


def test_equals_sklearn_with_the_groups_weights():
    true, predicted, groups = planted(0)
    found = bootstrap(balanced(true, predicted), groups, 25, 3, count=9)
    scores = np.round(predicted + np.random.default_rng(1).random(60), 1)
    area = bootstrap(auroc(true == 2, scores), groups, 25, 3, count=9)
    for value, own_area, drawn in zip(found, area, np.random.default_rng(3).exponential(size=(25, 9)), strict=True):
        weights = drawn[groups]
        assert np.isclose(value, balanced_accuracy_score(true, predicted, sample_weight=weights))
        assert np.isclose(own_area, roc_auc_score(true == 2, scores, sample_weight=weights))


def test_resamples_that_are_kept_are_those_that_are_drawn_again(monkeypatch):
    true, predicted, groups = planted(2)
    metrics = [balanced(true, predicted), auroc(true == 2, predicted + np.arange(60) / 60)]
    seeds = (0, 1, 0, 2, 0)
    kept = [bootstrap(metric, groups, 30, seed, count=9) for seed in seeds for metric in metrics]
    assert module._kept.cache_info().currsize <= 2
    monkeypatch.setattr(module, "_CELLS", 100)  # too many to keep
    drawn = [bootstrap(metric, groups, 30, seed, count=9) for seed in seeds for metric in metrics]
    assert all(np.allclose(one, other, rtol=0, atol=1e-12) for one, other in zip(kept, drawn, strict=True))


def test_same_seed_same_draws_other_seed_others():
    true, predicted, groups = planted(1)
    one = bootstrap(balanced(true, predicted), groups, 50, 0)
    assert (bootstrap(balanced(true, predicted), groups, 50, 0) == one).all()
    assert (bootstrap(balanced(true, predicted), groups, 50, 1) != one).any()
    assert seed_of(0, "bccd") == seed_of(0, "bccd") != seed_of(0, "btcv") != seed_of(1, "btcv")


def test_draws_in_parts_are_the_same_draws(monkeypatch):
    true, predicted, groups = planted(1)
    area = auroc(true == 2, predicted.astype(float))
    whole = [bootstrap(m, groups, 50, 0) for m in (balanced(true, predicted), area)]
    monkeypatch.setattr(module, "_CELLS", 7 * 60)
    parts = [bootstrap(m, groups, 50, 0) for m in (balanced(true, predicted), area)]
    assert all((a == b).all() for a, b in zip(whole, parts, strict=True))


def test_the_order_of_the_cases_does_not_matter():
    true, predicted, numbers = planted(2)
    names = [("source", f"g{n}") for n in numbers]
    mixed = np.random.default_rng(0).permutation(len(true))
    one = bootstrap(balanced(true, predicted), group_numbers(names), 40, 0)
    other = bootstrap(balanced(true[mixed], predicted[mixed]), group_numbers([names[i] for i in mixed]), 40, 0)
    assert (one == other).all()


def test_the_paired_difference_of_a_predictor_with_itself_is_nothing_and_pairing_narrows():
    true, good, groups = planted(2, n=400, groups=40)
    worse = good.copy()
    worse[:20] = (true[:20] + 1) % 4  # differs in a few cases only
    a, b = balanced(true, good), balanced(true, worse)
    unpaired = bootstrap(a, groups, 500, 0) - bootstrap(b, groups, 500, 1)
    paired = bootstrap(a, groups, 500, 0) - bootstrap(b, groups, 500, 0)
    assert (bootstrap(a, groups, 500, 0) == bootstrap(a, groups, 500, 0)).all()
    assert paired.std() < 0.6 * unpaired.std()


def test_groups_widen_the_interval_when_their_cases_go_together():
    rng = np.random.default_rng(0)
    true = rng.integers(2, size=400)
    groups = np.repeat(np.arange(20), 20)
    predicted = np.where(groups % 2 == 0, true, 1 - true)  # a whole group is right or wrong
    alone = bootstrap(balanced(true, predicted), np.arange(400), 300, 0)
    together = bootstrap(balanced(true, predicted), groups, 300, 0)
    assert together.std() > 2 * alone.std()


def test_the_interval_holds_the_truth_as_often_as_it_says():
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        right = (rng.random((80, 1)) < rng.beta(4, 2, (80, 1))) | (rng.random((80, 3)) < 0.2)  # groups of 3, alike
        true = np.zeros(240, np.int64)
        draws = bootstrap(balanced(true, 1 - right.reshape(-1).astype(int)), np.repeat(np.arange(80), 3), 300, seed)
        low, high = percentile_interval(draws, 0.9)
        held += low <= 1 - (1 - 4 / 6) * 0.8 <= high
    assert 0.82 <= held / 200 <= 0.97


def test_a_class_that_one_group_has_is_in_every_resample():
    """Its cases are all wrong, those of the other class all right: without it a resample would have 100 %."""
    true, predicted = np.repeat([0, 1], [27, 3]), np.zeros(30, np.int64)
    draws = bootstrap(balanced(true, predicted), np.arange(30) // 3, 1000, 0)
    assert np.allclose(draws, 0.5)


def test_percentiles_and_resamples_without_a_case():
    values = np.append(np.arange(101) / 100, np.nan)
    assert np.allclose(percentile_interval(values, 0.9), [0.05, 0.95])
    assert percentile_interval(np.full(3, np.nan), 0.9) is None
    one = balanced(np.array([0]), np.array([0]))
    assert set(bootstrap(one, np.array([0]), 200, 0, count=3)) == {1.0}  # two of three groups are empty
    nothing = np.zeros(0, np.int64)
    assert np.isnan(bootstrap(balanced(nothing, nothing), nothing, 5, 0)).all()


@pytest.mark.parametrize("ordered", [False, True])
def test_a_thousand_draws_are_quick(ordered):
    true, predicted, groups = planted(3, n=5000, groups=500)
    metric = auroc(true == 0, predicted.astype(float)) if ordered else balanced(true, predicted)
    start = time.perf_counter()
    bootstrap(metric, groups, 1000, 0)
    assert time.perf_counter() - start < 4.0  # about 0.03 s and 0.3 s on an idle core
