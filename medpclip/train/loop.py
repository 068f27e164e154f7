"""The training loop: the same on every rank."""

from __future__ import annotations

import copy
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from tqdm import tqdm

from medpclip.config import dump_yaml, to_mapping
from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import Loader, make_loader, open_dataset
from medpclip.distributed import World, join
from medpclip.distributed.world import leave
from medpclip.errors import MedpclipError
from medpclip.files import write_atomically
from medpclip.models import RegionCLIP
from medpclip.models.device import pick_device
from medpclip.models.load import CHECKPOINTS, META, build_model, find_checkpoint
from medpclip.train.checkpoint import resume, save_checkpoint, trained_on
from medpclip.train.config import TrainConfig
from medpclip.train.engines import Engine
from medpclip.train.engines.local import LocalEngine
from medpclip.train.flops import count_flops
from medpclip.train.metrics import KEYS, Interval, Row
from medpclip.train.optimizer import freeze_parts, learning_rate
from medpclip.train.patch_drop import kept_count
from medpclip.train.peak import peak_flops
from medpclip.train.step import Anchor, prepare, run_step
from medpclip.train.survival.failures import new_attempt
from medpclip.train.survival.guard import supervised
from medpclip.train.survival.heartbeat import Heartbeat, Stage
from medpclip.train.tracking import Tracker

_WEEK = 7 * 24 * 3600.0
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def train(
    config: TrainConfig, may_resume: bool = False, allow_other_environment: bool = False
) -> signal.Signals | None:
    """Run `config` to its end, or until SIGTERM, SIGINT or SIGUSR1, after which `may_resume` goes on exactly.

    Ranks are found in the environment (`medpclip.distributed.join`); each of them calls this.

    Args:
        config: the run.
        may_resume: go on from the newest checkpoint in `config.out`, if there is one.
        allow_other_environment: go on also with another device, other versions or other ranks, where rounding, samples
            or random numbers may differ.

    Returns:
        The signal that stopped the run, or None at its end.

    Raises:
        MedpclipError: the folder holds a run and `may_resume` is off; data, model or checkpoint unusable; loss not finite;
            another rank failed.
    """
    device = pick_device(config.device)
    # Ranks wait for the first one while it saves or evaluates.
    limits = (config.supervision.save_seconds, config.supervision.evaluate_seconds, config.supervision.start_seconds)
    world = join(device, max(_WEEK if limit is None else limit for limit in limits))
    if device.type == "cuda" and world.size > 1:
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    with _stop_signals() as stopped:  # until the ranks have left one another: launchers signal those that are last
        try:
            attempt = world.from_first(new_attempt())
            with supervised(config.supervision, config.out, world, attempt) as heartbeat:
                stop = _Run(config, world, device, stopped, heartbeat).go(may_resume, allow_other_environment)
                world.barrier()
            return stop
        finally:
            leave()


