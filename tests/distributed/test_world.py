"""Which rank this is, as launchers say it; and what ranks tell one another."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import free_port, rank_environment, run_ranks

from medpclip.distributed import World
from medpclip.distributed.exchange import gather_rows, largest, pass_on, sum_own_rows, total
from medpclip.distributed.world import first_node, from_environment, join
from medpclip.errors import MedpclipError


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, World(3, 8, 1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, World(3, 8, 1, 8)),  # the deepspeed launcher
        (
            {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"},
            World(5, 6, 1, 2),
        ),
        # torchrun in a step of one task on each of two nodes: its own ranks count
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "RANK": "9", "WORLD_SIZE": "16",
             "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"},
            World(9, 16, 1, 8),
        ),
        # a shell in an allocation of four tasks, a batch script, an interactive step: all alone
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, World()),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, World()),
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
            World(),
        ),
    ],
)  # fmt: skip
def test_the_environment_says_which_rank_this_is(environment: dict[str, str], world: World) -> None:
    assert from_environment(environment) == world


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "1"}, "WORLD_SIZE is None"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE are 2 and 2"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "SLURM_LOCALID is None"),
    ],
)
def test_contradictions_are_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(MedpclipError, match=named):
        from_environment(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("cpu1", "cpu1"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("a-b[7]", "a-b7"),
        ("rack[1-2]n[3-4]", "rack1n3"),
        ("n1.cluster,n2.cluster", "n1.cluster"),
        ("gpu[1,3-4]-ib", "gpu1-ib"),
    ],
)
def test_the_first_of_slurms_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@given(st.lists(st.floats(allow_nan=False)), st.dictionaries(st.text(), st.integers()))
def test_one_process_hears_itself(values: list[float], facts: dict[str, int]) -> None:
    alone = World()
    assert alone.total(values) == values and alone.gather(facts) == [facts] and alone.from_first(facts) == facts


def as_rank() -> None:
    world = join("cpu")
    said = world.gather({"rank": world.rank, "text": "é" * 1000 * world.rank, "list": [0.1, None]})
    assert [one["rank"] for one in said] == list(range(world.size)) and said[2]["text"] == "é" * 2000
    assert world.from_first("first" if world.is_first else "other") == "first"
    assert world.total([1.0, world.rank]) == [world.size, 3.0]
    world.agree(None)
    for wrong in ({1}, {1, 2}):
        try:
            world.agree(MedpclipError(f"rank {world.rank} says no") if world.rank in wrong else None)
        except MedpclipError as error:
            assert str(error) == "rank 1 says no"
        else:
            raise AssertionError("all ranks must hear of it")
    rows = torch.arange(6.0).view(2, 3) + 10 * world.rank
    everyone = gather_rows(rows, world)
    assert torch.equal(everyone, torch.cat([torch.arange(6.0).view(2, 3) + 10 * r for r in range(3)]))
    assert torch.equal(sum_own_rows(everyone, world), 3 * rows)
    assert total(torch.ones(2), world).tolist() == [3, 3] and largest(torch.tensor([world.rank]), world).item() == 2
    around = [torch.tensor([world.rank]), torch.full((2, 2), float(world.rank))]
    for _ in range(3):
        around = pass_on(around, world)
    assert around[0].item() == world.rank and (around[1] == world.rank).all()
    [once] = pass_on([torch.tensor([world.rank])], world)
    assert once.item() == (world.rank - 1) % 3


def test_three_ranks_talk() -> None:
    run_ranks(Path(__file__), 3)


def test_a_rank_whose_companions_do_not_come_gives_up_and_says_where() -> None:
    code = """
from medpclip.distributed import join
from medpclip.errors import MedpclipError
try:
    join("cpu", timeout_seconds=600, arrival_seconds=1)
except MedpclipError as error:
    print(error)
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=rank_environment(0, 2, free_port()),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "rank 0 of 2 didn't find all others at 127.0.0.1:" in done.stdout and "within 1 s" in done.stdout, done
    assert time.monotonic() - began < 50


if __name__ == "__main__":
    as_rank()
