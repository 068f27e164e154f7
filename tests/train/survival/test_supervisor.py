"""Supervisors of processes that are no ranks: what guards them from harm, and others from them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medpclip.train.config import SupervisionConfig
from medpclip.train.survival import process
from medpclip.train.survival.failures import Failure, Kind, new_attempt, record
from medpclip.train.survival.heartbeat import Heartbeat, Stage, shared_file
from medpclip.train.survival.process import Process
from medpclip.train.survival.supervisor import Orders, dismiss, start

PARENT = """
import os, sys, time
from types import SimpleNamespace
from medpclip.train.survival.heartbeat import Heartbeat
from medpclip.train.survival.supervisor import Orders, start
limits = SimpleNamespace(start_seconds={allowance}, step_seconds=1, save_seconds=1, evaluate_seconds=1)
heartbeat = Heartbeat(limits)
orders = Orders(os.getpid(), 0, 2, sys.argv[1], heartbeat.descriptor, tick=0.1, look=0.1, grace=0.2, patience=0.4)
print(start(orders).pid, flush=True)
time.sleep({sleep})
"""


def run(folder: Path, allowance: float, sleep: float) -> tuple[int, str]:
    """A process that gives one sign of life; how it ended, and what was said."""
    code = PARENT.format(allowance=allowance, sleep=sleep)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=20)
    return done.returncode, done.stderr


def test_a_file_system_that_hangs_saves_no_rank_that_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rank-00001.json")  # to open it takes for ever, as a file on a server that has gone
    code, said = run(tmp_path, 0.5, 60)
    assert code == -signal.SIGKILL
    assert said.startswith("medpclip: error: rank 0, step 0, starting: no sign of life for more than 0.5 s")


def test_failures_of_an_attempt_before_end_nothing(tmp_path: Path) -> None:
    old = Failure(1.0, 1, Kind.ERROR, Stage.STEP, 3, "broken")
    record(tmp_path / new_attempt(), old)
    assert run(tmp_path / new_attempt(), 9, 1.5)[0] == 0
    record(tmp_path / "now", old)
    assert run(tmp_path / "now", 9, 60)[0] == -signal.SIGKILL


def test_supervisors_hold_nothing_of_their_rank(tmp_path: Path) -> None:
    """A socket that a supervisor held would hide its rank's death from the others."""
    code = "import socket\ns = socket.socket()\ns.set_inheritable(True)\n" + PARENT.format(allowance=60, sleep=60)
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        try:
            assert parent.stdout is not None
            number = int(parent.stdout.readline())
            time.sleep(0.3)
            links = [os.readlink(path) for path in Path(f"/proc/{number}/fd").iterdir()]
            assert any("medpclip-heartbeat" in link for link in links)
            assert not any(link.startswith("socket:") for link in links)
        finally:
            parent.kill()


@pytest.mark.parametrize("handles", [True, False])
def test_a_stranger_with_the_same_number_is_not_hit(handles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not handles:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    victim = subprocess.Popen(sleep)
    time.sleep(0.05)  # start times have hundredths of seconds
    with victim, subprocess.Popen(sleep) as stranger:
        known = Process(victim.pid)
        assert known._started != process._start_time(stranger.pid)
        victim.kill()
        victim.wait()
        known.pid = stranger.pid  # as if the number were given out again
        known.send(signal.SIGKILL)
        time.sleep(0.1)
        assert stranger.poll() is None
        Process(stranger.pid).send(signal.SIGKILL)
        assert stranger.wait(5) == -signal.SIGKILL


def test_without_proc_there_are_no_workers_and_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "Path", lambda path: Path("/nowhere") / path.lstrip("/"))
    workers = process.Workers(os.getppid())
    workers.look()
    workers.kill()


def test_a_supervisor_that_doesnt_come_up_is_noticed(tmp_path: Path) -> None:
    """Or else the run would go on unwatched."""
    empty = shared_file()
    with pytest.raises(ChildProcessError):
        start(Orders(os.getpid(), 0, 1, str(tmp_path), empty))
    os.close(empty)


def test_modules_beside_a_users_script_dont_get_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "enum.py").write_text("raise SystemExit('this one is wrong')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    heartbeat = Heartbeat(SupervisionConfig())
    dismiss(start(Orders(os.getpid(), 0, 1, str(tmp_path), heartbeat.descriptor)))
    heartbeat.close()
