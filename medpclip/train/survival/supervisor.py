"""The process that watches one rank, and ends it when the run is broken.

It is a program of its own, not a fork: it holds none of the rank's sockets, which would hide the rank's death from the
others, none of its memory, and doesn't care which threads the rank had. It does as little as it can: a rank that hangs in
native code, or holds the interpreter's lock, or is stopped, can't keep it from working, nor can a file system that hangs.
(Our design.)
"""

from __future__ import annotations

import errno
import faulthandler
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from medpclip.train.survival.failures import Failure, Kind, in_order, read_failures, record
from medpclip.train.survival.heartbeat import PAGE, Beat, read
from medpclip.train.survival.process import Process, Workers

STACKS_SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGUSR2)  # real-time signals are nobody's business but ours
# What schedulers, launchers and terminals send to all processes of a job; the rank's to answer.
_NOT_FOR_US = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT)
_ROOT = Path(__file__).parents[3]  # where this package is found
_READY = b"."
_MOST_STACKS = 1 << 18  # bytes
_IN_EXCHANGE = re.compile(r'File ".*[/\\](?:torch[/\\]distributed|deepspeed[/\\]comm)[/\\]')
_T = TypeVar("_T")


@dataclass(frozen=True)
class Orders:
    """What a supervisor is told.

    Attributes:
        parent: the rank's process, which starts the supervisor.
        rank, size: which of how many.
        folder: of the attempt's failures, absolute.
        descriptor: the heartbeat's.
        tick: seconds between looks at the rank.
        look: seconds between looks for other ranks' failures, which cost the file system something.
        grace: seconds in which a rank is to end by itself when any has failed.
        patience: seconds to wait for the file system, for stacks, and for an earlier cause.
    """

    parent: int
    rank: int
    size: int
    folder: str
    descriptor: int
    tick: float = 0.5
    look: float = 2.0
    grace: float = 10.0
    patience: float = 1.5


def start(orders: Orders) -> subprocess.Popen[bytes]:
    """Start the process that follows the orders, about this one; it ends with it, or by `dismiss`.

    Raises:
        OSError: the system has no room for another process, or it doesn't come up.
    """
    # A dump needs neither a lock nor this interpreter's help; without the handler the signal would end this process.
    faulthandler.register(STACKS_SIGNAL, file=orders.descriptor, all_threads=True, chain=False)
    # Isolated: neither the environment nor the folder of a user's script can put another module before Python's own.
    code = f"import sys; sys.path.append({str(_ROOT)!r}); from {__name__} import main; main()"
    # Blocked signals stay blocked in the new program, from its first moment.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_US)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", code, json.dumps(asdict(orders))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=[orders.descriptor],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        assert process.stdout is not None
        with process.stdout as stream:
            if stream.read(1) != _READY:
                raise ChildProcessError(errno.ECHILD, "it ended at once")
    except BaseException:
        dismiss(process)
        raise
    return process


def dismiss(process: subprocess.Popen[bytes]) -> None:
    """End the supervision. A supervisor does nothing that can't be cut off at any moment."""
    process.kill()
    process.wait()
    faulthandler.unregister(STACKS_SIGNAL)


def main() -> None:
    """Follow the orders in the command line."""
    supervisor = Supervisor(Orders(**json.loads(sys.argv[1])))
    os.write(1, _READY)
    os.dup2(0, 1)
    supervisor.watch()
    sys.stderr.flush()
    os._exit(0)  # without waiting for a thread that the file system holds


