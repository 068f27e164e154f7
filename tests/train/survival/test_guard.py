"""Ranks die, hang and fail; the job ends, and says what broke first."""

import os
import signal
import stat
import time
from pathlib import Path

import pytest
from unlucky_ranks import Job, is_alive, start

from medpclip.train.survival.failures import FAILURES, Failure, Kind, first_failure, read_failures


def attempt(folder: Path) -> Path:
    (found,) = (folder / "run" / FAILURES).iterdir()
    return found


def failures(folder: Path) -> dict[int, Failure]:
    return {failure.rank: failure for failure in read_failures(attempt(folder))}


@pytest.mark.parametrize("event", ["killed", "killed_with_a_worker"])
def test_a_killed_rank_ends_the_job_and_is_named(tmp_path: Path, event: str) -> None:
    """Its workers end, too; else they would hold its sockets, and the other ranks would wait."""
    job = start(tmp_path, event).wait(20)
    died = "rank 1, step 3, training: died without a word"
    assert all(line.startswith(died) for line in job.complaints()), job.said()
    assert job.codes() == [2, -signal.SIGKILL]
    assert {rank: failure.kind for rank, failure in failures(tmp_path).items()} == {0: Kind.CUT_OFF, 1: Kind.DIED}
    path = attempt(tmp_path) / "rank-00001.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("event", ["stopped", "spins", "holds_the_lock"])
def test_a_rank_that_hangs_ends_the_job(tmp_path: Path, event: str) -> None:
    job = start(tmp_path, event, step_seconds=2).wait(20)
    silent = "rank 1, step 3, training: no sign of life for more than 2 s (supervision.step_seconds), killed"
    assert all(line.startswith(silent) for line in job.complaints()), job.said()
    assert job.codes()[1] == -signal.SIGKILL
    failure = first_failure(attempt(tmp_path))
    assert failure is not None and failure.kind is Kind.OVERDUE
    # a stopped process can't say where it is, any other one does, also without the interpreter's lock
    assert (f" in {event}" in failure.traceback) == (event != "stopped")


def test_a_process_by_itself_that_hangs_ends(tmp_path: Path) -> None:
    job = start(tmp_path, "spins", world=1, step_seconds=1).wait(15)
    assert job.codes() == [-signal.SIGKILL]
    assert job.complaints()[0].startswith("rank 0, step 3, training: no sign of life for more than 1 s")


def test_a_run_folder_that_cant_be_written_changes_nothing_but_where_the_stacks_go(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, where a folder should be")
    job = start(tmp_path, "spins", world=1, step_seconds=1).wait(15)
    assert job.codes() == [-signal.SIGKILL]
    assert job.complaints()[0].startswith("rank 0, step 3, training: no sign of life")
    assert " in spins" in job.said()[0]


def test_an_error_of_one_rank_is_what_the_others_say(tmp_path: Path) -> None:
    job = start(tmp_path, "raises", world=3).wait(20)
    error = "rank 2, step 3, loading: phantom-000002.tar: 0a1b: can't be decoded; run 'medpclip data check'"
    assert job.complaints() == [error] * 3
    assert job.codes() == [2] * 3
    assert not any("Traceback" in text for text in job.said())
    assert [failure.is_cause for failure in read_failures(attempt(tmp_path))] == [True, False, False]


def test_a_bug_of_one_rank_keeps_its_traceback_there(tmp_path: Path) -> None:
    job = start(tmp_path, "has_a_bug").wait(20)
    assert job.complaints()[0].startswith("rank 1, step 3, training: KeyError: 'missing' (see failures/")
    assert "Traceback" in job.said()[1] and "KeyError: 'missing'" in job.said()[1]
    assert "has_a_bug" in failures(tmp_path)[1].traceback


def test_by_itself_an_error_is_said_and_a_bug_also_recorded(tmp_path: Path) -> None:
    job = start(tmp_path, "raises", world=1).wait(20)
    assert job.complaints() == ["phantom-000002.tar: 0a1b: can't be decoded; run 'medpclip data check'"]
    assert not (tmp_path / "run").exists()
    assert "Traceback" in start(tmp_path, "has_a_bug", world=1).wait(20).said()[0]
    assert [failure.kind for failure in read_failures(attempt(tmp_path))] == [Kind.BUG]


def test_an_error_that_all_ranks_have_stays_one_plain_line(tmp_path: Path) -> None:
    job = start(tmp_path, "agreed").wait(20)
    assert job.complaints() == ["the loss at step 3 is not finite"] * 2


def test_a_rank_that_notices_nothing_is_ended(tmp_path: Path) -> None:
    job = start(tmp_path, "waits_for_nobody", quick=True).wait(20)
    assert all(line.startswith("rank 1, step 3, training: phantom-000002.tar") for line in job.complaints()), job.said()
    assert job.codes() == [-signal.SIGKILL, 2]
    assert failures(tmp_path)[0].kind is Kind.ENDED
    assert "waits_for_nobody" in failures(tmp_path)[0].traceback


def test_a_stage_within_its_own_allowance_is_left_alone(tmp_path: Path) -> None:
    job = start(tmp_path, "slow_save", step_seconds=2, save_seconds=20).wait(20)
    assert job.codes() == [0, 0], job.said()
    assert not (tmp_path / "run").exists()


def everybody(job: Job) -> list[int]:
    return [process.pid for process in job.processes] + job.numbers("supervisor")


def test_signals_to_the_whole_job_are_the_ranks_to_answer(tmp_path: Path) -> None:
    """A suspended job owes no sign of life; the scheduler's SIGTERM ends no supervisor."""
    job = start(tmp_path, "patience", step_seconds=3)
    job.when("ready")
    for number in everybody(job):
        os.kill(number, signal.SIGSTOP)
    time.sleep(4)
    for number in everybody(job):
        os.kill(number, signal.SIGCONT)
    for number in job.numbers("supervisor"):
        for word in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            os.kill(number, word)
    time.sleep(0.3)
    assert all(is_alive(number) for number in everybody(job)), job.said()
    for process in job.processes:
        process.terminate()
    assert job.wait(20).codes() == [0, 0], job.said()
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_has_not_failed(tmp_path: Path) -> None:
    assert start(tmp_path, "interrupted", world=1).wait(20).codes() == [130]
    assert not (tmp_path / "run").exists()