class _Run:
    """One rank's part of a run."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        device: torch.device,
        stopped: list[signal.Signals],
        heartbeat: Heartbeat,
    ) -> None:
        self.config, self.world, self.device = config, world, device
        self.stopped, self.heartbeat = stopped, heartbeat
        self.micro, self.micros = partition(config, world)
        self.lexicon = Lexicon.load()

    def go(self, may_resume: bool, allow_other_environment: bool) -> signal.Signals | None:
        config, world = self.config, self.world
        checkpoint = self._checkpoint(may_resume)
        torch.manual_seed(config.seed)
        model = build_model(config.model)
        dataset = open_dataset(
            config.data, model.preprocess.image_size, model.mask_grid, model.preprocess.fill, config.seed
        )
        self._prepare_evaluation(model)
        self.anchor = make_anchor(model, self.device) if config.loss.anchor_weight else None
        freeze_parts(model, config.freeze)
        # Counted before an engine shards the parameters.
        kept = kept_count(model.grid, config.patch_drop)
        self.flops = count_flops(model, kept, anchor=self.anchor is not None)
        self.engine = make_engine(model, config, world, self.device)
        self.peak = peak_flops(self.device, config.precision, config.tracking.peak_tflops).flops * world.size
        step = 0
        if checkpoint is not None:
            step = resume(self.engine, config, checkpoint, world, allow_other_environment)
        self._begin_folder()
        self.tracker = Tracker(config.out, config.tracking, to_mapping(config), step, world.is_first)
        try:
            loader = make_loader(dataset, self.micro, step * self.micros, world.rank, world.size, self.micros)
            return self._steps(loader, step)
        finally:
            self.tracker.close()

    def _checkpoint(self, may_resume: bool) -> Path | None:
        """The checkpoint to go on from, as rank 0 sees it."""
        out, problem, found = self.config.out, None, None
        if self.world.is_first and any((out / CHECKPOINTS).glob(f"step-*/{META}")):
            found = str(find_checkpoint(out))
            if not may_resume:
                problem = MedpclipError(
                    f"{out}: holds a run already; add --resume to go on with it, or choose another 'out'"
                )
        self.world.agree(problem)
        found = self.world.from_first(found)
        return Path(found) if found else None

    def _begin_folder(self) -> None:
        """Rank 0 writes; all hear of it if it can't."""
        out, problem = self.config.out, None
        if self.world.is_first:
            try:
                out.mkdir(parents=True, exist_ok=True)
                write_atomically(out / "config.yaml", dump_yaml(self.config).encode())
            except OSError as error:
                problem = MedpclipError(f"{out}: can't be written ({error.strerror}); choose another 'out'")
        self.world.agree(problem)

    def _prepare_evaluation(self, model: RegionCLIP) -> None:
        """Rank 0 reads the tasks now: a mistake in one shall not show after hours."""
        self.evaluator, problem = None, None
        if self.world.is_first and self.config.evaluation.tasks:
            from medpclip.evaluation.exposure import TrainedOn
            from medpclip.train.evaluate import Evaluator, read_tasks

            try:
                tasks = read_tasks(self.config.evaluation.tasks)
                seen = TrainedOn(**trained_on(self.config))
                self.evaluator = Evaluator(model, tasks, self.device, self.config.out, seen)
            except MedpclipError as error:
                problem = error
        self.world.agree(problem)

    def _steps(self, loader: Loader, step: int) -> signal.Signals | None:
        config = self.config
        saved_at = time.monotonic()
        interval, skips = Interval(self.flops, self.peak), 0
        stop = self._asked_to_stop()
        with tqdm(
            total=config.steps, initial=step, unit="step", desc="train", dynamic_ncols=True,
            mininterval=_bar_interval(), disable=not self.world.is_first,
        ) as bar:  # fmt: skip
            while step < config.steps and not stop:
                rate = learning_rate(step, config.steps, config.optimizer)
                minutes = (time.monotonic() - saved_at) / 60
                overdue = minutes >= (config.checkpoint.every_minutes or math.inf)
                row, stop, overdue = self._step(loader, step, rate, overdue)
                skips = self._count_skips(skips, row, step)
                interval.rows.append(row)
                step += 1
                bar.update()
                at_end = step == config.steps
                if step % config.tracking.every_steps == 0 or at_end or stop:
                    values = interval.summary() | {"lr": rate}
                    self.tracker.log(step, "train", values)
                    hits = f"{values['region_hit_rate']:.0%}"
                    bar.set_postfix(loss=f"{values['loss']:.3f}", hits=hits, refresh=False)
                    interval = Interval(self.flops, self.peak)
                if step % config.checkpoint.every_steps == 0 or at_end or overdue or stop:
                    self.heartbeat.stamp(Stage.SAVE, step)
                    save_checkpoint(self.engine, config, step, self.world)
                    saved_at = time.monotonic()
                if self._evaluates_at(step) and not (stop and not at_end):
                    self._evaluate(step)
                    interval.started = time.monotonic()
        if stop and step < config.steps:
            if self.world.is_first:
                tqdm.write(f"stopped by {stop.name} after step {step}; continue with --resume")
            return stop
        return None

    def _step(self, loader: Loader, step: int, rate: float, overdue: bool) -> tuple[Row, signal.Signals | None, bool]:
        """One optimizer step: its row for the log, and whether the ranks agree to stop, or to save, after it."""
        config, world = self.config, self.world
        self.heartbeat.stamp(Stage.LOAD, step + 1)
        began = time.monotonic()
        batches = [next(loader) for _ in range(self.micros)]
        waited = time.monotonic() - began
        for fault in (fault for batch in batches for fault in batch.faults):
            tqdm.write(f"skipped: {fault}", file=sys.stderr)
        self.heartbeat.stamp(Stage.STEP, step + 1)
        inputs = prepare(batches, self.lexicon, self.engine.model, config, step, world)
        losses = run_step(self.engine, inputs, config.loss, world, self.anchor)
        result = self.engine.step(rate, skip=not math.isfinite(losses.loss))
        own = {
            "regions": sum(len(micro.regions) for micro in inputs.micros),
            "region_hits": losses.hits,
            "sensitivity": losses.sensitivity,
            "truncated": inputs.truncated,
            "skipped": sum(sum(batch.skipped.values()) for batch in batches),
            "waited": waited / world.size,
            "keys": inputs.keys,
        }
        asked = [float(number in self.stopped) for number in _STOPPING]
        sums = world.total([*own.values(), float(overdue and world.is_first), *asked])
        row = Row(
            means={"loss": losses.loss, "loss_image": losses.image, "loss_region": losses.region}
            | ({"loss_anchor": losses.anchor} if self.anchor is not None else {})
            | {"grad_norm": result.grad_norm, "logit_scale": losses.logit_scale}
            | {"region_logit_scale": losses.region_logit_scale},
            images=config.batch_size,
            texts=len(inputs.texts),
            stepped=result.stepped,
            **dict(zip(own, sums, strict=False)),
        )
        row.keys %= KEYS
        return row, _first_asked(sums[len(own) + 1 :]), bool(sums[len(own)])

    def _count_skips(self, skips: int, row: Row, step: int) -> int:
        """How many steps in a row were skipped, now; all ranks count alike, since losses and norms are common."""
        searching = self.config.precision == "fp16" and math.isfinite(row.means["loss"])  # for a loss scale that fits
        if row.stepped or searching:
            return 0
        what = "gradient" if math.isfinite(row.means["loss"]) else "loss"
        advice = "lower optimizer.lr or use precision fp32, then --resume"
        if self.config.supervision.nonfinite == "stop":
            raise MedpclipError(f"the {what} at step {step + 1} is not finite; {advice}")
        if skips + 1 >= self.config.supervision.max_skipped:
            raise MedpclipError(f"{skips + 1} steps in a row, up to {step + 1}, were not finite (the {what}); {advice}")
        if self.world.is_first:
            tqdm.write(f"step {step + 1} skipped: its {what} is not finite", file=sys.stderr)
        return skips + 1

    def _asked_to_stop(self) -> signal.Signals | None:
        """The signal that any rank has had before the first step."""
        return _first_asked(self.world.total([float(number in self.stopped) for number in _STOPPING]))

    def _evaluates_at(self, step: int) -> bool:
        every = self.config.evaluation.every_steps
        at_step = step == self.config.steps or (every is not None and step % every == 0)
        return bool(self.config.evaluation.tasks) and at_step

    def _evaluate(self, step: int) -> None:
        """Measure the moving average where there is one, else the weights; the other ranks wait."""
        self.heartbeat.stamp(Stage.EVALUATE, step)
        average = self.engine.average()
        weights = average if average is not None else self.engine.weights()
        problem = None
        if self.evaluator is not None:
            assert weights is not None
            try:
                figures = self.evaluator.evaluate(weights, step, lambda: self.heartbeat.stamp(Stage.EVALUATE, step))
                self.tracker.log(step, "eval", figures)
            except MedpclipError as error:
                problem = error
        self.world.agree(problem)


