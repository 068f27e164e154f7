"""A run of two ranks that is killed at random moments, and resumed each time, is the uninterrupted run to the bit.

MEDPCLIP_KILLS says how often it is killed (4; 20 take minutes).
"""

import json
import multiprocessing
import os
import random
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import free_port
from safetensors.torch import load_file

from medpclip.config import dump_yaml
from medpclip.data.loading.loader import DataConfig
from medpclip.data.phantom import write_phantoms
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import find_checkpoint
from medpclip.train.config import CheckpointConfig, OptimizerConfig, TrackingConfig, TrainConfig

KILLS = int(os.environ.get("MEDPCLIP_KILLS", "4"))
STEPS = 4 * KILLS
CLOCK = ("second", "share", "mfu", "time")  # in the names of what a log row has from the clock

_SUPERVISED = "supervised"

# Forked by a server that has imported what takes seconds to import.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["medpclip.train.loop", "medpclip.train.survival.guard"])


def _rank(rank: int, port: int, config: Path, output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    from medpclip.cli import main
    from medpclip.train.survival import supervisor

    torch.set_num_threads(1)
    real_start = supervisor.start

    def start_and_tell(orders: supervisor.Orders) -> Any:
        process = real_start(orders)
        print(_SUPERVISED, flush=True)
        return process

    supervisor.start = start_and_tell
    raise SystemExit(main(["train", str(config), "--resume"]))


class Attempt:
    """Both ranks, from one start to their end."""

    def __init__(self, config: Path, output: Path) -> None:
        port, self.output = free_port(), output
        output.unlink(missing_ok=True)  # supervisors of the attempt before may have a word to say there
        output.touch()
        self.ranks = [_SERVER.Process(target=_rank, args=(rank, port, config, output)) for rank in range(2)]
        for process in self.ranks:
            process.start()

    @property
    def has_ended(self) -> bool:
        return not any(process.is_alive() for process in self.ranks)

    def when_logged(self, run: Path, step: int) -> None:
        """Wait until both ranks run, and have done so many steps, now or before."""
        until = time.monotonic() + 120
        while not (self._are_supervised and len(rows(run)) >= step) and not self.has_ended:
            assert time.monotonic() < until, self.output.read_text()
            time.sleep(0.005)

    @property
    def _are_supervised(self) -> bool:
        return self.output.read_text().count(_SUPERVISED) == 2

    def kill(self, victims: list[Any]) -> bool:
        """Whether all of them were alive."""
        alive = [process.is_alive() for process in victims]
        early = not self._are_supervised
        for process in victims:
            process.kill()
        if early:  # ranks that haven't met yet are their launcher's to end
            for process in self.ranks:
                process.kill()
        return all(alive)

    def wait(self, seconds: float) -> list[int | None]:
        """How the ranks end, which they must in time."""
        until = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.ranks]
        for process in self.ranks:
            process.kill()
            process.join()
        assert None not in codes, f"a rank hangs: {codes}\n{self.output.read_text()}"
        return codes


@pytest.fixture(scope="module")
def config(micro_trunk: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("kills")
    write_phantoms(folder / "phantom", images=48, seed=1, workers=1)
    return TrainConfig(
        out=folder / "uncut",
        data=DataConfig([folder / "phantom"], workers=1),
        model=ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16)),
        optimizer=OptimizerConfig(lr=3e-3, fusion_lr_scale=8.0, warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps=2),
        tracking=TrackingConfig(every_steps=1),
        steps=STEPS,
        batch_size=8,
        micro_batch_size=2,
        patch_drop=0.25,
        ema_decay=0.9,
        seed=3,
    )


def rows(run: Path) -> list[dict[str, Any]]:
    """The log's whole lines, without what the clock says."""
    path = run / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: row[name] for name in row if not any(word in name for word in CLOCK)} for row in found]


def begin(config: TrainConfig, folder: Path) -> Attempt:
    path = folder / "config.yaml"
    path.write_text(dump_yaml(config))
    return Attempt(path, folder / "output.txt")


def test_a_run_killed_at_random_moments_is_the_uncut_run_to_the_bit(config: TrainConfig, tmp_path: Path) -> None:
    uncut = config.out
    attempt = begin(config, tmp_path)
    assert attempt.wait(300) == [0, 0], attempt.output.read_text()
    log = rows(uncut)
    seconds = statistics.median(8 / json.loads(line)["images_per_second"] for line in (uncut / "log.jsonl").open())
    assert [row["step"] for row in log] == list(range(1, STEPS + 1))
    assert len({row["keys"] for row in log}) > STEPS / 2  # other samples in other steps

    config.out = tmp_path / "cut"
    chance = random.Random(5)
    killed = []
    for number in range(KILLS):
        attempt = begin(config, tmp_path)
        if number % 4 != 2:  # that one is killed while it starts
            attempt.when_logged(config.out, int(chance.uniform(number, number + 1) * STEPS / (KILLS + 1)))
        time.sleep(chance.uniform(0, 3 * seconds))  # into a step, or a save
        victims = [chance.choice(attempt.ranks)] if number % 2 == 0 else attempt.ranks
        alive = attempt.kill(victims)
        codes = attempt.wait(40)
        said = attempt.output.read_text()
        if not alive:
            assert codes == [0, 0], said
            continue
        killed.append(len(rows(config.out)))
        for rank, code in enumerate(codes):  # who wasn't killed has finished just before, or says who was
            died = f"medpclip: error: rank {1 - rank}, step "
            assert code in (0, -signal.SIGKILL) or (code == 2 and died in said and "died without a word" in said), said
    assert len(killed) >= KILLS / 2, killed  # or else the runs were over before
    assert begin(config, tmp_path).wait(300) == [0, 0], attempt.output.read_text()

    assert rows(config.out) == log
    weights, expected = (load_file(find_checkpoint(run) / "model.safetensors") for run in (config.out, uncut))
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected)
    assert not list((config.out / "checkpoints").glob(".*"))
