"""What broke a run: a file per rank, written by the rank itself or by its supervisor, whoever notices.

They lie in RUN/failures/ATTEMPT/rank-00003.json. They are private, as logs are: tracebacks name paths, messages name keys.
Each start of a run is an attempt of its own, so a run that goes on isn't ended by what ended it before.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from medpclip.files import dump_json, write_atomically
from medpclip.train.survival.heartbeat import Stage

FAILURES = "failures"  # in the run's folder
_LONGEST = 2000  # characters of a message


class Kind(str, Enum):
    """How a rank failed."""

    ERROR = "error"  # what the user can mend
    BUG = "bug"  # any other exception
    OVERDUE = "overdue"  # no sign of life for longer than the stage allows
    DIED = "died"  # gone without a word
    WAITING = "waiting"  # overdue, but in an exchange with the others
    CUT_OFF = "cut off"  # an exchange with the others failed
    ENDED = "ended"  # because another rank failed


_ORDER = {Kind.WAITING: 1, Kind.CUT_OFF: 2, Kind.ENDED: 2}  # what may follow from another rank's failure; causes are 0


@dataclass(frozen=True)
class Failure:
    """Attributes:
    time: when it was noticed, seconds since 1970.
    rank, stage, step: who did what.
    message: one line.
    traceback: of a bug, or the stacks of a rank that had to be killed.
    """

    time: float
    rank: int
    kind: Kind
    stage: Stage
    step: int
    message: str
    traceback: str = ""

    @property
    def is_cause(self) -> bool:
        """Whether it broke by itself, as far as one can tell."""
        return self.kind not in _ORDER

    def __str__(self) -> str:
        return f"rank {self.rank}, step {self.step}, {self.stage.value}: {self.message}"


def new_attempt() -> str:
    """A name for this start of a run; rank 0 makes it, and tells the others."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(3)


def file_name(rank: int) -> str:
    """The name of a rank's record."""
    return f"rank-{rank:05d}.json"


def one_line(text: str) -> str:
    """Text without line breaks, and not without end."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def record(folder: Path, failure: Failure) -> bool:
    """Write it down, unless the rank's failure is written down already; False if that can't be done."""
    path = folder / file_name(failure.rank)
    fields = asdict(failure) | {"kind": failure.kind.value, "stage": failure.stage.name.lower()}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            write_atomically(path, dump_json(fields), 0o600)
    except OSError:
        return False
    return True


def read_failures(folder: Path) -> list[Failure]:
    """All that were written down, the first cause first."""
    failures = []
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith("rank-") and name.endswith(".json"))
    except OSError:
        return []
    for name in names:
        try:
            fields = json.loads((folder / name).read_bytes())
            fields |= {"kind": Kind(fields["kind"]), "stage": Stage[fields["stage"].upper()]}
            failures.append(Failure(**fields))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # on a network file system a file can be seen before what it holds; it is read again
    return in_order(failures)


def in_order(failures: Sequence[Failure]) -> list[Failure]:
    """Causes before what may follow from them, each by time."""
    return sorted(failures, key=lambda failure: (_ORDER.get(failure.kind, 0), failure.time, failure.rank))


def first_failure(folder: Path) -> Failure | None:
    """What broke an attempt, as far as one can tell: its earliest cause, or else its earliest failure."""
    return next(iter(read_failures(folder)), None)
