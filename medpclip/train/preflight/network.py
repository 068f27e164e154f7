"""How fast do ranks talk?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from medpclip.distributed import World
from medpclip.distributed.exchange import pass_on, total
from medpclip.train.preflight.findings import Finding, listed
from medpclip.train.preflight.nodes import node_name

_MIB = 1 << 20
_SIZES = {"1 MB": 1 * _MIB, "64 MB": 64 * _MIB}
_PASSED = 8 * _MIB
_SLOW_LINK = 3.0  # times slower than the median link
_SLOW_SHARE = 0.3  # of a step's time that goes into exchanging gradients


@dataclass
class Network:
    """Attributes:
    latency: seconds that a sum of one number over all ranks takes.
    bandwidth: bytes per second of a sum over all ranks, by size; as NCCL's tests count it ("bus bandwidth").
    """

    latency: float
    bandwidth: dict[str, float]

    def seconds(self, count: float, size: int) -> float:
        """How long it takes to sum so many bytes over so many ranks."""
        return 2 * (size - 1) / size * count / self.bandwidth["64 MB"]


def check_network(world: World, device: torch.device) -> tuple[list[Finding], Network | None]:
    """Sum numbers over all ranks, and pass some around the ring; None for a single rank."""
    if world.size == 1:
        return [Finding("network", "ok", "a single rank")], None
    one = torch.ones(1, device=device)
    latency = _seconds(lambda: total(one, world), device, 20)
    bandwidth = {}
    for name, size in _SIZES.items():
        data = torch.zeros(size // 4, device=device)
        seconds = _seconds(lambda data=data: total(data, world), device, 5)  # type: ignore[misc]
        bandwidth[name] = 2 * (world.size - 1) / world.size * size / seconds
    # Everybody has been in all of them, for as long as the slowest.
    sums = world.total([latency, *bandwidth.values()])
    mean = [value / world.size for value in sums]
    network = Network(mean[0], dict(zip(bandwidth, mean[1:], strict=True)))
    rates = ", ".join(f"{rate / 1e9:.2f} GB/s at {name}" for name, rate in network.bandwidth.items())
    found = [Finding("network", "ok", f"all ranks reach one another: {network.latency * 1e6:,.0f} us, {rates}")]
    return found + _slow_links(world, device), network


def check_exchange(network: Network | None, gradient_bytes: int, size: int, step_seconds: float) -> list[Finding]:
    """Is the network too slow for this model and batch?"""
    if network is None:
        return []
    share = network.seconds(gradient_bytes, size) / step_seconds
    if share < _SLOW_SHARE:
        return []
    return [
        Finding(
            "network",
            "warning",
            f"exchanging gradients takes {share:.0%} of a step",
            "raise batch_size, or look whether the fast network is used (NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME)",
        )
    ]


def _slow_links(world: World, device: torch.device) -> list[Finding]:
    """Each rank sends to the next one, all at once: a slow link is seen at its two ends."""
    data = [torch.zeros(_PASSED // 4, device=device)]
    mine = _seconds(lambda: pass_on(data, world), device, 3)
    everyone = world.gather([node_name(), mine])
    middle = median(seconds for _, seconds in everyone)
    slow = [f"{node} ({seconds / middle:.1f} times the median)" for node, seconds in everyone
            if seconds > _SLOW_LINK * middle and seconds > 0.1]  # fmt: skip
    if not slow:
        return []
    remedy = "leave the node out (--exclude), and tell an administrator"
    return [Finding("network", "warning", f"slow to reach: {listed(slow)}", remedy)]


def _seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median time of some rounds, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        _finish(device)
        began = time.perf_counter()
        work()
        _finish(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
