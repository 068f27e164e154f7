"""The log goes back with the run, and Weights & Biases gets only what is true and not private."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medpclip.errors import MedpclipError
from medpclip.train.config import TrackingConfig
from medpclip.train.tracking import Tracker, read_log


def log(folder: Path, config: TrackingConfig, begin: int, end: int, **run_config: Any) -> None:
    tracker = Tracker(folder, config, run_config, begin)
    for step in range(begin + 1, end + 1):
        tracker.log(step, "train", {"loss": 1 / step})
    tracker.close()


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    log(tmp_path, TrackingConfig(), 0, 5)
    with open(tmp_path / "log.jsonl", "a") as stream:
        stream.write('{"step": 6, "lo')
    log(tmp_path, TrackingConfig(), 3, 4)
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(), {}, 0)
    tracker.log(1, "train", {"loss": float("nan"), "norm": float("inf"), "lr": 0.5})
    tracker.close()
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {
        "step": 1, "kind": "train", "loss": None, "norm": None, "lr": 0.5,
    }  # fmt: skip


class FakeWandb(ModuleType):
    """Keeps what `init` was given; fails with `error` if there is one."""

    class Error(Exception):
        pass

    class Settings(dict[str, Any]):
        pass

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("wandb")
        self.error, self.runs = error, list[dict[str, Any]]()

    def init(self, **options: Any) -> "FakeWandb":
        if self.error:
            raise self.error
        self.runs.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.runs[-1].setdefault("steps", []).append(step)

    def finish(self) -> None:
        pass


def test_a_resumed_run_is_a_new_one_of_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = TrackingConfig(wandb="online", name="trial")
    log(tmp_path, config, 0, 5, out="/home/jane/runs/trial", data={"shards": ["/scratch/jane/amos", "shards/b"]})
    log(tmp_path, config, 3, 6)
    first, second = fake.runs
    assert (first["name"], second["name"]) == ("trial", "trial from step 3")
    assert first["group"] == second["group"] and "id" not in first and "resume" not in second
    assert second["steps"] == [4, 5, 6] and second["config"]["resumed_at_step"] == 3
    assert first["config"] == {"out": "trial", "data": {"shards": ["amos", "shards/b"]}, "resumed_at_step": 0}


@pytest.mark.parametrize("error", [FakeWandb.Error("api_key not configured\nsee the docs"), ValueError("bad project")])
def test_its_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(error))
    with pytest.raises(MedpclipError, match=r"'tracking\.wandb': can't start .*wandb login") as caught:
        Tracker(tmp_path, TrackingConfig(wandb="online"), {}, 0)
    assert "\n" not in str(caught.value)


def test_nothing_it_writes_names_a_path_of_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    run.mkdir()
    for begin in (0, 2):
        log(run, TrackingConfig(wandb="offline"), begin, begin + 3, out=str(run))
    written = list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 2
    for path in written:
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(Path(sys.prefix)).encode() not in path.read_bytes()
