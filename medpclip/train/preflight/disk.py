"""Can the run's folder be written, from everywhere seen, and does it have room?"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from medpclip.distributed import World
from medpclip.models.load import CHECKPOINTS
from medpclip.train.config import TrainConfig
from medpclip.train.preflight.findings import Finding, amount, listed
from medpclip.train.preflight.nodes import node_name

_PROBE_BYTES = 64 << 20
_PATIENCE = 5.0  # seconds until a file that one node has written is seen on the others
_KILL_WAIT = 30.0  # seconds between SIGTERM and SIGKILL, by Slurm's default


@dataclass
class Disk:
    """Attributes:
    checkpoint_bytes: of one checkpoint.
    run_bytes: of all checkpoints that stay at the same time, with the one being written.
    write_seconds: for one checkpoint, at the speed measured.
    """

    checkpoint_bytes: int
    run_bytes: int
    write_seconds: float


def checkpoint_bytes(config: TrainConfig, parameters: int, trained: int) -> int:
    """Weights, two moments for each that is trained, and the moving average; all in float32."""
    copies = 1 + (config.ema_decay is not None)
    return 4 * (copies * parameters + 2 * trained)


def check_disk(config: TrainConfig, world: World, one: int) -> tuple[list[Finding], Disk | None]:
    """Write a file, look for it on all nodes, and compare the room with what checkpoints need.

    Args:
        config: the run's.
        world: the ranks.
        one: bytes of a checkpoint.

    Returns:
        What was found, and figures, or None if nothing can be written.
    """
    folder = Path(world.from_first(str(_existing(config.out))))  # rank 0's: elsewhere there may be less of the path
    probe = folder / f".preflight-{world.from_first(uuid.uuid4().hex)}"
    error, seconds = _write(probe) if world.is_first else (None, 0.0)
    try:
        error, seconds = world.from_first([error, seconds])
        if error is not None:
            what = f"key 'out' is {config.out}, and {folder} can't be written ({error})"
            return [Finding("disk", "problem", what, "choose another 'out', or make room")], None
        blind = [node for node, seen in world.gather([node_name(), _sees(probe)]) if not seen]
    finally:
        if world.is_first:
            probe.unlink(missing_ok=True)
    found = []
    if blind:
        what = f"key 'out' is {config.out}, and {listed(sorted(set(blind)))} can't see what rank 0 writes there"
        found.append(Finding("disk", "problem", what, "choose a folder on a shared disk: all ranks read checkpoints"))
    disk = Disk(one, one * checkpoints_at_once(config), seconds * one / _PROBE_BYTES)
    mine = [shutil.disk_usage(folder).free, _size(config.out / CHECKPOINTS)] if world.is_first else None
    free, there = world.from_first(mine)
    each = f"{amount(one)} each, {disk.write_seconds:.1f} s to write"
    what = f"{amount(free)} free, checkpoints take {amount(disk.run_bytes)} ({each})"
    if free + there < disk.run_bytes:
        remedy = "make room, lower checkpoint.keep, or choose another 'out'; a quota is not seen here"
        return [*found, Finding("disk", "problem", what, remedy)], disk
    found.append(Finding("disk", "ok", what))
    if disk.write_seconds > _KILL_WAIT / 2:
        what = f"a checkpoint takes about {disk.write_seconds:.0f} s to write"
        remedy = f"see that a preempted job is given more (KillWait or GraceTime; {_KILL_WAIT:.0f} s by default)"
        found.append(Finding("disk", "warning", what, remedy))
    return found, disk


def checkpoints_at_once(config: TrainConfig) -> int:
    """How many a run has at its end, and the one that is written before the oldest goes."""
    settings = config.checkpoint
    for_ever = 0 if settings.keep_every_steps is None else config.steps // settings.keep_every_steps
    return settings.keep + 1 + for_ever


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _write(path: Path) -> tuple[str | None, float]:
    """What went wrong, and the seconds it took."""
    began = time.perf_counter()
    try:
        with open(path, "xb") as stream:
            block = os.urandom(1 << 20)  # some file systems compress
            for _ in range(_PROBE_BYTES >> 20):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        return error.strerror or type(error).__name__, 0.0
    return None, time.perf_counter() - began


def _sees(path: Path) -> bool:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        if path.is_file():
            return True
        time.sleep(0.2)
    return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
