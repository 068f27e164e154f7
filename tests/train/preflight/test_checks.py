"""Each check, with planted faults."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medpclip.data.loading.loader import DataConfig
from medpclip.data.phantom import write_phantoms
from medpclip.distributed import World
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import build_model, find_checkpoint
from medpclip.train.config import CheckpointConfig, EngineConfig, TrainConfig
from medpclip.train.engines.local import LocalEngine
from medpclip.train.loop import train
from medpclip.train.preflight import disk as disk_module
from medpclip.train.preflight.costs import estimate
from medpclip.train.preflight.disk import Disk, check_disk, checkpoint_bytes, checkpoints_at_once
from medpclip.train.preflight.findings import Finding, amount, duration, has_problem, listed
from medpclip.train.preflight.network import Network, check_exchange
from medpclip.train.preflight.nodes import available_memory, check_nodes, local_facts
from medpclip.train.preflight.shards import check_shards
from medpclip.train.preflight.trial import Memory, Trial, check_trial, count_parameters, engine_memory, run_trial

GIB = 1 << 30
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "phantom"
    write_phantoms(folder, images=32, seed=1, workers=1)
    return folder


@pytest.fixture
def config(shards: Path, micro_trunk: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        out=tmp_path / "run",
        data=DataConfig([shards], workers=0),
        model=ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16)),
        steps=1,
        batch_size=4,
    )


def facts(node: str, local_rank: int = 0, **other: Any) -> dict[str, Any]:
    return {
        "node": node,
        "local_rank": local_rank,
        "clock": 1000.0,
        "software": {"medpclip": "1", "code": "abc", "torch": "2.9"},
        "device": "cuda (A)",
        "device_bytes": 80 * GIB,
        "memory": 100 * GIB,
        "shared_memory": 50 * GIB,
        "files": 65536,
        "cores": list(range(8)),
    } | other


def faults(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in found if finding.level != "ok"]


def test_nodes_that_are_alike(config: TrainConfig) -> None:
    [finding] = check_nodes([facts("n1"), facts("n1", 1), facts("n2"), facts("n2", 1)], config)
    assert finding.level == "ok" and "4 ranks on 2 nodes, cuda (A), 80.00 GiB free" in finding.what


@pytest.mark.parametrize(
    ("other", "level", "what"),
    [
        ({"software": {"medpclip": "1", "code": "xyz", "torch": "2.9"}}, "problem", "code is abc on n1, another on n2"),
        (
            {"software": {"medpclip": "1", "code": "abc", "torch": "2.8"}},
            "problem",
            "torch is 2.9 on n1, another on n2",
        ),
        ({"device": "cuda (B)"}, "warning", "the device is cuda (A) on n1, another on n2"),
        ({"files": 200}, "warning", "fewer than 512 open files are allowed on n2"),
        ({"cores": []}, "warning", None),
        ({"cores": [0]}, "warning", "too few cores on n2 (1 for 2 ranks and 0 workers)"),
        ({"clock": 1007.5}, "warning", "clocks are 7.5 s apart (n2 before n1)"),
        ({"local_rank": 0}, "problem", "several ranks share a device on n2"),
    ],
)
def test_a_node_that_is_not(config: TrainConfig, other: dict[str, Any], level: str, what: str | None) -> None:
    ranks = [facts("n1"), facts("n1", 1), facts("n2") | other, facts("n2", 1) | other]
    found = check_nodes(ranks, config)
    assert faults(found) == ([] if what is None else [(level, what)])
    assert has_problem(found) == (level == "problem")


def test_what_this_node_says(config: TrainConfig) -> None:
    mine = local_facts(World(), CPU)
    assert mine["device"] == "cpu" and 0 < mine["memory"] <= available_memory() * 2
    assert mine["software"]["torch"] == torch.__version__ and len(mine["software"]["code"]) == 12
    assert not has_problem(check_nodes([mine], config))


def test_a_network_that_is_too_slow() -> None:
    network = Network(1e-4, {"1 MB": 1e8, "64 MB": 1e9})
    assert network.seconds(1e9, 2) == pytest.approx(1.0)  # half of it to the other rank, and back
    assert network.seconds(1e9, 1000) == pytest.approx(2.0, rel=0.01)
    assert check_exchange(network, 10**8, 4, step_seconds=10) == []
    [finding] = check_exchange(network, 10**9, 2, step_seconds=2)
    assert finding.what == "exchanging gradients takes 50% of a step"
    assert check_exchange(None, 10**9, 1, step_seconds=1e-9) == []


def test_sound_shards(config: TrainConfig) -> None:
    config.steps, config.data.weights = 16, {"phantom": 2.0}
    [finding], corpus = check_shards(config, World())
    assert corpus is not None and corpus.samples == 32 and corpus.draws == 64 and corpus.bytes > 10_000
    assert f"32 samples with {corpus.regions} regions in 1 shards; 16 steps are 1.00 epochs" in finding.what


def test_a_shard_that_was_cut_short(config: TrainConfig, shards: Path, tmp_path: Path) -> None:
    config.data.shards = [Path(shutil.copytree(shards, tmp_path / "copy"))]
    [shard] = config.data.shards[0].glob("train-*.tar")
    with open(shard, "r+b") as stream:
        stream.truncate(shard.stat().st_size - 512)
    [finding], corpus = check_shards(config, World())
    assert corpus is None and finding.level == "problem"
    assert "train-000000.tar" in finding.what and finding.remedy == "copy it again or build again"


def test_a_sample_that_does_not_decode(config: TrainConfig, shards: Path, tmp_path: Path) -> None:
    config.data.shards = [Path(shutil.copytree(shards, tmp_path / "copy"))]
    [shard] = config.data.shards[0].glob("train-*.tar")
    with open(shard, "r+b") as stream:
        stream.seek(512)
        stream.write(bytes(512))
    [finding], _ = check_shards(config, World())
    assert finding.level == "problem" and "unreadable image" in finding.what


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        ({"split": "nope"}, "no split 'nope' (it has: train, val, test)", "change data.split"),
        ({"shards": [Path("nowhere")]}, "nowhere: no such folder", "give a folder of shards"),
    ],
)
def test_data_that_is_not_there(config: TrainConfig, change: dict[str, Any], what: str, remedy: str) -> None:
    for name, value in change.items():
        setattr(config.data, name, value)
    [finding], corpus = check_shards(config, World())
    assert corpus is None and what in finding.what and remedy in finding.remedy


def test_batches_that_cannot_be_shared_out(config: TrainConfig) -> None:
    config.batch_size, config.micro_batch_size = 40, 3
    found, corpus = check_shards(config, World())
    assert corpus is not None and [level for level, _ in faults(found)] == ["problem", "problem"]
    assert "key 'batch_size' is 40" in found[1].what and "an epoch has only 32 samples" in found[2].what


def test_room_for_checkpoints(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.steps, config.checkpoint = 100, CheckpointConfig(keep=3, keep_every_steps=40)
    assert checkpoints_at_once(config) == 3 + 1 + 2
    [finding], disk = check_disk(config, World(), 1 << 20)
    assert finding.level == "ok" and disk is not None and disk.run_bytes == 6 << 20
    assert not config.out.exists() and list(config.out.parent.iterdir()) == []
    usage = shutil.disk_usage(config.out.parent)
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    [finding], _ = check_disk(config, World(), 1 << 20)
    assert finding.level == "problem" and "5.0 MiB free, checkpoints take 6.0 MiB" in finding.what
    there = config.out / "checkpoints" / "step-00000001" / "model.safetensors"
    there.parent.mkdir(parents=True)
    there.write_bytes(bytes(1 << 20))  # what the run has written already counts
    [finding], _ = check_disk(config, World(), 1 << 20)
    assert finding.level == "ok"


def test_out_that_cannot_be_written(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> tuple[str, float]:
        return "No space left on device", 0.0

    monkeypatch.setattr(disk_module, "_write", full)
    [finding], disk = check_disk(config, World(), 1 << 20)
    assert disk is None and finding.level == "problem" and "can't be written (No space left on device)" in finding.what


@pytest.mark.parametrize("change", [{}, {"ema_decay": 0.9}, {"freeze": ["text"]}], ids=["plain", "average", "frozen"])
def test_sizes_are_those_of_a_real_run(config: TrainConfig, change: dict[str, Any]) -> None:
    for name, value in change.items():
        setattr(config, name, value)
    parameters, trained = count_parameters(build_model(config.model), config)
    assert (trained < parameters) == bool(config.freeze)
    train(config)
    written = sum(path.stat().st_size for path in find_checkpoint(config.out).rglob("*") if path.is_file())
    assert checkpoint_bytes(config, parameters, trained) == pytest.approx(written, rel=0.03)


def test_engine_memory_is_what_a_local_engine_has(config: TrainConfig) -> None:
    model = build_model(config.model)
    sizes = count_parameters(model, config)
    engine = LocalEngine(model, config, World(), CPU)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()
    memory = engine_memory(config, World(), sizes)
    assert memory.weights == memory.gradients == sum(p.nbytes for p in model.parameters())
    state = [value for state in engine.optimizer.state.values() for value in state.values() if value.ndim]
    assert memory.optimizer == sum(tensor.nbytes for tensor in state)


@pytest.mark.parametrize(
    ("precision", "zero", "offload", "parts"),  # bytes for each parameter, of four ranks
    [
        ("fp32", 0, False, (4, 4, 8)),
        ("fp32", 1, False, (4, 4, 2)),
        ("pure_bf16", 1, False, (2, 2, 3)),
        ("pure_bf16", 2, False, (2, 0.5, 3)),
        ("pure_bf16", 3, False, (0.5, 0.5, 3)),
        ("fp16", 3, True, (0.5, 0.5, 0)),
    ],
)
def test_shares_of_sharded_engines(
    config: TrainConfig, precision: Any, zero: Any, offload: bool, parts: tuple[float, ...]
) -> None:
    config.precision, config.engine = precision, EngineConfig("deepspeed", zero=zero, offload=offload)
    memory = engine_memory(config, World(1, 4), (1000, 1000))
    assert (memory.weights, memory.gradients, memory.optimizer) == tuple(1000 * part for part in parts)


def test_a_trial_measures_and_leaves_nothing(config: TrainConfig) -> None:
    config.data.workers = 1
    model = build_model(config.model)
    trial = run_trial(model, config, World(), CPU, count_parameters(model, config))
    assert trial.step_seconds > 0 and trial.memory.loader > 1 << 20
    assert 0 < trial.memory.process <= trial.peak < 4 * GIB
    side = model.preprocess.image_size
    assert 4 * 4 * 3 * side * side < trial.shared_bytes < 4 * 4 * 6 * side * side
    assert not config.out.exists()


def trial_of(peak: int, loader: int = 0, shared: int = 0) -> Trial:
    return Trial(1000, 1000, Memory(0, 0, 0, 0, 0, 0, loader), peak, 0.5, shared)


@pytest.mark.parametrize(
    ("trial", "level", "what"),
    [
        (trial_of(60 * GIB), None, ""),
        (trial_of(75 * GIB), "warning", "the device's memory of n1: 75.00 GiB are needed, 80.00 GiB are free"),
        (trial_of(81 * GIB), "problem", "the device's memory of n1: 81.00 GiB are needed"),
        (trial_of(GIB, loader=60 * GIB), "problem", "main memory of n1: 120.00 GiB are needed, 100.00 GiB are free"),
        (trial_of(GIB, shared=30 * GIB), "problem", "/dev/shm of n1: 60.00 GiB are needed, 50.00 GiB are free"),
    ],
)
def test_memory_that_is_short(trial: Trial, level: str | None, what: str) -> None:
    found = faults(check_trial(trial, [facts("n1"), facts("n1", 1)], torch.device("cuda")))
    assert [level for level, _ in found] == ([] if level is None else [level])
    assert all(what in said for _, said in found)


def test_costs(config: TrainConfig) -> None:
    config.steps, config.batch_size = 7200, 64
    config.checkpoint = CheckpointConfig(every_steps=720, every_minutes=None)
    costs = estimate(config, World(0, 8), trial_of(0), Disk(1, 1, write_seconds=36.0))
    assert costs.hours == pytest.approx(1.0 + 0.1)  # 7200 steps of half a second, ten checkpoints of 36 s
    assert (costs.device_hours, costs.images_per_second) == (pytest.approx(8.8), 128)
    config.checkpoint.every_minutes = 1.0
    assert estimate(config, World(), trial_of(0), Disk(1, 1, 36.0)).hours == pytest.approx(1.0 + 0.6)


def test_words_for_people() -> None:
    assert (amount(1.5 * GIB), amount(12 << 20), amount(2000 * GIB)) == ("1.50 GiB", "12.0 MiB", "2,000.00 GiB")
    assert (duration(131400), duration(90), duration(2.7)) == ("36.5 h", "1.5 min", "2.7 s")
    assert listed(["a", "b"]) == "a, b" and listed(list("abcdef")) == "a, b, c, d and 2 more"
