"""The job scripts that train and evaluate, run by bash, with stand-ins for Slurm's commands and for medpclip."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

# Each stand-in notes its words in calls.txt. srun leaves out its own options and becomes the command, signals and all.
STAND_INS = {
    "srun": 'echo "srun $*" >> calls.txt; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "squeue": 'echo "$STATE"',
    "scontrol": 'echo "scontrol $*" >> calls.txt',
    "apptainer": 'while [[ $1 != *.sif ]]; do shift; done; shift; exec "$@"',
    "medpclip": """
if [[ $* == *--print-config* ]]; then
    touch configuring
    sleep "$CONFIG_SECONDS"
    echo "out: '$OUT'"
    exit "${CONFIG_STATUS:-0}"
fi
echo "medpclip $*" >> calls.txt
trap 'exit "$STOPPED"' USR1
trap 'echo killed >> calls.txt; exit 143' TERM
touch started
[[ -z $SAVES ]] || mkdir -p "$OUT/checkpoints/$SAVES"
for _ in $(seq "$TENTHS"); do sleep 0.1; done
exit "$STATUS"
""",
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "a run" / "checkpoints" / "step-00000010").mkdir(parents=True)
    return tmp_path


def start(work: Path, script: str, *words: str, **environment: str) -> subprocess.Popen[str]:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "8"}
    run = {"OUT": "a run", "STATUS": "0", "STATE": "RUNNING", "SAVES": "", "TENTHS": "0", "STOPPED": "138"}
    run |= {"CONFIG_SECONDS": "0"}
    given = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMP_", "MEDPCLIP_"))}
    given |= {"PATH": f"{work / 'bin'}:{os.environ['PATH']}"} | job | run | environment
    return subprocess.Popen(["bash", LAUNCH / script, *words], cwd=work, env=given, stderr=subprocess.PIPE, text=True)


def run(work: Path, script: str, *words: str, **environment: str) -> tuple[int, str, list[str]]:
    """Exit status, standard error, and the calls."""
    process = start(work, script, *words, **environment)
    stderr = process.communicate(timeout=30)[1]
    calls = work / "calls.txt"
    return process.returncode, stderr, calls.read_text().splitlines() if calls.exists() else []


def test_a_run_to_its_end(work: Path) -> None:
    status, _, calls = run(work, "pretrain.sbatch", "c.yaml", "steps=3", SLURM_NTASKS_PER_NODE="4")
    assert status == 0
    options = "--ntasks-per-node=4 --ntasks=8 --cpus-per-task=2 --kill-on-bad-exit=1"
    assert calls[1] == f"srun {options} medpclip train c.yaml steps=3 --resume"
    assert not any(call.startswith("scontrol") for call in calls)


def test_one_rank_for_each_gpu(work: Path) -> None:
    _, _, calls = run(work, "pretrain.sbatch", "c.yaml", SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_ON_NODE="8")
    assert "--ntasks-per-node=8 --ntasks=16 --cpus-per-task=1 " in calls[1]


def test_stopped_with_work_left(work: Path) -> None:
    code, stderr, calls = run(work, "pretrain.sbatch", "c.yaml", STATUS="138", SAVES="step-00000020")
    assert (code, calls[-1]) == (0, "scontrol requeue 7"), stderr


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_what_slurm_has_ended_is_left_to_it(work: Path, state: str) -> None:
    """Preempted jobs are requeued already, and cancelled ones mustn't be."""
    code, _, calls = run(work, "pretrain.sbatch", "c.yaml", STATUS="138", SAVES="step-00000020", STATE=state)
    assert code == 138 and not any(call.startswith("scontrol") for call in calls)


def test_no_requeue_without_progress(work: Path) -> None:
    code, stderr, calls = run(work, "pretrain.sbatch", "c.yaml", STATUS="138")
    assert code == 1 and "no checkpoint since the job began: not requeued" in stderr
    assert not any(call.startswith("scontrol") for call in calls)


