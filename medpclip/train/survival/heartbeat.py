"""What a rank is doing, in memory that its supervisor sees."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from medpclip.train.config import SupervisionConfig

PAGE = mmap.PAGESIZE  # the heartbeat has the first page of the file, stacks follow it


class Stage(Enum):
    """What a rank does; the value is its name in messages."""

    START = "starting"
    LOAD = "loading"
    STEP = "training"
    SAVE = "saving"
    EVALUATE = "evaluating"


_STAGES = tuple(Stage)
_SETTINGS = {
    Stage.START: "start_seconds",
    Stage.LOAD: "step_seconds",
    Stage.STEP: "step_seconds",
    Stage.SAVE: "save_seconds",
    Stage.EVALUATE: "evaluate_seconds",
}
_SLOT = struct.Struct("<QqdBB")
_SLOTS = (16, 64)  # offsets; byte 0 says which of the two is valid


class Beat(NamedTuple):
    """Attributes:
    stamps: how many so far, so that equal beats mean no sign of life between them.
    stage, step: as stamped.
    allowance: seconds until the next stamp is due; infinite for no limit.
    setting: the key of `SupervisionConfig` that says so.
    """

    stamps: int
    stage: Stage
    step: int
    allowance: float
    setting: str


class Heartbeat:
    """Signs of life of this process.

    A stamp goes to the slot that isn't valid, and then makes it valid: whoever reads sees one stamp or the next, also if
    this process is stopped between two bytes.

    Attributes:
        descriptor: of the memory's file; a process that inherits it can `read`. The rest of the file, behind the first
            page, takes the process's stacks.
        stage, step: the last stamp's.
    """

    def __init__(self, config: SupervisionConfig) -> None:
        limits = {stage: getattr(config, setting) for stage, setting in _SETTINGS.items()}
        self._terms = {
            stage: (float("inf") if limit is None else float(limit), _STAGES.index(stage))
            for stage, limit in limits.items()
        }
        self.descriptor = shared_file()
        os.ftruncate(self.descriptor, PAGE)
        os.lseek(self.descriptor, PAGE, os.SEEK_SET)
        self._memory = mmap.mmap(self.descriptor, PAGE)
        self._count = 0
        self._first_step: int | None = None
        self.stamp(Stage.START, 0)

    def stamp(self, stage: Stage, step: int) -> None:
        """Say that this rank lives, and what it begins to do now.

        Loading and training the first step have the start's allowance, since compiling belongs to them.
        """
        self.stage, self.step = stage, step
        allowance, setting = self._terms[stage]
        if stage is Stage.LOAD or stage is Stage.STEP:
            if self._first_step is None:
                self._first_step = step
            if step == self._first_step:
                allowance, setting = self._terms[Stage.START]
        self._count += 1
        slot = self._count & 1
        _SLOT.pack_into(self._memory, _SLOTS[slot], self._count, step, allowance, _STAGES.index(stage), setting)
        self._memory[0] = slot

    def close(self) -> None:
        """Give the memory back; no stamp may follow."""
        self._memory.close()
        os.close(self.descriptor)


def read(memory: mmap.mmap) -> Beat:
    """The last stamp in a heartbeat's first page."""
    stamps, step, allowance, stage, setting = _SLOT.unpack_from(memory, _SLOTS[memory[0]])
    return Beat(stamps, _STAGES[stage], step, allowance, _SETTINGS[_STAGES[setting]])


def shared_file() -> int:
    """A descriptor of a file that has no name: in memory where the system can do it, so a full disk doesn't matter."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("medpclip-heartbeat")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
