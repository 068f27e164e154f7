"""Which rank this is, of how many, and how they agree.

The environment decides, so one command runs by itself, under torchrun, under the deepspeed launcher and under srun.
"""

from __future__ import annotations

import atexit
import datetime
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from medpclip.errors import MedpclipError

_PORTS = range(20000, 30000)  # below the ephemeral ports of Linux


@dataclass(frozen=True)
class World:
    """Attributes:
    rank, size: this process and how many there are.
    local_rank, local_size: the same on this node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Rank 0 writes files and talks; it decides nothing alone."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in ranks' order, on every rank. Values are JSON: lists, dicts with text keys, numbers, text.

        They go as compressed bytes through CPU memory (gloo), never as pickles.
        """
        if self.size == 1:
            return [value]
        data = zlib.compress(json.dumps(value).encode(), 1)
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        longest = int(max(lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(mine)] = mine
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        cut = (part[: int(n)].numpy().tobytes() for part, n in zip(parts, lengths, strict=True))
        return [json.loads(zlib.decompress(part)) for part in cut]

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over ranks of some numbers (float64), on every rank."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def from_first(self, value: Any) -> Any:
        """Rank 0's value (JSON) on every rank; the others' is not looked at."""
        return self.gather(value if self.is_first else None)[0]

    def agree(self, error: MedpclipError | None) -> None:
        """Raise on all ranks alike if any of them has an error: that of the lowest rank.

        Raises:
            MedpclipError: some rank has one.
        """
        for message in self.gather(None if error is None else str(error)):
            if message is not None:
                raise MedpclipError(message)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)


def join(device: torch.device | str, timeout_seconds: float = 1800.0, arrival_seconds: float = 1800.0) -> World:
    """The world that the environment describes, its process group begun where there are several ranks.

    Under torchrun, the deepspeed launcher or anything else that sets RANK, WORLD_SIZE and MASTER_ADDR, these count; under
    srun with several tasks, SLURM_PROCID and its like do, and the step's first node is the master. Otherwise the process
    is alone.

    Args:
        device: ranks on GPUs talk by NCCL, and by gloo about what lies in CPU memory.
        timeout_seconds: for any one exchange.
        arrival_seconds: for all ranks to be there.

    Raises:
        MedpclipError: the environment contradicts itself, or the ranks don't find one another.
    """
    world = from_environment(os.environ)
    if world.size == 1:
        return world
    if dist.is_initialized():
        return world
    os.environ.update(_rendezvous(os.environ), RANK=str(world.rank), WORLD_SIZE=str(world.size))
    os.environ.update(LOCAL_RANK=str(world.local_rank), LOCAL_WORLD_SIZE=str(world.local_size))
    gpu = torch.device(device).type == "cuda"
    arrival = datetime.timedelta(seconds=arrival_seconds)
    try:
        store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=arrival))
        # Exchanges may take long, since ranks wait for one that evaluates; arriving may not.
        if store.add("medpclip/arrived", 1) == world.size:
            store.set("medpclip/complete", "yes")
        store.wait(["medpclip/complete"], arrival)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=datetime.timedelta(seconds=timeout_seconds),
        )
    except (RuntimeError, ValueError) as error:  # torch's own network errors are RuntimeErrors
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MedpclipError(
            f"rank {world.rank} of {world.size} didn't find all others at {where} within {arrival_seconds:g} s ({reason}); "
            "see whether one of them has failed, or set MASTER_ADDR and a free MASTER_PORT"
        ) from None
    atexit.register(leave)  # a process that ends with the group's threads running may abort
    return world


def own_device(device: torch.device, world: World) -> torch.device:
    """The device of this rank, where `device` is any of a kind: of GPUs, the one with the rank's number on its node.

    Raises:
        MedpclipError: fewer GPUs than ranks.
    """
    if device.type != "cuda" or world.size == 1:
        return device
    count = torch.cuda.device_count()
    if count == 1 and world.local_size > 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        number = 0  # the launcher shows each rank its own only
    elif world.local_rank < count:
        number = world.local_rank
    else:
        raise MedpclipError(
            f"rank {world.rank} is number {world.local_rank} on its node, which has {count} GPUs; start one rank per GPU"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def leave() -> None:
    """End the process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_environment(environment: Mapping[str, str]) -> World:
    """The world that variables describe.

    Raises:
        MedpclipError: a variable is missing or no number, or a rank is out of range.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        needed = 2
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":  # the step's: a shell inside a job has the job's, too
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        needed = 3
    else:
        return World()
    values: list[int | None] = []
    for place, name in enumerate(names):
        text = environment.get(name)
        match = re.match(r"\d+", text or "")  # "2(x3)" is 2 on each of 3 nodes
        if match is None and (place < needed or text is not None):
            raise MedpclipError(
                f"environment variable {name} is {text!r}, expected a number; start by torchrun or srun"
            )
        values.append(int(match.group()) if match else None)
    rank, size, local_rank, local_size = values
    assert rank is not None and size is not None
    if not 0 <= rank < size:
        raise MedpclipError(
            f"environment variables {names[0]} and {names[1]} are {rank} and {size}; start by torchrun or srun"
        )
    return World(rank, size, rank if local_rank is None else local_rank, size if local_size is None else local_size)


def _rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the ranks meet, if the environment doesn't say: a Slurm step's first node, a port that follows from the job."""
    out = {}
    if "MASTER_ADDR" not in environment:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "127.0.0.1"
        out["MASTER_ADDR"] = first_node(nodes)
    if "MASTER_PORT" not in environment:
        # Steps of a job come one after the other, and keep away from the ports of the jobs numbered next.
        number = int(environment.get("SLURM_JOB_ID", "0")) * 97 + int(environment.get("SLURM_STEP_ID", "0")) % 97
        out["MASTER_PORT"] = str(_PORTS[number % len(_PORTS)])
    return out


def first_node(nodes: str) -> str:
    """The first name of a Slurm node list: "gpu[03-05,9],cpu1" -> "gpu03", "rack[1-2]n[3-4]" -> "rack1n3"."""
    match = re.match(r"(?:[^,\[]+|\[[^\]]*\])+", nodes)
    assert match is not None, nodes
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match.group())