class Supervisor:
    """Watches the process that started it."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._folder = Path(orders.folder)
        self._memory = mmap.mmap(orders.descriptor, PAGE, prot=mmap.PROT_READ)
        self._parent = Process(orders.parent)  # the process, if it still is our parent after this
        self._workers = Workers(orders.parent)
        self._failed = threading.Event()

    def watch(self) -> None:
        """Until the rank ends or has to be ended."""
        threading.Thread(target=self._look_for_failures, daemon=True).start()
        tick = self._orders.tick
        beat, silent, failing, before = read(self._memory), 0.0, 0.0, time.monotonic()
        while os.getppid() == self._orders.parent:
            self._workers.look()
            time.sleep(tick)
            now = time.monotonic()
            # Counted in our own ticks: while a whole job is suspended, nobody owes a sign of life.
            passed, before = min(now - before, 2 * tick), now
            latest = read(self._memory)
            silent = silent + passed if latest.stamps == beat.stamps else 0.0
            beat = latest
            failing += passed if self._failed.is_set() else 0.0
            if os.getppid() != self._orders.parent:
                break
            if silent > beat.allowance:
                stacks = self._stacks()
                if read(self._memory).stamps == beat.stamps:  # else it came back just in time
                    return self._end_overdue(beat, stacks)
            if failing > self._orders.grace:
                return self._end_after_failure(beat)
        self._mourn(beat)

    def _look_for_failures(self) -> None:
        while not read_failures(self._folder):
            time.sleep(self._orders.look)
        self._failed.set()

    def _end_overdue(self, beat: Beat, stacks: str) -> None:
        waiting = any(_IN_EXCHANGE.match(frame) for frame in re.findall(r"first\):\n\s*(.*)", stacks))
        message = f"no sign of life for more than {beat.allowance:g} s (supervision.{beat.setting}), killed"
        if waiting:
            message += ", while waiting for other ranks"
        self._end(self._failure(beat, Kind.WAITING if waiting else Kind.OVERDUE, message, stacks))

    def _end_after_failure(self, beat: Beat) -> None:
        message = f"killed, having not ended within {self._orders.grace:g} s after the first failure"
        self._end(self._failure(beat, Kind.ENDED, message, self._stacks()))

    def _end(self, failure: Failure) -> None:
        recorded = self._patiently(lambda: record(self._folder, failure), False)
        self._workers.look()
        if os.getppid() == self._orders.parent:
            self._parent.send(signal.SIGKILL)
        self._workers.kill()
        self._tell(failure, recorded)

    def _mourn(self, beat: Beat) -> None:
        """The rank is gone, and hasn't ended its supervision before."""
        self._workers.kill()
        known = self._read_failures()
        if any(failure.rank == self._orders.rank for failure in known):
            return  # it has spoken for itself
        message = "died without a word: killed from outside, out of memory, or a crash in native code"
        kind = Kind.ENDED if any(failure.is_cause for failure in known) else Kind.DIED
        failure = self._failure(beat, kind, message)
        self._tell(failure, self._patiently(lambda: record(self._folder, failure), False))

    def _failure(self, beat: Beat, kind: Kind, message: str, stacks: str = "") -> Failure:
        return Failure(time.time(), self._orders.rank, kind, beat.stage, beat.step, message, stacks)

    def _stacks(self) -> str:
        """The stacks of all threads of the rank, if it can still write them (faulthandler does; it needs no lock)."""
        descriptor = self._orders.descriptor
        self._parent.send(STACKS_SIGNAL)
        size, until = PAGE, time.monotonic() + self._orders.patience
        while time.monotonic() < until:
            time.sleep(0.1)
            latest = os.fstat(descriptor).st_size
            if latest == size > PAGE:
                break
            size = latest
        return os.pread(descriptor, _MOST_STACKS, PAGE).decode(errors="replace")

    def _tell(self, own: Failure, recorded: bool) -> None:
        """Say what broke the run, which may be another rank that is just about to say so."""
        failures, until = [own], time.monotonic() + self._orders.patience
        while self._orders.size > 1 and time.monotonic() < until and len(failures) < self._orders.size:
            time.sleep(0.1)
            failures = self._read_failures()
            if all(failure.rank != own.rank for failure in failures):
                failures = in_order([*failures, own])
        text = f"medpclip: error: {failures[0]}\n"
        if not recorded:  # nobody will find the stacks elsewhere
            text += own.traceback
        with suppress(OSError):
            os.write(sys.stderr.fileno(), text.encode())

    def _read_failures(self) -> list[Failure]:
        return self._patiently(lambda: read_failures(self._folder), [])

    def _patiently(self, call: Callable[[], _T], otherwise: _T) -> _T:
        """What `call` returns, unless the file system keeps it waiting."""
        results: list[_T] = []
        thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
        thread.start()
        thread.join(self._orders.patience)
        return results[0] if results else otherwise
