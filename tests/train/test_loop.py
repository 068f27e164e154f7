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
from ranks import free_port, rank_environment, start_ranks
from safetensors.torch import load_file

from medpclip.config import dump_yaml
from medpclip.data.loading.loader import DataConfig
from medpclip.data.phantom import write_phantoms
from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import find_checkpoint, load_model
from medpclip.train import loop
from medpclip.train.config import (
    CheckpointConfig,
    EngineConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    SupervisionConfig,
    TrackingConfig,
    TrainConfig,
)


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
    clock = ("images_per_second", "regions_per_second", "data_wait_share", "mfu")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(run) / "model.safetensors")


def test_a_run_cut_anywhere_is_the_uncut_run_to_the_bit(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.micro_batch_size = 4
    loop.train(config)
    uncut, log = weights(config.out), lines(config.out)
    assert [row["step"] for row in log] == list(range(1, 7))
    config.out = config.out.with_name("cut")
    real = loop.prepare

    def dies_in_step_5(*args: Any) -> Any:
        if args[4] == 4:
            raise RuntimeError("power cut")
        return real(*args)

    monkeypatch.setattr(loop, "prepare", dies_in_step_5)
    with pytest.raises(RuntimeError):
        loop.train(config)
    assert len(lines(config.out)) == 4  # one line beyond the checkpoint, to be cut back
    monkeypatch.setattr(loop, "prepare", real)
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


def test_micro_batches_change_nothing_but_rounding(config: TrainConfig) -> None:
    """The contrast is over the whole step, and which samples and texts a step has doesn't depend on its parts."""
    config.steps = 2
    loop.train(config)
    whole = lines(config.out)
    for size in (1, 4):
        config.micro_batch_size, config.out = size, config.out.with_name(f"micro-{size}")
        loop.train(config)
        for ours, row in zip(lines(config.out), whole, strict=True):
            assert ours.pop("kind") == "train"
            assert ours == pytest.approx({k: v for k, v in row.items() if k != "kind"}, rel=2e-4), size


def test_what_is_saved_is_what_is_loaded(config: TrainConfig) -> None:
    loop.train(config)
    model = load_model(config.out)
    assert not model.training and model.config.fusion == config.model.fusion
    assert model.config.trunk == Path(str(config.model.trunk)).name  # of paths, checkpoints have the last name
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
    with pytest.raises(MedpclipError, match=r"model\.safetensors: can't be read"):
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


def test_a_step_that_is_not_finite_is_skipped_if_so_configured(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.supervision = SupervisionConfig(nonfinite="skip", max_skipped=2)
    real = loop.run_step

    def poisons(steps: tuple[int, ...]) -> Any:
        count = iter(range(100))

        def call(engine: Any, *args: Any) -> Any:
            losses = real(engine, *args)
            if next(count) in steps:
                engine.model.region_logit_scale.grad.fill_(float("nan"))
            return losses

        return call

    monkeypatch.setattr(loop, "run_step", poisons((1, 3)))
    loop.train(config)
    rows = lines(config.out)
    assert [row["skipped_steps"] for row in rows] == [0, 1, 0, 1, 0, 0] and rows[1]["grad_norm"] is None
    assert all(torch.isfinite(tensor).all() for tensor in weights(config.out).values())
    assert rows[1]["logit_scale"] == rows[2]["logit_scale"] != rows[3]["logit_scale"]  # of before each step
    monkeypatch.setattr(loop, "run_step", poisons((1, 3, 4)))
    config.out = config.out.with_name("worse")
    with pytest.raises(MedpclipError, match=r"2 steps in a row, up to 5, were not finite \(the gradient\)"):
        loop.train(config)


def test_tasks_are_evaluated_at_intervals_and_disturb_nothing(config: TrainConfig, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    loop.train(config)
    task = tmp_path / "task.yaml"
    task.write_text(
        f"name: quick\ndata: [{config.data.shards[0]}]\nsplit: train\n"
        "image: [{label: modality, templates: ['a {name} image']}]\nbootstrap: {draws: 10}\n"
    )
    config.evaluation, plain = EvaluationConfig([task], every_steps=4), lines(config.out)
    config.out = config.out.with_name("evaluated")
    loop.train(config)
    rows = lines(config.out)
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [4, 6]
    assert [row for row in rows if row["kind"] == "train"] == plain
    assert (config.out / "evaluation" / "step-00000004" / "quick" / "result.json").is_file()
    config.evaluation.tasks, config.out = [tmp_path / "none.yaml"], config.out.with_name("none")
    with pytest.raises(MedpclipError, match="none.yaml"):
        loop.train(config)


def test_cuts_do_not_show_in_a_log_of_every_fourth_step(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a kill after a checkpoint between two lines, nor a stop between them."""
    config.tracking.every_steps, config.checkpoint.every_steps, config.steps = 4, 3, 9
    loop.train(config)
    uncut = lines(config.out)
    assert [row["step"] for row in uncut] == [4, 8, 9]
    real = loop.prepare

    def disturbed(step: int, stop: bool) -> Any:
        def prepare(*args: Any) -> Any:
            if args[4] == step and not stop:
                raise RuntimeError("power cut")
            if args[4] == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        return prepare

    config.out = config.out.with_name("cut")
    monkeypatch.setattr(loop, "prepare", disturbed(4, stop=False))
    with pytest.raises(RuntimeError):
        loop.train(config)
    monkeypatch.setattr(loop, "prepare", disturbed(5, stop=True))
    assert loop.train(config, may_resume=True) == signal.SIGTERM
    assert [row["step"] for row in lines(config.out)] == [4]  # a stop after step 6 gets no line of its own
    monkeypatch.setattr(loop, "prepare", real)
    loop.train(config, may_resume=True)
    assert lines(config.out) == uncut


def test_an_evaluation_that_was_cut_off_is_made_up_for(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    task = tmp_path / "task.yaml"
    task.write_text(
        f"name: quick\ndata: [{config.data.shards[0]}]\nsplit: train\n"
        "image: [{label: modality, templates: ['a {name} image']}]\nbootstrap: {draws: 10}\n"
    )
    config.evaluation = EvaluationConfig([task], every_steps=3)
    from medpclip.train.evaluate import Evaluator

    real = Evaluator.evaluate

    def signalled(self: Evaluator, weights: Any, step: int, alive: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return real(self, weights, step, alive)

    monkeypatch.setattr(Evaluator, "evaluate", signalled)
    assert loop.train(config) == signal.SIGUSR1  # in the evaluation after step 3
    assert [(row["step"], row["kind"]) for row in lines(config.out)][-1] == (3, "train")
    monkeypatch.setattr(Evaluator, "evaluate", real)
    assert loop.train(config, may_resume=True) is None
    assert [row["step"] for row in lines(config.out) if row["kind"] == "eval"] == [3, 6]


def test_ranks_that_began_differently_are_told(config: TrainConfig, tmp_path: Path) -> None:
    path, other = tmp_path / "config.yaml", tmp_path / "other.yaml"
    path.write_text(dump_yaml(config))
    config.optimizer.lr = 1e-2
    other.write_text(dump_yaml(config))
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "medpclip", "train", str(given)],
            env=rank_environment(rank, 2, port), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, given in enumerate((path, other))
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], outputs
    assert all("rank 1 has another configuration than rank 0" in output for output in outputs), outputs


def test_sharded_ranks_evaluate_their_moving_average(config: TrainConfig, tmp_path: Path) -> None:
    """Gathering it is a collective: no rank may leave it out."""
    pytest.importorskip("sklearn")
    pytest.importorskip("deepspeed")
    task = tmp_path / "task.yaml"
    task.write_text(
        f"name: quick\ndata: [{config.data.shards[0]}]\nsplit: train\n"
        "image: [{label: modality, templates: ['a {name} image']}]\nbootstrap: {draws: 10}\n"
    )
    config.evaluation, config.ema_decay, config.steps = EvaluationConfig([task]), 0.9, 2
    config.engine, config.supervision.evaluate_seconds = EngineConfig("deepspeed", zero=1), 60.0
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    ranks = start_ranks([sys.executable, "-m", "medpclip", "train", str(path)], 2)
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert [row["kind"] for row in lines(config.out)] == ["train", "train", "eval"]


def test_copies_of_checkpoints_are_left_alone(config: TrainConfig) -> None:
    import shutil

    config.checkpoint = CheckpointConfig(every_steps=1, keep=1, keep_every_steps=4)
    config.steps = 3
    loop.train(config)
    folder = config.out / "checkpoints"
    shutil.copytree(folder / "step-00000003", folder / "step-00000003-good")
    config.out, config.steps = config.out, 3
    assert find_checkpoint(config.out).name == "step-00000003"
    assert loop.train(config, may_resume=True) is None
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000003-good"]


def test_the_same_shards_elsewhere_are_the_same_run(config: TrainConfig, shards: Path, tmp_path: Path) -> None:
    config.steps = 3
    loop.train(config)
    (tmp_path / "moved").symlink_to(shards)
    config.data.shards = [tmp_path / "moved"]
    assert loop.train(config, may_resume=True) is None
    text = (find_checkpoint(config.out) / "meta.json").read_text()
    assert str(tmp_path) not in text and str(shards.parent) not in text
    assert (find_checkpoint(config.out) / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_two_ranks_do_what_one_does_and_go_on_as_one(config: TrainConfig, tmp_path: Path) -> None:
    """Two ranks are stopped by a signal to one of them; one process finishes the run, as one that ran alone."""
    config.data.shards = [config.data.shards[0]]
    config.steps, config.checkpoint.every_steps = 400, 1000
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    ranks = start_ranks([sys.executable, "-m", "medpclip", "train", str(path)], 2)
    log = config.out / "log.jsonl"
    while ranks[0].poll() is None and not (log.is_file() and log.read_text().count("\n") >= 2):
        time.sleep(0.05)
    ranks[1].send_signal(signal.SIGUSR1)
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [128 + signal.SIGUSR1] * 2, outputs
    done = lines(config.out)[-1]["step"]
    assert find_checkpoint(config.out).name == f"step-{done:08d}" and not (config.out / "failures").exists()
    config.steps = 400
    with pytest.MonkeyPatch.context() as patch:  # three steps more are enough
        real = loop.prepare

        def prepare(*args: Any) -> Any:
            if args[4] == done + 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        patch.setattr(loop, "prepare", prepare)
        loop.train(config, may_resume=True)
        together = lines(config.out)
        config.out = config.out.with_name("alone")
        loop.train(config)
    alone = lines(config.out)
    assert [row["step"] for row in together] == [row["step"] for row in alone]
    assert [row["keys"] for row in together] == [row["keys"] for row in alone]
    # Rounding grows from step to step; at the start, and right after the change, it is small.
    for row, expected in zip(together[:5], alone[:5], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def test_wandb_offline_writes_beside_the_run(config: TrainConfig) -> None:
    pytest.importorskip("wandb")
    config.tracking.wandb, config.steps = "offline", 2
    loop.train(config)
    assert list((config.out / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(lines(config.out)) == 2
