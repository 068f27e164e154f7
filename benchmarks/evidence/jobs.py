"""Trains and measures what isn't there yet, each run in a process and on a core of its own, and says how long it will take."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from costs import Cost
from plan import REGIONS_ALONE, Run, Table
from shards import ROOT, manifest_hashes, one_core, shard_folders

from medpclip.config import load, read_yaml
from medpclip.errors import MedpclipError
from medpclip.files import dump_json, file_sha256, write_atomically
from medpclip.models.load import WEIGHTS, find_checkpoint, read_meta
from medpclip.train.config import TrainConfig, public_config

LAUNCH = ROOT / "launch" / "evidence.yaml"
BEGUN, TRAINED, MEASURED = "begun.json", "trained.json", "measured.json"
_SAME = 0.02  # a difference in FLOPs that counts as none
# Validation chooses among ways to point; the rest of the task has no part in that.
_TO_CHOOSE = ("image=[]", "retrieval=[]", "comparators=[prompted]")


@dataclass(frozen=True)
class Job:
    """One run with one seed.

    Attributes:
        run, seed, steps: which.
        folder: its own.
        start: the folder of the run that it goes on from; None for random weights.
    """

    run: Run
    seed: int
    steps: int
    folder: Path
    start: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.folder.name} (seed {self.seed})"


def make_jobs(
    table: Table, out: Path, seeds: Sequence[int], steps: int, costs: Mapping[str, Cost], budget: str = ""
) -> list[Job]:
    """The jobs of a table, those that others start from before them.

    Args:
        table: what is asked.
        out: everything's folder.
        seeds: of split and training.
        steps: of each run.
        costs: of each run, by name.
        budget: equal compute: the run whose FLOPs all get.
    """
    jobs = []
    for seed in seeds:
        folders: dict[str, Path] = {}
        for run in table.runs:
            own = steps
            if table.equal_compute:
                share = costs[budget].flops / costs[run.name].flops
                if abs(share - 1) > _SAME:  # else it is a run of the table of equal steps, too
                    own, run = max(1, round(steps * share)), replace(run, asked=REGIONS_ALONE)
            folders[run.name] = out / "train" / f"seed{seed}" / f"{run.name}-s{own}"
            start = folders[run.after] if run.after else None
            jobs.append(Job(run, seed, own, folders[run.name], start))
    return jobs


class Runner:
    """Does jobs, several at a time.

    Args:
        out: everything's folder.
        device: of training and evaluation.
        costs: of each run, by name.
    """

    def __init__(self, out: Path, device: str, costs: Mapping[str, Cost]) -> None:
        self.out, self.device, self.costs = out, device, costs
        self._rate = 9.0e10  # FLOP/s of a core, until a first run has told
        self._measuring = 60.0  # seconds of a run's evaluations, likewise
        self._lock = threading.Lock()
        self._failed: list[str] = []

    def do(self, jobs: Sequence[Job], task: Path, splits: Sequence[str], at_once: int) -> None:
        """Train and measure.

        Args:
            jobs: in an order in which none starts from a later one.
            task: by which they are measured.
            splits: on which.
            at_once: how many at a time.

        Raises:
            MedpclipError: some job failed; the others are done all the same.
        """
        self._left = list(jobs)
        self._workers = at_once
        done = {job.folder: threading.Event() for job in jobs}

        def work(job: Job) -> None:
            try:
                if job.start is not None:
                    done[job.start].wait()  # begun before this one, so it does end
                self._do(job, task, splits)
            except (MedpclipError, OSError) as error:
                with self._lock:
                    self._failed.append(f"{job.name}: {error}")
                    self._left.remove(job)
                print(f"FAILED {job.name}: {error}", file=sys.stderr, flush=True)
            finally:
                done[job.folder].set()

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(work, jobs))
        if self._failed:
            raise MedpclipError(f"{len(self._failed)} of {len(jobs)} runs failed; the first: {self._failed[0]}")

    def seconds(self, job: Job) -> float:
        """How long a job takes, as far as it isn't done."""
        training = 0.0 if (job.folder / TRAINED).is_file() else job.steps * self.costs[job.run.name].flops / self._rate
        return training + self._measuring

    def _do(self, job: Job, task: Path, splits: Sequence[str]) -> None:
        began, trained = time.monotonic(), train(job, self.out, self.device)
        between, measured = time.monotonic(), [measure(job, task, split, self.out, self.device) for split in splits]
        ended = time.monotonic()
        with self._lock:
            if trained:
                self._rate = job.steps * self.costs[job.run.name].flops / (between - began)
            if all(measured):
                self._measuring = ended - between
            self._left.remove(job)
            minutes = sum(map(self.seconds, self._left)) / self._workers / 60
            what = "done" if trained else "measured" if any(measured) else "was there"
            print(
                f"{job.name}: {what}, {ended - began:.0f} s; {len(self._left)} left, about {minutes:.0f} minutes",
                flush=True,
            )