def partition(config: TrainConfig, world: World) -> tuple[int, int]:
    """(micro_batch_size, micro-batches of each rank in a step).

    Raises:
        MedpclipError: the step's images can't be shared out evenly.
    """
    micro = config.micro_batch_size or config.batch_size // world.size
    micros = config.batch_size // (micro * world.size) if micro else 0
    if not micros or micros * micro * world.size != config.batch_size:
        raise MedpclipError(
            f"key 'batch_size' is {config.batch_size}, which {world.size} rank{'s' * (world.size > 1)} can't share in "
            f"micro-batches of {config.micro_batch_size or 'equal size'}; make it a multiple of "
            f"{(config.micro_batch_size or 1) * world.size}"
        )
    return micro, micros


def make_engine(model: RegionCLIP, config: TrainConfig, world: World, device: torch.device) -> Engine:
    """The engine that `config` asks for."""
    if config.engine.kind == "deepspeed":
        from medpclip.train.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(model, config, world, device)
    return LocalEngine(model, config, world, device)


def make_anchor(model: RegionCLIP, device: torch.device) -> Anchor:
    """What a copy of the model as it is now says of whole images."""
    initial = copy.deepcopy(model.clip.visual).requires_grad_(False).eval().to(device)

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(initial(pixels), dim=-1)

    return embed


def _bar_interval() -> float:
    """Seconds between updates of the bar: a log file gets one every ten seconds, not ten a second."""
    return 0.1 if sys.stderr.isatty() else 10.0


def _first_asked(counts: list[float]) -> signal.Signals | None:
    return next((number for number, count in zip(_STOPPING, counts, strict=True) if count), None)


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """A list of the signals that asked the run to stop; the run then ends after its step."""
    caught: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))

    before = {number: signal.signal(number, handle) for number in _STOPPING}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
