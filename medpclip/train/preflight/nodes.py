"""Are the nodes alike, and have they what a rank needs?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import medpclip
from medpclip.distributed import World
from medpclip.train.checkpoint import code_hash
from medpclip.train.config import TrainConfig
from medpclip.train.preflight.findings import Finding, amount, listed

_PACKAGES = ("torch", "open_clip_torch", "numpy", "deepspeed")
_CLOCK_SECONDS = 1.0  # skew that is worth a word
_FILES_PER_RANK, _FILES_PER_WORKER = 512, 128  # open shards (64), batches on their way as descriptors, libraries

Facts = dict[str, Any]


def node_name() -> str:
    """This node as Slurm calls it, else as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def local_facts(world: World, device: torch.device) -> Facts:
    """What this rank sees of its node, as JSON."""
    world.barrier()  # so that the clocks are read at one moment
    clock = time.time()
    gpu = device.type == "cuda"
    return {
        "node": node_name(),
        "local_rank": world.local_rank,
        "clock": clock,
        "software": {
            "medpclip": medpclip.__version__,
            "code": code_hash()[:12],
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "device": f"cuda ({torch.cuda.get_device_name(device)})" if gpu else device.type,
        "device_bytes": torch.cuda.mem_get_info(device)[0] if gpu else available_memory(),
        "memory": available_memory(),
        "shared_memory": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "cores": sorted(os.sched_getaffinity(0)),
    }


def check_nodes(facts: Sequence[Facts], config: TrainConfig) -> list[Finding]:
    """Compare what all ranks see.

    Args:
        facts: `local_facts` of each rank, in ranks' order.
        config: the run's.
    """
    nodes: dict[str, list[Facts]] = defaultdict(list)
    for rank in facts:
        nodes[rank["node"]].append(rank)
    first = facts[0]
    software = ", ".join(f"{name} {version}" for name, version in first["software"].items() if version)
    ranks = f"{len(facts)} rank{'s' * (len(facts) > 1)} on {len(nodes)} node{'s' * (len(nodes) > 1)}"
    return [
        Finding("nodes", "ok", f"{ranks}, {first['device']}, {amount(first['device_bytes'])} free; {software}"),
        *_differences(facts),
        *_devices(nodes),
        *_limits(nodes, config),
        *_clocks(facts),
    ]


def _differences(facts: Sequence[Facts]) -> list[Finding]:
    found = []
    for name in facts[0]["software"]:
        other = _unlike(facts, lambda rank, name=name: rank["software"][name])  # type: ignore[misc]
        if other:
            what = f"{name} is {facts[0]['software'][name]} on {facts[0]['node']}, another on {other}"
            found.append(Finding("nodes", "problem", what, "use one environment on all nodes, as on a shared disk"))
    other = _unlike(facts, lambda rank: rank["device"])
    if other:
        what = f"the device is {facts[0]['device']} on {facts[0]['node']}, another on {other}"
        found.append(Finding("nodes", "warning", what, "the slowest sets the pace: ask for one kind (--constraint)"))
    return found


def _devices(nodes: Mapping[str, Sequence[Facts]]) -> list[Finding]:
    """Whether each rank has a place of its own on its node."""
    doubled = [n for n, ranks in nodes.items() if len({rank["local_rank"] for rank in ranks}) < len(ranks)]
    if not doubled:
        return []
    what = f"several ranks share a device on {listed(doubled)}"
    return [Finding("nodes", "problem", what, "start one task per device, by srun or torchrun")]


def _limits(nodes: Mapping[str, Sequence[Facts]], config: TrainConfig) -> list[Finding]:
    workers = config.data.workers
    found = []
    need = _FILES_PER_RANK + _FILES_PER_WORKER * workers
    few = [node for node, ranks in nodes.items() if min(rank["files"] for rank in ranks) < need]
    if few:
        found.append(
            Finding(
                "nodes", "warning", f"fewer than {need} open files are allowed on {listed(few)}", f"ulimit -n {need}"
            )
        )
    crowded = [
        f"{node} ({len(cores)} for {len(ranks)} ranks and {len(ranks) * workers} workers)"
        for node, ranks in nodes.items()
        if (cores := set().union(*(rank["cores"] for rank in ranks))) and len(cores) < len(ranks) * (1 + workers)
    ]
    if crowded:
        remedy = "ask for more (--cpus-per-gpu), or lower data.workers"
        found.append(Finding("nodes", "warning", f"too few cores on {listed(crowded)}", remedy))
    return found


def _clocks(facts: Sequence[Facts]) -> list[Finding]:
    clocks = [rank["clock"] for rank in facts]
    skew = max(clocks) - min(clocks)
    if skew < _CLOCK_SECONDS:
        return []
    worst = facts[clocks.index(max(clocks))]["node"], facts[clocks.index(min(clocks))]["node"]
    what = f"clocks are {skew:.1f} s apart ({worst[0]} before {worst[1]})"
    return [Finding("nodes", "warning", what, "have an administrator look at time synchronisation; logs will mislead")]


def _unlike(facts: Sequence[Facts], key: Callable[[Facts], Any]) -> str:
    """The nodes that differ from the first."""
    return listed(sorted({rank["node"] for rank in facts if key(rank) != key(facts[0])}))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def available_memory() -> int:
    """Bytes of main memory that this process may still take: what the kernel has, or its control group's limit leaves."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().splitlines()[-1].split("::")[-1].lstrip("/")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return available if limit == "max" else min(available, int(limit) - int(used))
    except (OSError, ValueError):  # no second version of control groups
        return available