def train(job: Job, out: Path, device: str) -> bool:
    """Train a job, or go on with it; whether there was anything to do.

    Raises:
        MedpclipError: the folder holds another run, or training failed.
    """
    overrides = train_overrides(job, out, device)
    # As it is read, defaults included, so that a default that has changed counts; not where anything lies or runs.
    config = public_config(load(TrainConfig, LAUNCH, overrides))
    del config["device"]
    given = {
        "config": config,
        "start": job.start and job.start.name,
        "without": list(job.run.without),
        "data": manifest_hashes(out, job.seed),
    }
    key = _sha256(given)
    for name in (BEGUN, TRAINED):
        stamp = _read(job.folder / name)
        if stamp and stamp["key"] != key:
            raise MedpclipError(
                f"{job.folder}: holds a run of another configuration or data; delete it, or use another --out"
            )
    if (job.folder / TRAINED).is_file():
        return False
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(job.folder / BEGUN, dump_json({"key": key} | given))
    _medpclip(["train", str(LAUNCH), *overrides, "--resume"], job.folder / "train.log")
    checkpoint = find_checkpoint(job.folder / "run")
    facts: dict[str, float | str] = {**log_facts(job.folder / "run" / "log.jsonl")}
    facts |= {"key": key, "steps": job.steps, "weights_sha256": file_sha256(checkpoint / WEIGHTS)}
    facts |= {"code": read_meta(checkpoint)["code"]}
    write_atomically(job.folder / TRAINED, dump_json(facts))
    shutil.rmtree(
        checkpoint / "engine", ignore_errors=True
    )  # the optimizer's state is for going on, and this is the end
    return True


def train_overrides(job: Job, out: Path, device: str) -> list[str]:
    """What a job changes of the launch file."""
    shards = [str(folder) for name, folder in shard_folders(out, job.seed).items() if name not in job.run.without]
    launch = read_yaml(LAUNCH)
    # The same share of all steps, however many: else those with few would spend most of them on warming up.
    warm_up = max(1, round(launch["optimizer"]["warmup_steps"] * job.steps / launch["steps"]))
    overrides = [*job.run.overrides, f"steps={job.steps}", f"seed={job.seed}", f"device={device}"]
    overrides.append(f"optimizer.warmup_steps={warm_up}")
    if job.start is not None:
        overrides.append(f"model.pretrained={json.dumps(str(job.start / 'run'))}")
    left = {name: weight for name, weight in launch["data"]["weights"].items() if name not in job.run.without}
    return [
        *overrides,
        f"out={json.dumps(str(job.folder / 'run'))}",
        f"data.shards={json.dumps(shards)}",
        f"data.weights={json.dumps(left)}",
    ]


def measure(job: Job, task: Path, split: str, out: Path, device: str) -> bool:
    """Measure a trained job by a task file, unless it has been; whether there was anything to do.

    Raises:
        MedpclipError: evaluation failed.
    """
    folder = evaluation_folder(job, task, split)
    trained = _read(job.folder / TRAINED)
    assert trained is not None
    changes = [*job.run.asked, *(_TO_CHOOSE if split == "val" else ())]
    asked = {"task": read_yaml(task), "changes": changes, "split": split}
    key = _sha256(asked | {"weights": trained["weights_sha256"], "data": trained["key"]})
    stamp = _read(folder / MEASURED)
    if stamp and stamp["key"] == key:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    data = [str(path) for path in shard_folders(out, job.seed).values()]
    command = [
        "eval",
        str(task),
        f"split={split}",
        *changes,
        "--model",
        str(job.folder / "run"),
        "--out",
        str(folder),
    ]
    _medpclip([*command, "--device", device, "--data", *data], folder / "eval.log")
    write_atomically(folder / MEASURED, dump_json({"key": key}))
    return True


def evaluation_folder(job: Job, task: Path, split: str) -> Path:
    """Where the answers of a job lie."""
    return job.folder / f"{task.stem}-{split}"


def log_facts(log: Path) -> dict[str, float]:
    """Seconds, regions and texts of a step, medians and means over the lines of a run's log.jsonl."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in lines if row.get("kind") == "train"]
    batch = read_yaml(LAUNCH)["batch_size"]
    seconds = sorted(batch / row["images_per_second"] for row in rows)
    regions = [batch * row["regions_per_second"] / row["images_per_second"] for row in rows]
    return {
        "seconds_per_step": seconds[len(seconds) // 2],
        "regions_per_step": sum(regions) / len(rows),
        "texts_per_step": sum(row["texts"] for row in rows) / len(rows),
    }


_RUNNING: set[subprocess.Popen[bytes]] = set()


def stop_with_children() -> None:
    """Have SIGTERM and SIGINT end what was started too; a training saves itself and can go on."""

    def stop(number: int, frame: FrameType | None) -> None:
        for process in list(_RUNNING):
            process.terminate()
        os._exit(128 + number)  # threads wait for the processes, and nobody needs what they would say

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _medpclip(words: list[str], log: Path) -> None:
    with open(log, "ab") as stream:
        command = [sys.executable, "-m", "medpclip", *words]
        process = subprocess.Popen(command, cwd=ROOT, env=one_core(), stdout=stream, stderr=stream)
        _RUNNING.add(process)
        code = process.wait()
        _RUNNING.discard(process)
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise MedpclipError(f"{words[0]} failed ({(last or ['no output'])[0].strip()}); see {log}")


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_bytes()) if path.is_file() else None


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
