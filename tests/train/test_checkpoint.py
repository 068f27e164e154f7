"""Checkpoints survive full disks, say what they are, and are not continued elsewhere unawares."""

import json
import resource
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medpclip.data.loading.loader import DataConfig
from medpclip.data.phantom import write_phantoms
from medpclip.distributed import World
from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import build_model, find_checkpoint, load_model, read_meta
from medpclip.train import checkpoint
from medpclip.train.checkpoint import code_hash, trained_on
from medpclip.train.config import CheckpointConfig, TrainConfig
from medpclip.train.engines.local import LocalEngine

CPU = torch.device("cpu")
resume = partial(checkpoint.resume, world=World())
save_checkpoint = partial(checkpoint.save_checkpoint, world=World())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "phantom"
    write_phantoms(folder, images=20, seed=1, workers=1)
    return folder


@pytest.fixture
def config(shards: Path, micro_trunk: Path, tmp_path: Path) -> TrainConfig:
    model = ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16))
    return TrainConfig(tmp_path / "run", DataConfig([shards], workers=0), model, device="cpu", batch_size=4)


@pytest.fixture
def engine(config: TrainConfig) -> LocalEngine:
    return LocalEngine(build_model(config.model), config, World(), CPU)


def names(config: TrainConfig) -> list[str]:
    return sorted(path.name for path in (config.out / "checkpoints").iterdir())


