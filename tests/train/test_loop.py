"""Training runs: they learn, they go on exactly, and they refuse to pretend."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medpclip.config import dump_yaml
from medpclip.data.loading.loader import DataConfig
from medpclip.data.phantom import write_phantoms
from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import find_checkpoint, load_model
from medpclip.train import loop
from medpclip.train.config import CheckpointConfig, LossConfig, OptimizerConfig, TrackingConfig, TrainConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "phantom"
    write_phantoms(folder, images=48, seed=1, workers=1)
    return folder


@pytest.fixture
def config(shards: Path, micro_trunk: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        out=tmp_path / "run",
        data=DataConfig([shards], workers=0),
        model=ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16)),
        optimizer=OptimizerConfig(lr=3e-3, fusion_lr_scale=8.0, warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps=3),
        tracking=TrackingConfig(every_steps=1),
        steps=6,
        batch_size=8,
    )


def lines(run: Path) -> list[dict[str, Any]]:
    """The log, without what the clock says."""
    clock = ("images_per_second", "regions_per_second", "data_wait_share")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(run) / "model.safetensors")


def test_a_run_cut_anywhere_is_the_uncut_run_to_the_bit(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.accumulate = 2
    loop.train(config)
    uncut, log = weights(config.out), lines(config.out)
    assert [row["step"] for row in log] == list(range(1, 7))
    config.out = config.out.with_name("cut")
    real, steps = loop._step, []

    def dies_in_step_5(*args: Any) -> dict[str, float]:
        steps.append(args[4])
        if args[4] == 4:
            raise RuntimeError("power cut")
        return real(*args)

    monkeypatch.setattr(loop, "_step", dies_in_step_5)
    with pytest.raises(RuntimeError):
        loop.train(config)
    assert len(lines(config.out)) == 4  # one line beyond the checkpoint, to be cut back
    monkeypatch.setattr(loop, "_step", real)
    loop.train(config, may_resume=True)
    assert lines(config.out) == log
    assert all(torch.equal(uncut[name], tensor) for name, tensor in weights(config.out).items())


def test_the_run_learns_what_regions_are(config: TrainConfig) -> None:
    config.steps, config.checkpoint.every_steps = 60, 60
    loop.train(config)
    log = lines(config.out)
    first, last = (sum(row["loss_region"] for row in part) / 5 for part in (log[:5], log[-5:]))
    assert last < 0.85 * first


def test_sigmoid_and_conditioned_and_bf16_train_too(config: TrainConfig) -> None:
    config.model.logit_bias, config.loss = -5.0, LossConfig(kind="sigmoid")
    config.model.fusion.kind, config.precision, config.steps = "conditioned", "bf16", 20
    config.checkpoint.every_steps = 20
    loop.train(config)
    log = lines(config.out)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]


def test_accumulation_is_the_mean_over_all_items(config: TrainConfig) -> None:
    """With contrast inside micro-batches, two of them equal the weighted sum of their own losses."""
    config.accumulate, config.steps = 2, 1
    loop.train(config)
    row = lines(config.out)[0]
    from medpclip.data.lexicon import Lexicon
    from medpclip.data.loading.loader import RegionDataset, make_loader
    from medpclip.models.load import build_model
    from medpclip.train.step import losses, prepare

    torch.manual_seed(config.seed)
    model = build_model(config.model)
    data = RegionDataset(config.data, 64, 16, model.preprocess.fill, config.seed)
    loader = iter(make_loader(data, 4))
    inputs = [prepare(next(loader), Lexicon.load(), config.data.texts, (config.seed, 2, 0, i)) for i in range(2)]
    parts = [losses(model, i, config.loss, torch.device("cpu")) for i in inputs]
    expected = sum(p.region.item() for p in parts) / sum(i.counts[1] for i in inputs)
    assert row["loss_region"] == pytest.approx(expected, rel=1e-5)


def test_what_is_saved_is_what_is_loaded(config: TrainConfig) -> None:
    loop.train(config)
    model = load_model(config.out)
    assert not model.training and model.config == config.model
    assert all(torch.equal(tensor, weights(config.out)[name]) for name, tensor in model.state_dict().items())
    # The trunk's weights are a plain open_clip checkpoint's, and give its embedding to the bit.
    import open_clip

    plain = open_clip.CLIP(**json.loads(Path(config.model.trunk).read_text()), nonscalar_logit_scale=True)
    plain.load_state_dict({n.removeprefix("clip."): t for n, t in weights(config.out).items() if n.startswith("clip.")})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain.eval().encode_image(images, normalize=True), model.encode_image(images))
    assert len(list((config.out / "checkpoints").iterdir())) == 2


def test_a_run_is_not_overwritten_or_mixed_with_another(config: TrainConfig) -> None:
    config.steps = 3
    loop.train(config)
    with pytest.raises(MedpclipError, match="--resume"):
        loop.train(config)
    config.optimizer.lr = 1e-3
    with pytest.raises(MedpclipError, match=r"'optimizer\.lr' was 0\.003, is now 0\.001"):
        loop.train(config, may_resume=True)
    config.optimizer.lr, config.data.split = 3e-3, "val"
    with pytest.raises(MedpclipError, match=r"'data\.split'"):
        loop.train(config, may_resume=True)


def test_other_shards_are_not_the_same_run(config: TrainConfig, shards: Path, tmp_path: Path) -> None:
    import shutil

    config.data.shards = [tmp_path / "copy"]
    shutil.copytree(shards, tmp_path / "copy")
    config.steps = 3
    loop.train(config)
    manifest = tmp_path / "copy" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(MedpclipError, match="key 'data': the shards are not those"):
        loop.train(config, may_resume=True)


def test_a_broken_checkpoint_says_so(config: TrainConfig) -> None:
    config.steps = 3
    loop.train(config)
    folder = find_checkpoint(config.out)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(MedpclipError, match=r"model\.safetensors: unreadable"):
        load_model(config.out)
    (folder / "meta.json").write_text("{")
    with pytest.raises(MedpclipError, match=r"meta\.json: unreadable"):
        load_model(config.out)


def test_sigterm_saves_and_ends(config: TrainConfig, tmp_path: Path) -> None:
    config.steps, config.checkpoint.every_steps, config.data.workers = 5000, 5000, 1
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    process = subprocess.Popen(
        # A group of its own: the signal goes to all of it, loader workers included, as schedulers send it.
        [sys.executable, "-m", "medpclip.cli", "train", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    log = config.out / "log.jsonl"
    while process.poll() is None and not (log.is_file() and log.read_text().count("\n") >= 2):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    assert find_checkpoint(config.out).name == f"step-{lines(config.out)[-1]['step']:08d}"


def test_a_loss_that_is_not_finite_stops_the_run(config: TrainConfig) -> None:
    config.optimizer.lr, config.optimizer.clip_grad, config.optimizer.warmup_steps = 1e30, None, 1
    with pytest.raises(MedpclipError, match="not finite"):
        loop.train(config)


def test_wandb_offline_writes_beside_the_run(config: TrainConfig) -> None:
    pytest.importorskip("wandb")
    config.tracking.wandb, config.steps = "offline", 2
    loop.train(config)
    assert list((config.out / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(lines(config.out)) == 2
