"""The job scripts under a real Slurm, as `make test-slurm` starts one: two nodes on this machine, preemption by requeueing."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from medpclip.data.phantom import write_phantoms

pytestmark = pytest.mark.skipif(
    os.environ.get("MEDPCLIP_SLURM") != "1", reason="needs Slurm's daemons; run it by: make test-slurm"
)

LAUNCH = Path(__file__).parents[2] / "launch"
STEPS = 90
CLOCK = re.compile(r"_per_second|_share|_seconds|^time|mfu|flops")  # what of a log's line depends on how fast it went

# A rank that notes where it is, saves what a checkpoint would be when it is stopped, and does otherwise as it is told.
STAND_IN = """#!/usr/bin/env bash
if [[ $* == *--print-config* ]]; then echo "out: run"; exit; fi
echo "$SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME" >> ranks.txt
if [[ $SLURM_PROCID == 1 && -n ${FAILING:-} ]]; then exit 3; fi
trap 'mkdir -p run/checkpoints/step-$SLURM_RESTART_COUNT; exit 143' TERM
touch started
for _ in {1..600}; do sleep 0.1; done
"""


@pytest.fixture
def work(tmp_path: Path, micro_trunk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shards and a configuration, where jobs are submitted."""
    write_phantoms(tmp_path / "shards", images=48, seed=1, workers=1)
    config: dict[str, Any] = {
        "out": "run",
        "model": {"trunk": str(micro_trunk), "fusion": {"prompt_dim": 16}},
        "data": {"shards": ["shards"], "workers": 1},
        "optimizer": {"lr": 3e-3, "warmup_steps": 2},
        "checkpoint": {"every_steps": 1000},  # so that all others are made because of a signal
        "tracking": {"every_steps": 1},
        "steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 2,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def stand_in(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has jobs run `STAND_IN` for medpclip."""
    path = work / "bin" / "medpclip"
    path.parent.mkdir()
    path.write_text(STAND_IN)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def slurm(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


def submit(*words: str) -> str:
    """The job's number."""
    return slurm("sbatch", "--parsable", "--output=job-%j.log", *words)


def state(job: str) -> str:
    found = re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", job))
    assert found
    return found[1]


def restarts(job: str) -> int:
    found = re.search(r"Restarts=(\d+)", slurm("scontrol", "show", "job", job))
    assert found
    return int(found[1])


def wait(job: str, what: str, holds: Callable[[], bool], seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while not holds():
        ended = state(job) in ("FAILED", "TIMEOUT", "NODE_FAIL")
        if ended or time.monotonic() > until:
            log, daemon = Path(f"job-{job}.log"), Path(os.environ["SLURM_CONF"]).with_name("n1.log")
            said = [path.read_text().splitlines()[-30:] if path.exists() else ["nothing"] for path in (log, daemon)]
            job_says, slurm_says = ("\n".join(lines) for lines in said)
            pytest.fail(f"job {job} is {state(job)}, and not {what}; it said:\n{job_says}\nand its node:\n{slurm_says}")
        time.sleep(0.1)


def logged(run: str = "run") -> list[dict[str, Any]]:
    """The log, without what the clock says. A line that is being written isn't one yet."""
    path = Path(run, "log.jsonl")
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if not CLOCK.search(key)} for line in lines]


def checkpoints() -> list[str]:
    return sorted(path.name for path in Path("run", "checkpoints").glob("step-*"))


def start_again(job: str) -> None:
    """Slurm lets a requeued job wait for two minutes, so that nothing is left of the last attempt: a node refuses to start
    a job that was killed within the same second. Some seconds will do."""
    wait(job, "requeued", lambda: state(job) == "PENDING")
    time.sleep(5)
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.mark.parametrize("engine", [(), ("engine.kind=deepspeed", "engine.zero=1")], ids=["local", "zero1"])
def test_a_preempted_run_is_the_undisturbed_run_to_the_bit(work: Path, engine: tuple[str, ...]) -> None:
    train = ("--nodes=2", str(LAUNCH / "pretrain.sbatch"), "config.yaml", *engine)
    undisturbed = submit(*train, "out=undisturbed")
    wait(undisturbed, "completed", lambda: state(undisturbed) == "COMPLETED")
    job = submit(*train)

    wait(job, "at step 20", lambda: len(logged()) >= 20)
    urgent = submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "sleep 1")
    wait(job, "preempted", lambda: state(job) in ("COMPLETING", "PENDING"))
    wait(job, "out of the way", lambda: state(urgent) == "COMPLETED")
    wait(job, "requeued", lambda: state(job) == "PENDING")
    [saved] = checkpoints()
    assert 20 <= int(saved[5:]) < STEPS
    assert len(logged()) == int(saved[5:])  # nothing that was done is lost
    start_again(job)

    wait(job, "at work again", lambda: len(logged()) >= int(saved[5:]) + 20)
    slurm("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the time is over
    wait(job, "stopped", lambda: state(job) != "RUNNING")
    assert "stopped by a signal, with work left: requeued" in Path(f"job-{job}.log").read_text()
    assert len(checkpoints()) == 2
    start_again(job)

    wait(job, "completed", lambda: state(job) == "COMPLETED")
    assert restarts(job) == 2
    assert [row["step"] for row in logged()] == list(range(1, STEPS + 1))
    assert logged() == logged("undisturbed")
    last = Path("checkpoints", f"step-{STEPS:08d}", "model.safetensors")
    assert ("run" / last).read_bytes() == ("undisturbed" / last).read_bytes()


@pytest.mark.usefixtures("stand_in")
def test_one_rank_for_each_gpu_and_a_cancelled_job_stays_so(work: Path) -> None:
    job = submit("--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=2", str(LAUNCH / "pretrain.sbatch"), "config.yaml")
    ranks = work / "ranks.txt"
    wait(job, "started", lambda: ranks.exists() and len(ranks.read_text().splitlines()) == 4)
    assert sorted(ranks.read_text().splitlines()) == [f"{rank} of 4 on n{1 + rank // 2}" for rank in range(4)]
    time.sleep(0.5)
    slurm("scancel", job)
    wait(job, "cancelled", lambda: state(job) == "CANCELLED")
    time.sleep(1)
    assert (state(job), restarts(job)) == ("CANCELLED", 0)


@pytest.mark.usefixtures("stand_in")
def test_a_rank_that_fails_ends_the_job(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILING", "1")
    began = time.monotonic()
    job = submit("--nodes=2", str(LAUNCH / "pretrain.sbatch"), "config.yaml")
    with pytest.raises(pytest.fail.Exception, match="is FAILED"):
        wait(job, "completed", lambda: state(job) == "COMPLETED", 50)
    assert time.monotonic() - began < 40  # KillWait, at most, and not the others' minute
    assert restarts(job) == 0


def test_preflight_on_two_nodes(work: Path) -> None:
    words = ("srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", str(LAUNCH / "preflight"))
    said = subprocess.run([*words, "config.yaml", "--json=report.json"], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "2 ranks on 2 nodes" in said.stdout and "all ranks reach one another" in said.stdout
    assert json.loads(Path("report.json").read_text())["broken"] is False
    assert not Path("run").exists()
