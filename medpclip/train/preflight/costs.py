"""What the run will cost, from what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from medpclip.distributed import World
from medpclip.train.config import TrainConfig
from medpclip.train.preflight.disk import Disk
from medpclip.train.preflight.findings import amount, duration
from medpclip.train.preflight.shards import Corpus
from medpclip.train.preflight.trial import Trial


@dataclass
class Costs:
    """Attributes:
    hours: all steps at the measured pace, and all checkpoints; evaluation isn't in it.
    device_hours: the same times the number of ranks.
    images_per_second: of all ranks.
    """

    hours: float
    device_hours: float
    images_per_second: float


def estimate(config: TrainConfig, world: World, trial: Trial, disk: Disk) -> Costs:
    """The whole run, if all steps are like those of the trial."""
    steps = config.steps * trial.step_seconds
    saves = config.steps / config.checkpoint.every_steps
    if config.checkpoint.every_minutes is not None:
        saves = max(saves, steps / 60 / config.checkpoint.every_minutes)
    hours = (steps + saves * disk.write_seconds) / 3600
    return Costs(hours, hours * world.size, config.batch_size / trial.step_seconds)


def rows(
    config: TrainConfig, corpus: Corpus, trial: Trial, disk: Disk, costs: Costs, device: str
) -> list[tuple[str, str]]:
    """Name and value of each line of the table."""
    memory = trial.memory
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "moving average": memory.average,
        "activations": memory.activations,
        "process": memory.process,
    }
    shown = ", ".join(f"{name} {amount(count)}" for name, count in parts.items() if count)
    unit = "GPU" if device == "cuda" else "rank"
    where = "device memory" if device == "cuda" else "main memory"
    return [
        ("parameters", f"{trial.parameters / 1e6:,.1f} million, {trial.trained / 1e6:,.1f} million of them trained"),
        (f"{where} per rank", f"{amount(trial.peak)}: {shown}"),
        ("loader per rank", f"{amount(memory.loader)}, and of /dev/shm up to {amount(trial.shared_bytes)}"),
        ("step", f"{trial.step_seconds:.3f} s, {costs.images_per_second:,.1f} images/s"),
        ("time", f"{duration(costs.hours * 3600)} for {config.steps:,} steps; {costs.device_hours:,.2f} {unit}-hours"),
        ("disk", f"{amount(disk.run_bytes)} of checkpoints; {amount(corpus.bytes)} of shards to read"),
    ]
