"""What a training loop runs inside, so that it ends when it is broken and says why."""

from __future__ import annotations

import os
import re
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from medpclip.errors import MedpclipError
from medpclip.train.survival import supervisor
from medpclip.train.survival.failures import (
    FAILURES,
    Failure,
    Kind,
    file_name,
    in_order,
    one_line,
    read_failures,
    record,
)
from medpclip.train.survival.heartbeat import Heartbeat
from medpclip.train.survival.supervisor import Orders

if TYPE_CHECKING:
    from medpclip.distributed.world import World
    from medpclip.train.config import SupervisionConfig

# gloo raises plain RuntimeErrors
_CUT_OFF = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|Socket Timeout|Timed out")
_WAIT_FOR_CAUSE = 3.0  # seconds until another rank's supervisor has noticed its death, and the file system has told
_WAIT_FOR_OTHERS = 1.0


@contextmanager
def supervised(config: SupervisionConfig, run: Path, world: World, attempt: str) -> Iterator[Heartbeat]:
    """Watch this rank, in a process of its own, until the block ends.

    The job ends if this rank's stamps stop for longer than its stage allows, if this rank or another one dies, or if any
    raises. What broke is in RUN/failures/ATTEMPT, a file per rank that failed. The block's end, KeyboardInterrupt and
    SystemExit end the supervision, and leave no such file. After an exception a rank among several stays supervised, so
    that it ends within seconds even if its cleaning up waits for a rank that is gone; a process by itself doesn't.

    Args:
        config: the allowances.
        run: the run's folder; if it can't be written, a rank is still ended when its own stamps stop.
        world: which rank this is.
        attempt: from `failures.new_attempt`, the same on all ranks.

    Yields:
        The heartbeat, to be stamped with each new stage and step.

    Raises:
        MedpclipError: the first failure of any rank, naming rank, step and stage; or, unchanged, this process's own where
            it is alone or all ranks have the same. Bugs of this rank, if nothing else broke before, keep their traceback.
    """
    heartbeat = Heartbeat(config)
    folder = (run / FAILURES / attempt).absolute()
    process = _start(Orders(os.getpid(), world.rank, world.size, str(folder), heartbeat.descriptor))
    try:
        yield heartbeat
    except Exception as error:
        own = _as_failure(error, heartbeat, world.rank)
        if world.size == 1:
            _end(process, heartbeat)
            if own.kind is Kind.BUG:  # what the user can mend is said, and a run that was refused leaves nothing behind
                record(folder, own)
            raise
        written = record(folder, own)
        if not written:  # the supervisor would think that it died without a word
            _end(process, heartbeat)
        known = _wait_for_others(folder, own, world.size)
        alike = len(known) == world.size and len({failure.message for failure in known}) == 1
        if own.kind is Kind.ERROR and (alike or not written):
            raise
        if own.kind is Kind.BUG and known[0].rank == world.rank:
            raise
        raise MedpclipError(_in_words(known[0], attempt)) from error
    except BaseException:
        _end(process, heartbeat)
        raise
    _end(process, heartbeat)


def _start(orders: Orders) -> subprocess.Popen[bytes]:
    try:
        return supervisor.start(orders)
    except OSError as error:
        raise MedpclipError(
            f"can't start the process that watches this one ({error.strerror}); raise the limit of processes (ulimit -u)"
        ) from None


def _end(process: subprocess.Popen[bytes], heartbeat: Heartbeat) -> None:
    supervisor.dismiss(process)
    heartbeat.close()


def _as_failure(error: Exception, heartbeat: Heartbeat, rank: int) -> Failure:
    text = ""
    if isinstance(error, MedpclipError):
        kind, message = Kind.ERROR, str(error)
    else:
        text = "".join(traceback.format_exception(error))
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _CUT_OFF.search(str(error))):
            kind, message = Kind.CUT_OFF, "an exchange with the other ranks failed"
        else:
            kind, message = Kind.BUG, f"{type(error).__name__}: {error}"
    return Failure(time.time(), rank, kind, heartbeat.stage, heartbeat.step, one_line(message), text)


def _wait_for_others(folder: Path, own: Failure, size: int) -> list[Failure]:
    """What broke, the first cause first: another rank's may be known a moment later than what follows from it."""
    until = time.monotonic() + (_WAIT_FOR_OTHERS if own.is_cause else _WAIT_FOR_CAUSE)
    while True:
        others = [failure for failure in read_failures(folder) if failure.rank != own.rank]
        known = in_order([own, *others])
        complete = len(known) == size or (known[0].is_cause and not own.is_cause)
        if complete or time.monotonic() > until:
            return known
        time.sleep(0.05)


def _in_words(failure: Failure, attempt: str) -> str:
    place = f" (see {FAILURES}/{attempt}/{file_name(failure.rank)})" if failure.traceback else ""
    return f"{failure}{place}"
