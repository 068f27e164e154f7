"""The training loop: the same on every rank."""

from __future__ import annotations

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

from medpclip.config import dump_yaml
from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import Loader, make_loader, open_dataset
from medpclip.distributed import World, join
from medpclip.distributed.world import leave, own_device
from medpclip.errors import MedpclipError
from medpclip.files import write_atomically
from medpclip.models import RegionCLIP
from medpclip.models.device import pick_device
from medpclip.models.load import build_model, checkpoints, read_meta
from medpclip.train.checkpoint import note_first_stage, resume, save_checkpoint, trained_on
from medpclip.train.config import TrainConfig, public_config
from medpclip.train.flops import count_flops
from medpclip.train.metrics import KEYS, Interval, Row
from medpclip.train.optimizer import freeze_parts, learning_rate
from medpclip.train.patch_drop import kept_count
from medpclip.train.peak import peak_flops
from medpclip.train.start import check_alike, check_anchor, fingerprint, make_anchor, make_engine, partition
from medpclip.train.step import prepare, run_step
from medpclip.train.survival.failures import new_attempt
from medpclip.train.survival.guard import supervised
from medpclip.train.survival.heartbeat import Heartbeat, Stage
from medpclip.train.tracking import LOG, Tracker, read_log

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
    limits = (config.supervision.start_seconds, config.supervision.save_seconds, config.supervision.evaluate_seconds)
    start, *others = (_WEEK if limit is None else limit for limit in limits)
    world = join(device, max(start, *others), start)
    device = own_device(device, world)
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
        self.initial = fingerprint(model)
        check_alike(world, config, self.initial)
        size, fill = model.preprocess.image_size, model.preprocess.fill
        dataset = open_dataset(config.data, size, model.mask_grid, fill, config.seed, model.fusion.window)
        note_first_stage(config)
        self._prepare_evaluation(model)
        self.anchor = make_anchor(model, self.device) if config.loss.anchor_weight else None
        freeze_parts(model, config.freeze)
        # Counted before an engine shards the parameters.
        kept = kept_count(model.grid, config.patch_drop)
        self.flops = count_flops(model, kept, anchor=self.anchor is not None)
        self.engine = make_engine(model, config, world, self.device)
        self.peak = peak_flops(self.device, config.precision, config.tracking.peak_tflops).flops * world.size
        step, self.interval = 0, Interval(self.flops, self.peak)
        if checkpoint is not None:
            check_anchor(checkpoint, config, self.initial)
            step = resume(self.engine, config, checkpoint, world, allow_other_environment)
            self.interval.restore(read_meta(checkpoint)["interval"])
        self._begin_folder()
        self.tracker = Tracker(config.out, config.tracking, public_config(config), step, world.is_first)
        try:
            loader = make_loader(dataset, self.micro, step * self.micros, world.rank, world.size, self.micros)
            return self._steps(loader, step)
        finally:
            self.tracker.close()

    def _checkpoint(self, may_resume: bool) -> Path | None:
        """The checkpoint to go on from, as rank 0 sees it."""
        out, problem, found = self.config.out, None, None
        if self.world.is_first and checkpoints(out):
            found = str(checkpoints(out)[-1])
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
            from medpclip.evaluation.results.exposure import TrainedOn
            from medpclip.train.evaluate import Evaluator, read_tasks

            try:
                tasks = read_tasks(self.config.evaluation.tasks)
                told = trained_on(self.config)
                seen = None if told is None else TrainedOn(**told)
                self.evaluator = Evaluator(model, tasks, self.device, self.config.out, seen)
            except MedpclipError as error:
                problem = error
        self.world.agree(problem)

    def _steps(self, loader: Loader, step: int) -> signal.Signals | None:
        config = self.config
        saved_at, saved_step = time.monotonic(), step
        skips = 0
        stop = self._asked_to_stop()
        if step and not stop and self._evaluates_at(step) and not self._has_evaluated(step):
            stop = self._evaluate(step)  # the run was cut off between the checkpoint and the evaluation
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
                self.interval.rows.append(row)
                step += 1
                bar.update()
                at_end = step == config.steps
                if step % config.tracking.every_steps == 0 or at_end:
                    self._log(step, rate, bar)
                if step % config.checkpoint.every_steps == 0 or at_end or overdue or stop:
                    self._save(step)
                    saved_at, saved_step = time.monotonic(), step
                if self._evaluates_at(step) and (at_end or not stop):
                    stop = self._evaluate(step)
                    if stop and saved_step < step:
                        self._save(step)
        if not stop or (step == config.steps and (not self._evaluates_at(step) or self._has_evaluated(step))):
            return None
        if self.world.is_first:
            tqdm.write(f"stopped by {stop.name} after step {step}; continue with --resume")
        return stop

    def _log(self, step: int, rate: float, bar: tqdm) -> None:
        values = self.interval.summary() | {"lr": rate}
        self.tracker.log(step, "train", values)
        bar.set_postfix(loss=f"{values['loss']:.3f}", hits=f"{values['region_hit_rate']:.0%}", refresh=False)
        self.interval = Interval(self.flops, self.peak)

    def _save(self, step: int) -> None:
        self.heartbeat.stamp(Stage.SAVE, step)
        began = time.monotonic()
        notes = {"interval": self.interval.state(), "initial": self.initial}
        save_checkpoint(self.engine, self.config, step, self.world, notes)
        self.interval.started += time.monotonic() - began

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
        losses = run_step(
            self.engine, inputs, config.loss, world, self.anchor, lambda: self.heartbeat.stamp(Stage.STEP, step + 1)
        )
        result = self.engine.step(rate, skip=not math.isfinite(losses.loss))
        own = {
            "regions": sum(len(micro.regions) for micro in inputs.micros),
            "region_hits": losses.hits,
            "sensitivity": losses.sensitivity,
            "truncated": inputs.truncated,
            "skipped": sum(sum(batch.skipped.values()) for batch in batches),
            "waited": waited / world.size,
            "keys": inputs.keys % KEYS,  # sums over ranks then stay exact
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
        advice = (
            f"begin a run of another name with model.pretrained {self.config.out}, which goes on from the last "
            "checkpoint's weights, and a lower optimizer.lr or precision fp32"
        )
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

    def _has_evaluated(self, step: int) -> bool:
        """Whether the log says so; rank 0 reads it."""
        log = self.config.out / LOG
        found = self.world.is_first and log.is_file()
        done = found and any(row["kind"] == "eval" and row["step"] == step for row in read_log(log))
        return bool(self.world.from_first(done))

    def _evaluate(self, step: int) -> signal.Signals | None:
        """Measure the moving average where there is one, else the weights; the other ranks wait.

        A signal to rank 0 breaks it off; a run that goes on from here does it again.
        """
        self.heartbeat.stamp(Stage.EVALUATE, step)
        began = time.monotonic()
        weights = self.engine.weights() if self.config.ema_decay is None else self.engine.average()
        problem = None
        if self.evaluator is not None:
            assert weights is not None

            def alive() -> None:
                if self.stopped:
                    raise _StoppedError
                self.heartbeat.stamp(Stage.EVALUATE, step)

            try:
                self.tracker.log(step, "eval", self.evaluator.evaluate(weights, step, alive))
            except _StoppedError:
                pass
            except MedpclipError as error:
                problem = error
        self.world.agree(problem)
        self.interval.started += time.monotonic() - began
        return self._asked_to_stop()


class _StoppedError(Exception):
    """A signal came during an evaluation."""


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
        if number == signal.SIGINT and signal.SIGINT in caught:  # somebody doesn't want to wait for the step's end
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    before = {number: signal.signal(number, handle) for number in _STOPPING}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
