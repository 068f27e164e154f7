"""Bytes that real ranks hand to torch.distributed in a step of the training loop, against the prediction."""

import json
from pathlib import Path

import pytest
from ranks import run_ranks

from medpclip.distributed.traffic import Exchange, StepShape, step_traffic

Counts = dict[tuple[int, str], tuple[dict[str, int], dict[str, int]]]

CASES = {
    2: (
        "infonce/local/3",
        "infonce/zero1/2",
        "infonce/zero2/2",
        "infonce/zero3/1",
        "sigmoid/zero3/2",
    ),
    4: ("infonce/local/1", "sigmoid/local/3"),
}
COUNTER = Path(__file__).parents[2] / "benchmarks" / "communication.py"
PADDING = 8  # numbers by which DeepSpeed may lengthen a shard of each of its few groups of parameters
SCALARS = 128  # bytes of DeepSpeed's own: the norm, and whether anything overflowed


@pytest.fixture(scope="module")
def counts(micro_trunk: Path) -> Counts:
    """(ranks, case) -> operation -> bytes that each rank handed over, the same on all, and what was predicted."""
    given = ("--trunk", str(micro_trunk), "--prompt-dim", "16")
    out = {}
    for ranks, cases in CASES.items():
        outputs = run_ranks(COUNTER, ranks, *cases, *given)
        rows = [[json.loads(line) for line in output.splitlines() if line.startswith("{")] for output in outputs]
        for case, first, *others in zip(cases, *rows, strict=True):
            assert first["case"] == case
            assert all(other["handed"] == first["handed"] for other in others)
            out[ranks, case] = first["handed"], first["predicted"]
    return out


LOCAL = [(ranks, case) for ranks, cases in CASES.items() for case in cases if "zero" not in case]
ZERO = [(ranks, case) for ranks, cases in CASES.items() for case in cases if "zero" in case]


@pytest.mark.parametrize("key", LOCAL, ids=str)
def test_local_engine_exchanges_exactly_what_is_predicted(counts: Counts, key: tuple[int, str]) -> None:
    handed, predicted = counts[key]
    assert handed == predicted


@pytest.mark.parametrize("key", ZERO, ids=str)
def test_zero_exchanges_what_is_predicted_but_for_padding_and_scalars(counts: Counts, key: tuple[int, str]) -> None:
    handed, predicted = counts[key]
    assert handed.keys() == predicted.keys()
    micros = int(key[1][-1])
    for operation, expected in predicted.items():
        room = SCALARS if operation == "all_reduce" else 4 * PADDING * micros
        assert 0 <= handed[operation] - expected <= room, operation


def test_one_rank_exchanges_nothing() -> None:
    assert step_traffic(StepShape(1, 4, 100, 512, 1000, 10**6, 10**6)) == []


def test_zero_1_sends_as_much_as_stage_0_and_half_of_it_more() -> None:
    def engine(zero: int) -> float:
        shape = StepShape(8, 1, 100, 512, 1000, 8 * 10**6, 8 * 10**6, zero=zero)  # type: ignore[arg-type]
        return sum(e.sent(8) for e in step_traffic(shape) if e.part in ("gradients", "weights"))

    assert engine(1) == pytest.approx(1.5 * engine(0))


def test_sent_bytes_of_a_ring() -> None:
    sent = {operation: Exchange("", operation, 120).sent(4) for operation in ("all_reduce", "all_gather")}
    assert sent == {"all_reduce": 180, "all_gather": 360}
    assert Exchange("", "reduce_scatter", 120).sent(4) == 90
    assert Exchange("", "send", 120).sent(4) == 120


def test_a_frozen_models_weights_are_gathered_but_have_no_gradients() -> None:
    shape = StepShape(4, 1, 100, 512, 1000, parameters=1000, trained=400, zero=3)
    handed = {e.part: e.handed for e in step_traffic(shape)}
    assert (handed["gradients"], handed["weights"]) == (1600, 1000)
