"""What epochs consist of, and who gets what of them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.loading.order import BatchOrder, EpochPlan, shuffled
from medpclip.errors import MedpclipError


def test_an_epoch_has_each_sample_once_and_the_next_is_ordered_otherwise() -> None:
    order = iter(BatchOrder(EpochPlan((15, 5), (1.0, 1.0), 0), 4))
    epochs = [[item.sample for _ in range(5) for item in next(order)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = next(iter(BatchOrder(EpochPlan((20,), (1.0,), 1), 4)))
    assert [item.sample for item in other] != epochs[0][:4]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.floats(0.05, 3.5), st.integers(1, 12), st.integers(0, 99))
def test_weights_are_how_often_an_epoch_has_each_sample(count: int, weight: float, epochs: int, seed: int) -> None:
    plan = EpochPlan((7, count), (1.0, weight), seed)
    total = Counter[int]()
    for epoch in range(epochs):
        index, copy = plan.draws(epoch)
        assert len(index) == len(plan) == 7 + round(weight * count)
        assert len(set(zip(index.tolist(), copy.tolist(), strict=True))) == len(index), "copies are told apart"
        drawn = Counter(index.tolist())
        assert all(drawn[i] == 1 for i in range(7))
        assert all(int(weight) <= drawn[7 + i] <= int(weight) + 1 for i in range(count))
        total += drawn
    counts = [total[7 + i] for i in range(count)]
    assert max(counts) - min(counts) <= 1, "as even as can be over all epochs"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(20, 60), st.integers(0, 30))
def test_ranks_share_every_global_batch(world: int, batch: int, count: int, start: int) -> None:
    plan = EpochPlan((count,), (1.0,), 3)
    one = iter(BatchOrder(plan, batch * world, start))
    ranks = [iter(BatchOrder(plan, batch, start, rank, world)) for rank in range(world)]
    for _ in range(12):
        assert next(one) == [item for rank in ranks for item in next(rank)]


def test_any_start_is_the_rest_of_the_whole() -> None:
    plan = EpochPlan((23,), (1.5,), 0)
    whole = iter(BatchOrder(plan, 4))
    batches = [next(whole) for _ in range(30)]
    for start in range(20):
        rest = iter(BatchOrder(plan, 4, start))
        assert [next(rest) for _ in range(10)] == batches[start : start + 10]


def test_too_few_samples_for_a_batch_is_an_error_before_training() -> None:
    with pytest.raises(MedpclipError, match="'batch_size' is 4, but an epoch has only 3"):
        BatchOrder(EpochPlan((3,), (1.0,), 0), 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 20), st.integers(0, 99))
def test_a_buffer_gives_everything_once_and_never_holds_more(counts: list[int], buffer: int, seed: int) -> None:
    order = list(shuffled(counts, buffer, np.random.default_rng(seed)))
    everything = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert sorted(order) == everything
    read = {place: i for i, place in enumerate(everything)}
    assert all(read[place] <= given + buffer for given, place in enumerate(order))
