import mmap
import timeit
from collections.abc import Iterator

import pytest

from medpclip.train.config import SupervisionConfig
from medpclip.train.survival.heartbeat import PAGE, Heartbeat, Stage, read


@pytest.fixture
def heartbeat() -> Iterator[Heartbeat]:
    limits = SupervisionConfig(start_seconds=9, step_seconds=1, save_seconds=5, evaluate_seconds=None)
    heartbeat = Heartbeat(limits)
    yield heartbeat
    heartbeat.close()


@pytest.fixture
def seen(heartbeat: Heartbeat) -> mmap.mmap:
    return mmap.mmap(heartbeat.descriptor, PAGE, prot=mmap.PROT_READ)


def test_another_mapping_sees_each_stamp(heartbeat: Heartbeat, seen: mmap.mmap) -> None:
    assert read(seen) == (1, Stage.START, 0, 9.0, "start_seconds")
    heartbeat.stamp(Stage.SAVE, 10**12)
    assert read(seen) == (2, Stage.SAVE, 10**12, 5.0, "save_seconds")
    heartbeat.stamp(Stage.EVALUATE, 7)
    assert read(seen) == (3, Stage.EVALUATE, 7, float("inf"), "evaluate_seconds")
    assert (heartbeat.stage, heartbeat.step) == (Stage.EVALUATE, 7)


def test_the_first_step_has_the_starts_allowance(heartbeat: Heartbeat, seen: mmap.mmap) -> None:
    allowances = []
    for stage, step in (("LOAD", 41), ("STEP", 41), ("SAVE", 41), ("LOAD", 42), ("STEP", 42), ("LOAD", 43)):
        heartbeat.stamp(Stage[stage], step)
        allowances.append(read(seen).allowance)
    assert allowances == [9, 9, 5, 1, 1, 1]


def test_a_stamp_that_is_cut_short_is_not_seen(heartbeat: Heartbeat, seen: mmap.mmap) -> None:
    """Whatever the slot that is being written holds, readers see the one before."""
    heartbeat.stamp(Stage.SAVE, 5)
    before = read(seen)
    other = mmap.mmap(heartbeat.descriptor, PAGE)
    unused = {1: 16, 0: 64}[other[0]]
    other[unused : unused + 26] = b"\xff" * 26
    assert read(seen) == before


def test_a_stamp_costs_microseconds(heartbeat: Heartbeat) -> None:
    best = min(timeit.repeat(lambda: heartbeat.stamp(Stage.STEP, 3), number=2000, repeat=5)) / 2000
    assert best < 20e-6  # about 1.5 on an idle core