@pytest.mark.parametrize("status", ["1", "2", "137", "143"])
def test_errors_are_no_reason_to_requeue(work: Path, status: str) -> None:
    """143 that nobody has asked for is how srun ends the other ranks when one has failed."""
    code, _, calls = run(work, "pretrain.sbatch", "c.yaml", STATUS=status, SAVES="step-00000020")
    assert code == int(status) and not any(call.startswith("scontrol") for call in calls)


def test_a_faulty_configuration_starts_no_ranks(work: Path) -> None:
    code, _, calls = run(work, "pretrain.sbatch", "c.yaml", CONFIG_STATUS="2")
    assert code == 2 and not any("--resume" in call for call in calls)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("stopped", ["138", "143"])
def test_signals_to_the_script_reach_the_ranks_as_usr1(work: Path, number: signal.Signals, stopped: str) -> None:
    """Of several ranks, srun gives the highest status; one that is done makes it send the others SIGTERM."""
    process = start(work, "pretrain.sbatch", "c.yaml", SAVES="step-00000020", TENTHS="200", STOPPED=stopped)
    until = time.monotonic() + 20
    while not (work / "started").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=20)
    calls = (work / "calls.txt").read_text().splitlines()
    assert process.returncode == 0 and calls[-1] == "scontrol requeue 7" and "killed" not in calls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("state", "expected"), [("RUNNING", 1), ("COMPLETING", 138)])
def test_a_signal_before_there_are_ranks_starts_none(
    work: Path, number: signal.Signals, state: str, expected: int
) -> None:
    process = start(work, "pretrain.sbatch", "c.yaml", STATE=state, CONFIG_SECONDS="1")
    until = time.monotonic() + 20
    while not (work / "configuring").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    stderr = process.communicate(timeout=20)[1]
    calls = (work / "calls.txt").read_text().splitlines()
    assert process.returncode == expected, stderr
    assert ("no checkpoint since the job began: not requeued" in stderr) == (state == "RUNNING")
    assert len(calls) == 1 and calls[0].endswith("--print-config")


def test_environments(work: Path) -> None:
    _, _, calls = run(work, "pretrain.sbatch", "c.yaml", MEDPCLIP_CONTAINER="image.sif", MEDPCLIP_MOUNTS="/data,/more")
    assert f"apptainer exec --nv --bind {work},/data,/more image.sif medpclip train c.yaml --resume" in calls[1]
    _, _, calls = run(work, "pretrain.sbatch", "c.yaml", MEDPCLIP_CONTAINER="image", MEDPCLIP_MOUNTS="/data,/more")
    mounts = f"--container-mounts={work}:{work},/data:/data,/more:/more --container-workdir={work}"
    assert f"--container-image=image {mounts} medpclip train c.yaml --resume" in calls[-2]
    activate = work / "venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("echo activated >> calls.txt\n")
    _, _, calls = run(work, "pretrain.sbatch", "c.yaml", MEDPCLIP_ENV="venv")
    assert "activated" in calls


def test_an_array_of_evaluations(work: Path) -> None:
    words = ("evaluate.sbatch", "model", "out", "eval/a.yaml", "b.yaml", "region.prompts=[box]")
    status, _, calls = run(work, *words, SLURM_ARRAY_TASK_ID="2")
    assert (status, calls[1:]) == (0, ["medpclip eval b.yaml region.prompts=[box] --model model --out out/b"])
    status, stderr, _ = run(work, *words, SLURM_ARRAY_TASK_ID="3")
    assert status == 2 and "no task number 3, there are 2; give --array=1-2" in stderr
    status, _, calls = run(work, *words)
    assert status == 0 and [call[-5:] for call in calls if call.startswith("medpclip")] == ["out/b", "out/a", "out/b"]


@pytest.mark.parametrize(("script", "words"), [("pretrain.sbatch", ()), ("evaluate.sbatch", ("model", "out"))])
def test_too_few_words(work: Path, script: str, words: tuple[str, ...]) -> None:
    status, stderr, _ = run(work, script, *words)
    assert status == 2 and "usage: sbatch [--" in stderr and f"launch/{script}" in stderr
