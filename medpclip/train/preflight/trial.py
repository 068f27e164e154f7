"""A few steps of the real run on its real data, thrown away: do they go through, how long do they take, in how much memory?"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.batch import Batch
from medpclip.data.loading.loader import Loader, make_loader, open_dataset
from medpclip.distributed import World
from medpclip.errors import MedpclipError
from medpclip.models import RegionCLIP
from medpclip.train.config import TrainConfig
from medpclip.train.engines import Engine
from medpclip.train.optimizer import freeze_parts, learning_rate
from medpclip.train.preflight.findings import Finding, amount
from medpclip.train.preflight.nodes import Facts, node_name
from medpclip.train.start import make_anchor, make_engine, partition
from medpclip.train.step import prepare, run_step

_TIMED = 2  # steps, after one that warms up
_PREFETCHED = 4  # batches that each loader process keeps ready
_FULL = 0.9  # of the memory, from where on a bigger batch of regions may break the run


@dataclass
class Memory:
    """Bytes of a rank, at its peak. Weights, gradients and the optimizer's state follow from the engine's way to share
    them out; activations are what the measured peak has besides. `process` is Python, libraries and the data's index
    before there is a model; `loader` is main memory of the rank's loader processes."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    process: int
    loader: int


@dataclass
class Trial:
    """Attributes:
    parameters, trained: of the whole model.
    memory: of the rank that takes most.
    peak: measured, on the device (or in main memory, without one), of the rank that takes most.
    step_seconds: of the slowest rank.
    shared_bytes: of /dev/shm that a rank's loader may fill.
    """

    parameters: int
    trained: int
    memory: Memory
    peak: int
    step_seconds: float
    shared_bytes: int


def count_parameters(model: RegionCLIP, config: TrainConfig) -> tuple[int, int]:
    """All, and those that aren't frozen; freezes what `config` says."""
    freeze_parts(model, config.freeze)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def run_trial(
    model: RegionCLIP, config: TrainConfig, world: World, device: torch.device, sizes: tuple[int, int]
) -> Trial:
    """Take steps and measure; all ranks together.

    Args:
        model: as the run would begin with.
        config: of the run.
        world: the ranks.
        device: of this rank.
        sizes: all parameters, and those that are trained.

    Raises:
        MedpclipError: a step can't be taken: out of memory, unreadable data, an engine that can't begin.
    """
    before = _Peak(device)
    try:
        peak, seconds, workers, batch_bytes = _steps(model, config, world, device)
    except RuntimeError as error:  # torch's, CUDA's and the process group's own
        raise MedpclipError(_explain(error)) from None
    memory = engine_memory(config, world, sizes)
    process = 0 if device.type == "cuda" else before.at_start
    known = memory.weights + memory.gradients + memory.optimizer + memory.average + process
    memory.activations, memory.process, memory.loader = max(0, peak - known), process, workers
    rows = world.gather([peak, seconds, vars(memory), batch_bytes])
    fullest = max(rows, key=lambda row: row[0])
    shared = max(row[3] for row in rows) * _PREFETCHED * config.data.workers
    return Trial(*sizes, Memory(**fullest[2]), fullest[0], max(row[1] for row in rows), shared)


def check_trial(trial: Trial, facts: list[Facts], device: torch.device) -> list[Finding]:
    """Is there enough memory on each node?

    Args:
        trial: what was measured.
        facts: of each rank, from before the trial.
        device: of the run.
    """
    rate = f"{trial.step_seconds:.3f} s a step, peak {amount(trial.peak)} a rank"
    found = [Finding("dry batch", "ok", f"forward, losses, backward and step on real data: {rate}")]
    smaller = "lower micro_batch_size, or set engine.activation_checkpointing"
    nodes = {rank["node"]: [one for one in facts if one["node"] == rank["node"]] for rank in facts}
    for node, ranks in nodes.items():
        main = trial.memory.loader + (0 if device.type == "cuda" else trial.peak)
        for name, need, free, remedy in (
            ("the device's memory", trial.peak, ranks[0]["device_bytes"] if device.type == "cuda" else None, smaller),
            ("main memory", main * len(ranks), ranks[0]["memory"], f"{smaller}, or lower data.workers"),
            ("/dev/shm", trial.shared_bytes * len(ranks), ranks[0]["shared_memory"],
             "lower data.workers, or give a container more (--shm-size)"),
        ):  # fmt: skip
            if free is not None and need > _FULL * free:
                level = "problem" if need > free else "warning"
                what = f"{name} of {node}: {amount(need)} are needed, {amount(free)} are free"
                found.append(Finding("memory", level, what, remedy))  # type: ignore[arg-type]
    return found