def test_safetensors_full_disk_is_one_line_and_costs_no_checkpoint(
    engine: LocalEngine, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = save_checkpoint(engine, config, 1)

    def fails(*args: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with (
        monkeypatch.context() as patch,
        pytest.raises(MedpclipError, match="can't be written .*make room") as error,
    ):
        patch.setattr(checkpoint, "save_file", fails)
        save_checkpoint(engine, config, 2)
    assert "\n" not in str(error.value) and names(config) == [kept.name]
    load_model(config.out)
    assert resume(engine, config, kept) == 1


def test_a_write_that_the_system_refuses(engine: LocalEngine, config: TrainConfig) -> None:
    """The kernel's own refusal (here of files above a size), met inside safetensors."""
    kept = save_checkpoint(engine, config, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(MedpclipError, match="can't be written"):
            save_checkpoint(engine, config, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(config) == [kept.name]
    load_model(config.out)


def test_leftovers_are_swept_and_old_ones_go(engine: LocalEngine, config: TrainConfig) -> None:
    config.checkpoint = CheckpointConfig(keep=1)
    (config.out / "checkpoints" / ".step-00000007.part" / "engine").mkdir(parents=True)
    for step in (1, 2, 2):
        save_checkpoint(engine, config, step)
    assert names(config) == ["step-00000002"]
    load_model(config.out)


def test_some_stay_for_ever(engine: LocalEngine, config: TrainConfig) -> None:
    config.checkpoint = CheckpointConfig(keep=2, keep_every_steps=4)
    for step in range(1, 11):
        save_checkpoint(engine, config, step)
    assert names(config) == [f"step-{step:08d}" for step in (4, 8, 9, 10)]


def test_meta_says_what_it_was_trained_on(engine: LocalEngine, config: TrainConfig, shards: Path) -> None:
    meta = read_meta(save_checkpoint(engine, config, 1))
    manifest = json.loads((shards / "manifest.json").read_text())
    told = meta["trained_on"]
    assert told["splits"] == ["train"] and told["sources"] == [manifest["recipe"]["name"]]
    assert told["terms"] == sorted(manifest["splits"]["train"]["category"]) and told["terms"]
    assert told["manifests"] == [meta["data"]["0"]]
    assert meta["code"] == code_hash() and len(code_hash()) == 64 and meta["device"] == "cpu"


def test_what_the_first_stage_saw_was_seen(engine: LocalEngine, config: TrainConfig, tmp_path: Path) -> None:
    first = save_checkpoint(engine, config, 1)
    meta = read_meta(first)
    meta["trained_on"] = {
        "splits": ["val"],
        "sources": ["elsewhere"],
        "terms": ["a term of it"],
        "manifests": ["0" * 64],
    }
    before, silent = tmp_path / "before", tmp_path / "silent"
    for folder, told in ((before, meta), (silent, {key: meta[key] for key in meta if key != "trained_on"})):
        folder.mkdir()
        (folder / "meta.json").write_text(json.dumps(told))
    alone = trained_on(config)
    assert alone is not None
    second = replace(config, model=replace(config.model, pretrained=str(before)))
    assert trained_on(second) == {key: sorted({*alone[key], *meta["trained_on"][key]}) for key in alone}
    shutil.rmtree(before)  # a run that has begun remembers
    assert "elsewhere" in read_meta(save_checkpoint(engine, second, 2))["trained_on"]["sources"]
    assert trained_on(replace(config, model=replace(config.model, pretrained=str(silent)))) is None
    assert trained_on(replace(config, model=replace(config.model, pretrained="openai"))) == alone


def test_terms_that_are_left_out_were_not_trained_on(config: TrainConfig) -> None:
    seen = trained_on(config)
    assert seen is not None
    first, *others = seen["terms"]
    config.data.leave_out_terms = [first]
    assert trained_on(config) == seen | {"terms": others}


@pytest.mark.parametrize(("key", "value"), [("torch", "1.0"), ("medpclip", "0.0.1"), ("device", "cuda (a GPU)")])
def test_another_environment_is_refused_unless_told(
    engine: LocalEngine, config: TrainConfig, key: str, value: str
) -> None:
    folder = save_checkpoint(engine, config, 3)
    meta = read_meta(folder)
    (meta if key == "device" else meta["versions"])[key] = value
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(MedpclipError, match=f"{key} was '{value.split()[0]}.*--resume-anyway"):
        resume(engine, config, folder)
    assert resume(engine, config, folder, allow_other_environment=True) == 3


def test_the_optimizer_comes_back(engine: LocalEngine, config: TrainConfig) -> None:
    engine.backward(engine.model.region_logit_scale.square().sum(), last=True)
    engine.step(1e-3)
    save_checkpoint(engine, config, 1)
    other = LocalEngine(build_model(config.model), config, World(), CPU)
    assert resume(other, config, find_checkpoint(config.out)) == 1
    mine, theirs = (e.optimizer.state[e.model.region_logit_scale]["exp_avg"] for e in (engine, other))
    assert torch.equal(mine, theirs) and mine.abs() > 0


def test_the_moving_average_is_kept_and_comes_back(engine: LocalEngine, config: TrainConfig) -> None:
    config.ema_decay = 0.9
    engine = LocalEngine(build_model(config.model), config, World(), CPU)
    start = engine.model.region_logit_scale.item()
    engine.backward(engine.model.region_logit_scale.square().sum(), last=True)
    engine.step(1e-1)
    folder = save_checkpoint(engine, config, 1)
    average = load_file(folder / "ema.safetensors")["region_logit_scale"].item()
    assert average == pytest.approx(0.9 * start + 0.1 * engine.model.region_logit_scale.item())
    other = LocalEngine(build_model(config.model), config, World(), CPU)
    resume(other, config, folder)
    mine, theirs = engine.average(), other.average()
    assert mine is not None and theirs is not None
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_dropout_is_another_on_other_ranks(engine: LocalEngine, config: TrainConfig) -> None:
    folder = save_checkpoint(engine, config, 1)
    config.micro_batch_size = 2
    assert resume(engine, config, folder) == 1  # the same samples and texts, other rounding
    engine.model.clip.transformer.resblocks[0].mlp.append(torch.nn.Dropout(0.1))
    with pytest.raises(MedpclipError, match="micro_batch_size None, now on 1 with 2, and the model has dropout"):
        resume(engine, config, folder)
    assert resume(engine, config, folder, allow_other_environment=True) == 1
