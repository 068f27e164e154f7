import time

import numpy as np

from medpclip.evaluation.bootstrap import GroupCounts, percentile_interval, resample
from medpclip.evaluation.metrics import balanced_accuracy, confusion_matrix


def planted(seed: int, n: int = 60, groups: int = 9, classes: int = 4, skill: float = 0.6):
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=n)
    predicted = np.where(rng.random(n) < skill, true, rng.integers(classes, size=n))
    return true, predicted, rng.integers(groups, size=n)


def test_equals_the_naive_loop_over_resampled_groups():
    true, predicted, groups = planted(0)
    found = resample(GroupCounts.of(true, predicted, groups, 9, 4), 25, seed=3)
    picks = np.random.default_rng(3).integers(9, size=(25, 9))
    for value, picked in zip(found, picks, strict=True):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in picked])
        assert np.isclose(value, balanced_accuracy(confusion_matrix(true[rows], predicted[rows], 4)))


def test_same_seed_same_draws_other_seed_others():
    counts = GroupCounts.of(*planted(1), 9, 4)
    assert (resample(counts, 50, 0) == resample(counts, 50, 0)).all()
    assert (resample(counts, 50, 0) != resample(counts, 50, 1)).any()


def test_the_paired_difference_of_a_predictor_with_itself_is_nothing_and_pairing_narrows():
    true, good, groups = planted(2, n=400, groups=40)
    worse = good.copy()
    worse[:20] = (true[:20] + 1) % 4  # differs in a few cases only
    a, b = (resample(GroupCounts.of(true, p, groups, 40, 4), 500, 0) for p in (good, worse))
    unpaired = a - resample(GroupCounts.of(true, worse, groups, 40, 4), 500, 1)
    assert ((a - a) == 0).all()
    assert (a - b).std() < 0.6 * unpaired.std()


def test_groups_widen_the_interval_when_their_cases_go_together():
    rng = np.random.default_rng(0)
    true = rng.integers(2, size=400)
    groups = np.repeat(np.arange(20), 20)
    predicted = np.where(groups % 2 == 0, true, 1 - true)  # a whole group is right or wrong
    alone = resample(GroupCounts.of(true, predicted, np.arange(400), 400, 2), 300, 0)
    together = resample(GroupCounts.of(true, predicted, groups, 20, 2), 300, 0)
    assert together.std() > 2 * alone.std()


def test_percentiles_and_resamples_without_a_case():
    values = np.append(np.arange(101) / 100, np.nan)
    assert np.allclose(percentile_interval(values, 0.9), [0.05, 0.95])
    assert percentile_interval(np.full(3, np.nan), 0.9) is None
    counts = GroupCounts.of(np.array([0]), np.array([0]), np.array([0]), 3, 2)  # two of three groups are empty
    assert np.isnan(resample(counts, 200, 0)).any()


def test_a_thousand_draws_are_quick():
    counts = GroupCounts.of(*planted(3, n=5000, groups=500, classes=20), 500, 20)
    start = time.perf_counter()
    resample(counts, 1000, 0)
    assert time.perf_counter() - start < 2.0  # about 0.05 s on an idle core
