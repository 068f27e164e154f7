"""Every place goes on where the run does, and is told only what is true and not private."""

import json
import os
import re
import resource
import signal
import struct
import sys
from collections.abc import Iterator
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


@pytest.mark.parametrize("line", ['{"loss": 1}', "[1]", "\0\0\0", '{"step": "2"}'])
def test_a_log_ends_before_a_line_that_is_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    assert read_log(path) == [{"step": 1}]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(), {}, 0)
    tracker.log(1, "train", {"loss": float("nan"), "norm": float("inf"), "lr": 0.5})
    tracker.close()
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {
        "step": 1, "kind": "train", "loss": None, "norm": None, "lr": 0.5,
    }  # fmt: skip


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log(tmp_path, TrackingConfig(), 0, 5)
    before = (tmp_path / "log.jsonl").read_bytes()
    tracker = Tracker(tmp_path, TrackingConfig(tensorboard=True, wandb="offline"), {}, 2, writes=False)
    tracker.log(3, "train", {"loss": 1.0})
    tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(), {}, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(MedpclipError, match=r"log\.jsonl: can't be written \(File too large\); make room"):
            tracker.log(1, "train", {"loss": 1.0})
        tracker.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_tensorboard_drops_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackingConfig(tensorboard=True)
    log(tmp_path, config, 0, 9)
    tracker = Tracker(tmp_path, config, {}, 4)
    tracker.log(5, "train", {"loss": 7.0})
    tracker.log(5, "eval", {"phantom/accuracy": 0.5})
    tracker.log(6, "train", {"loss": float("nan")})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss", "eval/phantom/accuracy"]
    seen = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert seen[:-1] == [(step, pytest.approx(1 / step)) for step in range(1, 5)] + [(5, 7.0)]
    assert seen[-1][0] == 6 and seen[-1][1] != seen[-1][1]


def test_tensorboard_drops_what_a_run_without_a_checkpoint_did(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackingConfig(tensorboard=True)
    log(tmp_path, config, 0, 9)
    log(tmp_path, config, 0, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


def test_tensorboard_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(MedpclipError, match=r"'tracking\.tensorboard' needs tensorboard; install medpclip\[train\]"):
        Tracker(tmp_path, TrackingConfig(tensorboard=True), {}, 0)


class FakeWandb(ModuleType):
    """Keeps what `init` was given, as a server would the steps; fails with `error` if there is one."""

    class Error(Exception):
        pass

    class Settings(dict[str, Any]):
        pass

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("wandb")
        self.error, self.runs, self.steps = error, list[dict[str, Any]](), list[int]()
        self.starting_step = 0

    def init(self, **options: Any) -> "FakeWandb":
        if self.error:
            raise self.error
        self.runs.append(options)
        self.starting_step = max(self.steps, default=-1) + 1
        return self

    def define_metric(self, name: str, **options: Any) -> None:
        pass

    def log(self, values: dict[str, float], step: int) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        pass


def test_a_resumed_run_goes_on_at_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = TrackingConfig(wandb="online", name="trial")
    log(tmp_path, config, 0, 5, out="trial", data={"shards": ["amos", "b"]})
    log(tmp_path, config, 3, 7)
    first, second = fake.runs
    assert first["name"] == second["name"] == "trial"
    assert first["id"] == second["id"] and first["resume"] == second["resume"] == "allow"
    assert fake.steps == [1, 2, 3, 4, 5, 6, 7]
    assert first["config"] == {"out": "trial", "data": {"shards": ["amos", "b"]}}


@pytest.mark.parametrize("error", [FakeWandb.Error("api_key not configured\nsee the docs"), ValueError("bad project")])
def test_its_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(error))
    with pytest.raises(MedpclipError, match=r"'tracking\.wandb': can't start .*wandb login") as caught:
        Tracker(tmp_path, TrackingConfig(wandb="online"), {}, 0)
    assert "\n" not in str(caught.value)


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format (blocks of 32 KiB) after 7 bytes of head."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def test_offline_starts_are_of_one_run_and_tell_nothing_of_this_machine(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run = tmp_path / "run"
    run.mkdir()
    config = TrackingConfig(wandb="offline", tensorboard=True)
    for begin in (0, 2):
        log(run, config, begin, begin + 3, out=run.name)
    wandb.teardown()  # its own process writes on after `finish`, as it does at a program's end
    starts = {path: list(records(path)) for path in (run / "wandb").glob("offline-run-*/run-*.wandb")}
    runs = [next(record.run for record in part if record.HasField("run")) for part in starts.values()]
    assert len(runs) == 2 and len({one.run_id for one in runs}) == 1 and all(one.resume for one in runs)
    lines = [[record.history.item for record in part if record.HasField("history")] for part in starts.values()]
    # `wandb sync` numbers overlapping lines anew: this metric is what tells their step.
    steps = [
        [
            json.loads(item.value_json)
            for line in part
            for item in line
            if item.key == "step" or item.nested_key == ["step"]
        ]
        for part in lines
    ]
    assert sorted(steps) == [[1, 2, 3], [3, 4, 5]]
    axes = {record.metric.step_metric for part in starts.values() for record in part if record.metric.glob_name == "*"}
    assert axes == {"step"}
    assert {one.host for one in runs} == {"-"}
    event_files = list((run / "tensorboard").iterdir())
    assert all(re.fullmatch(r"events\.out\.tfevents\.\d{20}", path.name) for path in event_files)
    for path in [*starts, *event_files]:
        for private in (str(tmp_path), sys.prefix):
            assert private.encode() not in path.read_bytes(), path


def test_a_kill_leaves_the_log_whole(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        tracker = Tracker(tmp_path, TrackingConfig(tensorboard=True), {}, 0)
        tracker.log(1, "train", {"loss": 1.0})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "kind": "train", "loss": 1.0}]