def _steps(model: RegionCLIP, config: TrainConfig, world: World, device: torch.device) -> tuple[int, float, int, int]:
    """Peak bytes, seconds a step, bytes of loader processes, bytes of a batch."""
    micro, micros = partition(config, world)
    preprocess, lexicon = model.preprocess, Lexicon.load()
    size, fill, window = preprocess.image_size, preprocess.fill, model.fusion.window
    dataset = open_dataset(config.data, size, model.mask_grid, fill, config.seed, window)
    anchor = make_anchor(model, device) if config.loss.anchor_weight else None
    engine = make_engine(model, config, world, device)
    loader = make_loader(dataset, micro, 0, world.rank, world.size, micros)
    peak = _Peak(device)
    times = []
    batches: list[Batch] = []
    for step in range(1 + _TIMED):
        world.barrier()
        began = time.perf_counter()
        batches = _batches(loader, micros, world)
        inputs = prepare(batches, lexicon, engine.model, config, step, world)
        run_step(engine, inputs, config.loss, world, anchor)
        _finish(engine, config, step)
        times.append(time.perf_counter() - began)
    workers = sum(_resident(child.pid) for child in multiprocessing.active_children() if child.pid)
    return peak.read(), sum(times[1:]) / _TIMED, workers, _batch_bytes(batches[0])


def _batches(loader: Loader, count: int, world: World) -> list[Batch]:
    """A step's batches; a rank that can't read its own says so on all."""
    batches, problem = [], None
    try:
        batches = [next(loader) for _ in range(count)]
    except MedpclipError as error:
        problem = error
    world.agree(problem)
    return batches


def _finish(engine: Engine, config: TrainConfig, step: int) -> None:
    engine.step(learning_rate(step, config.steps, config.optimizer))
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)


def engine_memory(config: TrainConfig, world: World, sizes: tuple[int, int]) -> Memory:
    """What the engine keeps on a rank's device (Rajbhandari et al. 2020, arXiv 1910.02054, section 3, for ZeRO)."""
    parameters, trained = sizes
    settings = config.engine
    zero = settings.zero if settings.kind == "deepspeed" else 0
    half = config.precision in ("pure_bf16", "fp16")
    width = 2 if half else 4
    state = 0 if settings.offload else (8 + 4 * half) * trained  # two moments, and the float32 masters
    return Memory(
        weights=width * parameters // (world.size if zero >= 3 else 1),
        gradients=width * trained // (world.size if zero >= 2 else 1),
        optimizer=state // (world.size if zero >= 1 else 1),
        average=0 if config.ema_decay is None else 4 * parameters,
        activations=0,
        process=0,
        loader=0,
    )


class _Peak:
    """The largest use of memory since it was made: of the device, or of the process where there is none."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.at_start = torch.cuda.memory_allocated(device)
        else:
            self.at_start = _status("VmRSS")
            try:
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
            except OSError:
                return  # then it is that of the process's whole life, which is no smaller

    def read(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        return _status("VmHWM")


def _status(key: str) -> int:
    """Bytes that the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _resident(process: int) -> int:
    """Bytes of a process that it doesn't share, with its part of those that it shares."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _batch_bytes(batch: Batch) -> int:
    values = [getattr(batch, field.name) for field in fields(batch)]
    if batch.windows is not None:
        values += [batch.windows.pixels, batch.windows.rects]
    tensors = [value for value in values if isinstance(value, torch.Tensor)] + list(batch.prompts.values())
    return sum(tensor.nbytes for tensor in tensors)


def _explain(error: RuntimeError) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in reason:
        return (
            f"{node_name()}: out of memory ({reason}); lower micro_batch_size, or set engine.activation_checkpointing"
        )
    return f"{node_name()}: {reason}; see what comes before it, on this rank and the others"
