"""Processes that can be killed without hitting a stranger that has got their number."""

from __future__ import annotations

import os
import signal
from pathlib import Path


class Process:
    """A process that was alive when this object was made.

    Linux gives a handle on it (pidfd, since 5.3). On older systems its start time has to be the same when it is killed.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._started = _start_time(pid)
        self._handle: int | None = None
        if hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal"):
            try:
                self._handle = os.pidfd_open(pid)
            except OSError:  # an older kernel, or gone already
                self._handle = None

    def send(self, number: int) -> None:
        """Send a signal, if the process is still there."""
        try:
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, number)
            elif _start_time(self.pid) == self._started:
                os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # gone; or its number is a stranger's now

    def close(self) -> None:
        """Forget the process."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class Workers:
    """The forks of a process, such as a loader's workers: children with its own command line.

    Other programs that it started are left to end by themselves: a tracker's may have something to send yet.
    """

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._command = _command(parent)
        self._known: dict[int, Process] = {}
        self._others: set[int] = set()

    def look(self) -> None:
        """Note who is there; to be called by another child of the same process. A system without /proc has none."""
        try:
            text = Path(f"/proc/{self._parent}/task/{self._parent}/children").read_text()
        except OSError:
            return
        if os.getppid() != self._parent:  # it has just died, and they aren't listed as its children any more
            return
        children = {int(word) for word in text.split()} - {os.getpid()}
        for pid in set(self._known) - children:
            self._known.pop(pid).close()
        self._others &= children
        for pid in children - set(self._known) - self._others:
            process = Process(pid)
            if _command(pid) == self._command and _parent_of(pid) == self._parent:
                self._known[pid] = process
            else:
                process.close()
                self._others.add(pid)

    def kill(self) -> None:
        """End them all."""
        for process in self._known.values():
            if _command(process.pid) == self._command:  # not what was about to become another program
                process.send(signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, behind the name, which may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _start_time(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[19] if fields else None


def _parent_of(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _command(pid: int) -> bytes | None:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
