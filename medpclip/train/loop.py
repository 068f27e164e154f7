"""The training loop."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from tqdm import tqdm

from medpclip.config import dump_yaml, to_mapping
from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import Loader, make_loader, open_dataset
from medpclip.errors import MedpclipError
from medpclip.files import write_atomically
from medpclip.models.load import CHECKPOINTS, META, build_model, find_checkpoint
from medpclip.train.checkpoint import resume, save_checkpoint
from medpclip.train.config import TrainConfig
from medpclip.train.engine import Engine, LocalEngine
from medpclip.train.optimizer import learning_rate
from medpclip.train.step import losses, prepare
from medpclip.train.tracking import Tracker

_TEXTS = 2  # what a random stream is for; the loader has 0 and 1


def train(
    config: TrainConfig, may_resume: bool = False, allow_other_environment: bool = False
) -> signal.Signals | None:
    """Run `config` to its end, or until SIGTERM, SIGINT or SIGUSR1, after which `may_resume` goes on exactly.

    Args:
        config: the run.
        may_resume: go on from the newest checkpoint in `config.out`, if there is one.
        allow_other_environment: go on also with another device or other versions, where rounding may differ.

    Returns:
        The signal that stopped the run, or None at its end.

    Raises:
        MedpclipError: the folder holds a run and `may_resume` is off; data, model or checkpoint unusable; loss not finite.
    """
    has_run = any((config.out / CHECKPOINTS).glob(f"step-*/{META}"))
    if has_run and not may_resume:
        raise MedpclipError(
            f"{config.out}: holds a run already; add --resume to go on with it, or choose another 'out'"
        )
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    dataset = open_dataset(
        config.data, model.preprocess.image_size, model.mask_grid, model.preprocess.fill, config.seed
    )
    engine = LocalEngine(model, config)
    step = resume(engine, config, find_checkpoint(config.out), allow_other_environment) if has_run else 0
    _begin_folder(config)
    tracker = Tracker(config.out, config.tracking, to_mapping(config), step)
    try:
        with _stop_signals() as stopped:
            loader = make_loader(dataset, config.batch_size // config.accumulate, step * config.accumulate)
            _run(engine, config, loader, tracker, step, stopped)
    finally:
        tracker.close()
    return stopped[0] if stopped else None


def _begin_folder(config: TrainConfig) -> None:
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        write_atomically(config.out / "config.yaml", dump_yaml(config).encode())
    except OSError as error:
        raise MedpclipError(f"{config.out}: can't be written ({error.strerror}); choose another 'out'") from None


def _run(
    engine: Engine,
    config: TrainConfig,
    loader: Loader,
    tracker: Tracker,
    step: int,
    stopped: list[signal.Signals],
) -> None:
    lexicon = Lexicon.load()
    saved_step, saved_at = step, time.monotonic()
    interval = Interval()
    with tqdm(
        total=config.steps, initial=step, unit="step", desc="train", dynamic_ncols=True, mininterval=_bar_interval()
    ) as bar:
        while step < config.steps:
            rate = learning_rate(step, config.steps, config.optimizer)
            interval.add(_step(engine, config, loader, lexicon, step, rate, interval))
            step += 1
            bar.update()
            if step % config.tracking.every_steps == 0 or step == config.steps:
                values = interval.summary() | {"lr": rate}
                tracker.log(step, "train", values)
                bar.set_postfix(loss=f"{values['loss']:.3f}", hits=f"{values['region_hit_rate']:.0%}", refresh=False)
                interval = Interval()
            minutes = (time.monotonic() - saved_at) / 60
            due = step % config.checkpoint.every_steps == 0 or minutes >= (config.checkpoint.every_minutes or math.inf)
            if due or stopped or step == config.steps:
                save_checkpoint(engine, config, step)
                saved_step, saved_at = step, time.monotonic()
            if stopped:
                break
    if stopped:
        tqdm.write(f"stopped by {stopped[0].name} after step {saved_step}; continue with --resume")


def _bar_interval() -> float:
    """Seconds between updates of the bar: a log file gets one every ten seconds, not ten a second."""
    return 0.1 if sys.stderr.isatty() else 10.0


class Interval:
    """Means over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.started, self.waited = time.monotonic(), 0.0
        self.rows: list[dict[str, float]] = []

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def summary(self) -> dict[str, float]:
        """Means of the losses and norms; rates per second; the share of time spent waiting for data; samples skipped."""
        seconds = time.monotonic() - self.started
        sums = {name: sum(row[name] for row in self.rows) for name in self.rows[0]}
        images, regions, hits = sums.pop("images"), sums.pop("regions"), sums.pop("region_hits")
        skipped = sums.pop("skipped")
        return {name: value / len(self.rows) for name, value in sums.items()} | {
            "region_hit_rate": hits / max(1, regions),
            "images_per_second": images / seconds,
            "regions_per_second": regions / seconds,
            "data_wait_share": self.waited / seconds,
            "skipped": skipped,
        }


def _step(
    engine: Engine,
    config: TrainConfig,
    loader: Loader,
    lexicon: Lexicon,
    step: int,
    rate: float,
    interval: Interval,
) -> dict[str, float]:
    """One optimizer step over `accumulate` micro-batches."""
    began = time.monotonic()
    # All first: the losses are divided by the step's whole count of images and regions.
    batches = [next(loader) for _ in range(config.accumulate)]
    inputs = [
        prepare(batch, lexicon, config.data.texts, (config.seed, _TEXTS, step, micro))
        for micro, batch in enumerate(batches)
    ]
    interval.waited += time.monotonic() - began
    for fault in (fault for batch in batches for fault in batch.faults):
        tqdm.write(f"skipped: {fault}", file=sys.stderr)
    images, regions = (sum(counts) for counts in zip(*(i.counts for i in inputs), strict=True))
    row = {"loss": 0.0, "loss_image": 0.0, "loss_region": 0.0, "images": config.batch_size, "regions": regions}
    hits = 0
    for micro in inputs:
        with engine.autocast():
            parts = losses(engine.model, micro, config.loss, engine.device)
        image, region = parts.image / max(1, images), parts.region / max(1, regions)
        loss = config.loss.image_weight * image + config.loss.region_weight * region
        if not torch.isfinite(loss):
            raise MedpclipError(f"the loss at step {step + 1} is not finite; lower optimizer.lr or use precision fp32")
        engine.backward(loss)
        hits += parts.region_hits
        for name, value in (("loss", loss), ("loss_image", image), ("loss_region", region)):
            row[name] += value.item()
    norm = engine.step(rate)
    return row | {
        "region_hits": hits,
        "skipped": sum(sum(batch.skipped.values()) for batch in batches),
        "texts": sum(len(i.texts) for i in inputs) / len(inputs),
        "grad_norm": norm,
        "logit_scale": engine.model.clip.logit_scale.exp().item(),
        "region_logit_scale": engine.model.region_logit_scale.exp().item(),
    }


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """A list of the signals that asked the run to stop; the run then ends after its step."""
    caught: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
