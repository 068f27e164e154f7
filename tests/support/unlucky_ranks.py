"""Ranks of a small loop that talk by gloo, and to which something happens in step 3.

They are forked by a server that has imported torch, once for all, and has no threads.
"""

import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ranks import free_port

STEPS, UNLUCKY = 6, 3
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["medpclip.train.survival.guard", "medpclip.distributed.world"])


@dataclass
class Job:
    """Attributes:
    processes: the ranks.
    folder: of what they say.
    began: when all were supervised, on the monotonic clock.
    """

    processes: list[Any]
    folder: Path
    began: float

    def wait(self, seconds: float) -> "Job":
        """Until the ranks have ended, in so many seconds, and then their workers and supervisors, too."""
        try:
            for process in self.processes:
                process.join(max(0.0, self.began + seconds - time.monotonic()))
                assert process.exitcode is not None, f"hangs; so far:\n{self.said()}"
        finally:
            for process in self.processes:
                process.kill()
        until = time.monotonic() + 4
        while any(is_alive(number) for number in self.numbers("supervisor") + self.numbers("worker")):
            assert time.monotonic() < until, "a supervisor or a worker has outlived its rank"
            time.sleep(0.05)
        return self

    def when(self, word: str, seconds: float = 30) -> None:
        """Wait until each rank has said it."""
        until = time.monotonic() + seconds
        while not all(word in text for text in self.said()):
            assert time.monotonic() < until, self.said()
            time.sleep(0.02)

    def said(self) -> list[str]:
        paths = [self.folder / f"output-{rank}" for rank in range(len(self.processes))]
        return [path.read_text() if path.exists() else "" for path in paths]

    def complaints(self) -> list[str]:
        """The first error line of each rank, and of its supervisor."""
        lines = [[line for line in text.splitlines() if line.startswith("medpclip: error: ")] for text in self.said()]
        return [first[0].removeprefix("medpclip: error: ") if first else "" for first in lines]

    def codes(self) -> list[int]:
        return [process.exitcode for process in self.processes]

    def numbers(self, what: str) -> list[int]:
        """Process numbers that ranks said, as "supervisor 17"."""
        return [int(line.split()[1]) for text in self.said() for line in text.splitlines() if line.startswith(what)]


def start(folder: Path, event: str, world: int = 2, run: Path | None = None, quick: bool = False, **limits: Any) -> Job:
    """Begin a job; its ranks are about to train.

    Args:
        folder: for its output.
        event: the name of a function below, which rank `world - 1` calls in step 3; it may be for all ranks.
        run: the run's folder; in `folder`, if not given.
        quick: wait but a second where a rank is given longer to end by itself.
        limits: of the supervision.
    """
    allowances = {f"{name}_seconds": None for name in ("start", "step", "save", "evaluate")} | limits
    port = free_port()
    arguments = (world, port, folder, run or folder / "run", event, quick, allowances)
    processes = [_SERVER.Process(target=_rank, args=(rank, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    job = Job(processes, folder, time.monotonic())
    job.when("supervisor", 120)  # the server may have to import torch yet
    job.began = time.monotonic()
    return job


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be asked how it ended doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _rank(
    rank: int, size: int, port: int, folder: Path, run: Path, event: str, quick: bool, limits: dict[str, Any]
) -> None:
    output = os.open(folder / f"output-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from medpclip.distributed.world import World, join
    from medpclip.errors import MedpclipError
    from medpclip.train.survival import guard, supervisor
    from medpclip.train.survival.failures import new_attempt

    if quick:
        guard.Orders = functools.partial(guard.Orders, look=0.2, grace=1.0)  # type: ignore[misc,assignment]
    real_start = supervisor.start

    def start_and_tell(orders: supervisor.Orders) -> Any:
        process = real_start(orders)
        print("supervisor", process.pid, flush=True)
        return process

    supervisor.start = start_and_tell
    world = World() if size == 1 else join("cpu")
    try:
        with guard.supervised(SimpleNamespace(**limits), run, world, world.from_first(new_attempt())) as heartbeat:  # type: ignore[arg-type]
            _train(rank, size, heartbeat, globals()[event])
        print("trained", flush=True)
    except MedpclipError as error:
        print(f"medpclip: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _train(rank: int, size: int, heartbeat: Any, event: Any) -> None:
    import torch

    from medpclip.train.survival.heartbeat import Stage

    unlucky, stop = rank == size - 1, threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    for step in range(1, STEPS + 1):
        heartbeat.stamp(Stage.LOAD, step)
        happens = step == UNLUCKY and (unlucky or event in FOR_ALL)
        if happens and event in WHILE_LOADING:
            event()
        heartbeat.stamp(Stage.STEP, step)
        if happens and event not in WHILE_LOADING:
            event() if event not in (slow_save, patience) else event(heartbeat, Stage, stop)
        if size > 1:
            torch.distributed.all_reduce(torch.ones(1))


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_with_a_worker() -> None:
    if os.fork() == 0:  # a loader's worker
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    with suppress(FileNotFoundError):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        print("worker", children[-1], flush=True)
    time.sleep(1.2)  # it has been there for a while, as workers have
    killed()


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def spins() -> None:
    while True:
        pass


def holds_the_lock() -> None:
    """In native code: no other thread of this interpreter gets a turn."""
    re.match("(a+)+$", "a" * 60 + "b")


def waits_for_nobody() -> None:
    """What doesn't notice that another rank has failed."""
    if os.environ["RANK"] == "0":
        time.sleep(600)
    raises()


def raises() -> None:
    from medpclip.errors import MedpclipError

    raise MedpclipError("phantom-000002.tar: 0a1b: can't be decoded; run 'medpclip data check'")


def agreed() -> None:
    from medpclip.errors import MedpclipError

    raise MedpclipError("the loss at step 3 is not finite")


def has_a_bug() -> None:
    {}["missing"]


def slow_save(heartbeat: Any, stages: Any, stop: threading.Event) -> None:
    heartbeat.stamp(stages.SAVE, UNLUCKY)
    time.sleep(3)
    heartbeat.stamp(stages.STEP, UNLUCKY)


def patience(heartbeat: Any, stages: Any, stop: threading.Event) -> None:
    print("ready", flush=True)
    assert stop.wait(60)


def interrupted() -> None:
    raise KeyboardInterrupt


FOR_ALL = (agreed, waits_for_nobody, slow_save, patience, interrupted)
WHILE_LOADING = (raises,)
