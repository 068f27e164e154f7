import itertools
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from medpclip.train.survival.failures import (
    Failure,
    Kind,
    first_failure,
    in_order,
    new_attempt,
    one_line,
    read_failures,
    record,
)
from medpclip.train.survival.heartbeat import Stage

FAILURE = Failure(100.0, 3, Kind.ERROR, Stage.LOAD, 120, "a.tar: 0f: can't be decoded", "")


def test_a_record_comes_back_and_reads_well(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "failures" / "1"
    assert first_failure(folder) is None
    assert record(folder, FAILURE)
    assert first_failure(folder) == FAILURE
    assert str(FAILURE) == "rank 3, step 120, loading: a.tar: 0f: can't be decoded"


def test_a_ranks_first_record_stays(tmp_path: Path) -> None:
    assert record(tmp_path, FAILURE)
    assert record(tmp_path, replace(FAILURE, kind=Kind.ENDED, message="later"))
    assert read_failures(tmp_path) == [FAILURE]


@pytest.mark.parametrize("kinds", list(itertools.permutations([Kind.CUT_OFF, Kind.DIED, Kind.WAITING, Kind.BUG])))
def test_causes_go_before_what_follows_from_them(kinds: tuple[Kind, ...]) -> None:
    failures = [replace(FAILURE, time=time, rank=time, kind=kind) for time, kind in enumerate(kinds)]
    causes = [kind for kind in kinds if kind in (Kind.DIED, Kind.BUG)]
    for shuffled in (failures, random.Random(1).sample(failures, 4)):
        assert [failure.kind for failure in in_order(shuffled)] == [*causes, Kind.WAITING, Kind.CUT_OFF]


def test_what_cant_be_read_is_no_failure(tmp_path: Path) -> None:
    for number, content in enumerate(["", "{}", "[]", '{"kind": "error"}', "\xff"]):
        (tmp_path / f"rank-{number:05d}.json").write_text(content, "latin-1")
    (tmp_path / ".rank-00009.json.part").write_text("half")
    assert read_failures(tmp_path) == []
    record(tmp_path, replace(FAILURE, rank=9))
    assert [failure.rank for failure in read_failures(tmp_path)] == [9]


def test_where_nothing_can_be_written_recording_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not record(tmp_path / "file" / "1", FAILURE)


def test_attempts_differ_and_sort_by_time() -> None:
    names = [new_attempt() for _ in range(20)]
    assert len(set(names)) == 20
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", name) for name in names)


def test_messages_are_one_line_of_limited_length() -> None:
    assert one_line("a\n  b\r\n\tc") == "a b c"
    assert len(one_line("x" * 10_000)) == 2000
