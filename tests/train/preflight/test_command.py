"""The whole preflight: alone, by its script, and on two ranks that see different things."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from ranks import run_ranks

from medpclip.data.phantom import write_phantoms
from medpclip.train.preflight import trial
from medpclip.train.preflight.command import main

LAUNCH = Path(__file__).parents[3] / "launch"

# Rank 1 is on another node, by its name; if asked to, it has other code, other folders and another disk.
RANK = """
import os, sys
from pathlib import Path
from medpclip.train.preflight import command, disk, nodes
rank = int(os.environ["RANK"])
folder, out = map(Path, sys.argv[1:3])
os.environ["SLURMD_NODENAME"] = f"n{rank + 1}"
os.environ["LOCAL_RANK"] = "0"
os.chdir(folder)
if rank and "other" in sys.argv[3:]:
    nodes.code_hash = lambda: "something else"
    disk._sees = lambda path: False
    os.chdir(folder / "elsewhere")
words = [word for word in sys.argv[3:] if "=" in word]
status = command.main([str(folder / "config.yaml"), *words, "--json", str(out)])
print("status", status)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, micro_trunk: Path) -> Path:
    """A configuration with relative paths, and its shards."""
    path = tmp_path_factory.mktemp("preflight")
    write_phantoms(path / "shards", images=32, seed=1, workers=1)
    (path / "elsewhere").mkdir()
    (path / "rank.py").write_text(RANK)
    config = {
        "out": "run",
        "model": {"trunk": str(micro_trunk), "fusion": {"prompt_dim": 16}},
        "data": {"shards": ["shards"], "workers": 0},
        "steps": 10,
        "batch_size": 4,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def ranks(folder: Path, *words: str) -> tuple[list[str], dict]:
    out = folder / "report.json"
    return run_ranks(folder / "rank.py", 2, str(folder), str(out), *words), json.loads(out.read_text())


def problems(report: dict) -> list[str]:
    return [finding["what"] for finding in report["findings"] if finding["level"] == "problem"]


def test_the_script_alone(folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = [str(LAUNCH / "preflight"), "config.yaml", "steps=20", "--json", "alone.json"]
    done = subprocess.run(words, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("The run can start.\n") and "main memory per rank" in done.stdout
    report = json.loads((folder / "alone.json").read_text())
    assert report["broken"] is False and report["figures"]["costs"]["hours"] > 0
    assert not (folder / "run").exists()


def test_two_ranks(folder: Path) -> None:
    outputs, report = ranks(folder)
    assert ["status 0" in output for output in outputs] == [True, True]
    assert "2 ranks on 2 nodes" in outputs[0] and outputs[1].strip() == "status 0"
    assert report["figures"]["network"]["bandwidth"]["64 MB"] > 1e6
    seconds = report["figures"]["trial"]["step_seconds"]
    assert report["figures"]["costs"]["images_per_second"] == pytest.approx(4 / seconds)


def test_two_ranks_that_see_different_things(folder: Path) -> None:
    outputs, report = ranks(folder, "other")
    assert ["status 2" in output for output in outputs] == [True, True]
    code, shards, disk = problems(report)
    assert code.startswith("code is ") and code.endswith(" on n1, another on n2")
    assert shards == "shards: no such folder (on n2 only)"
    assert disk == "key 'out' is run, and n2 can't see what rank 0 writes there"
    assert report["findings"][-1]["what"] == "not tried" and report["costs"] == {}


def test_out_of_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")

    monkeypatch.setattr(trial, "run_step", fails)
    monkeypatch.chdir(folder)
    assert main(["config.yaml"]) == 2
    said = capsys.readouterr().out
    assert "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.)" in said
    assert "-> lower micro_batch_size" in said and said.endswith("Something would break.\n")


def test_a_faulty_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(["config.yaml", "stepz=3"]) == 2
    assert "stepz" in capsys.readouterr().err
