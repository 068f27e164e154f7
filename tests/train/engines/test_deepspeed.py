"""DeepSpeed's engine does what the local one does, whatever it shards.

Processes are slow to start, so each pair of them makes several checks; this file is the script that they run.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import Batch, DataConfig, RegionDataset, make_loader
from medpclip.data.phantom import write_phantoms
from medpclip.distributed import World, join
from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import build_model
from medpclip.train.config import EngineConfig, OptimizerConfig, TrainConfig
from medpclip.train.engines.base import MAX_LOGIT_SCALE, Engine
from medpclip.train.engines.deepspeed_settings import settings
from medpclip.train.engines.local import LocalEngine
from medpclip.train.engines.masters import AVERAGE, MastersAdamW
from medpclip.train.step import prepare, run_step

IMAGES = 8
CPU = torch.device("cpu")
LEXICON = Lexicon.load()
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and a JSON file under which even the smallest parameter is taken apart and no group is whole."""
    path = tmp_path_factory.mktemp("deepspeed")
    write_phantoms(path / "shards", images=24, seed=1, workers=1)
    extra = {"zero_optimization": {"stage3_param_persistence_threshold": 0, "sub_group_size": 5000}}
    (path / "extra.json").write_text(json.dumps(extra))
    return path


def make_config(folder: Path, trunk: Path, zero: int | None, **changes: Any) -> TrainConfig:
    """`zero`: None for the local engine. Changes with two underscores are of `engine`."""
    of_engine = {name[2:]: changes.pop(name) for name in list(changes) if name.startswith("__")}
    extra = folder / "extra.json" if zero == 3 else None
    return TrainConfig(
        out=Path("unused"),
        data=DataConfig([folder / "shards"], workers=0),
        model=ModelConfig(str(trunk), fusion=FusionConfig(prompt_dim=16)),
        engine=EngineConfig("local")
        if zero is None
        else EngineConfig("deepspeed", zero, deepspeed_config=extra, **of_engine),
        optimizer=OptimizerConfig(lr=1e-3),
        batch_size=IMAGES,
        **({"ema_decay": 0.9} | changes),
    )


def make_engine(config: TrainConfig, world: World) -> Engine:
    torch.manual_seed(3)
    model = build_model(config.model)
    with torch.no_grad():
        for parameter in model.fusion.parameters():  # off its start, so that every gradient says something
            parameter.add_(0.05 * torch.randn_like(parameter))
    if config.engine.kind == "local":
        return LocalEngine(model, config, world, CPU)
    from medpclip.train.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(model, config, world, CPU)


def batches(config: TrainConfig) -> list[Batch]:
    """Some steps' images; two images each with points, boxes, nothing and masks."""
    model = build_model(config.model)
    loader: Iterator[Batch] = make_loader(
        RegionDataset(config.data, 64, model.mask_grid, model.preprocess.fill, 0), IMAGES
    )
    out = [next(loader) for _ in range(5)]
    for batch in out:
        kinds = ["points"] * 2 + ["box"] * 2 + ["none"] * 2 + ["mask"] * 2
        is_point = torch.tensor([kind == "points" for kind in kinds])
        batch.prompts["point_labels"][~is_point] = -1
        batch.prompts["point_labels"][is_point, :, 0] = 1
        for name in ("box", "mask"):
            batch.prompts[f"{name}_valid"] &= torch.tensor([[kind == name] for kind in kinds])
        batch.region_facts[4] = batch.region_facts[5] = []
    return out


def cut(batch: Batch, world: World, micros: int) -> list[Batch]:
    """A rank's micro-batches: of two ranks with two each, one has points and nothing, the other boxes and masks."""
    size = IMAGES // (world.size * micros)
    starts = [(micro * world.size + world.rank) * size for micro in range(micros)]
    return [_part(batch, slice(start, start + size)) for start in starts]


def _part(batch: Batch, rows: slice) -> Batch:
    prompts = {name: tensor[rows] for name, tensor in batch.prompts.items()}
    facts = batch.image_facts[rows], batch.region_facts[rows]
    return Batch(batch.images[rows], batch.colours[rows], prompts, *facts, batch.keys[rows])


class Trial:
    """An engine and the steps it makes."""

    def __init__(self, config: TrainConfig, world: World, data: list[Batch]) -> None:
        self.config, self.world, self.data = config, world, data
        self.engine = make_engine(config, world)

    def gradients(self, step: int, micros: int = 2) -> float:
        """Leave them with the engine; the loss."""
        parts = cut(self.data[step % len(self.data)], self.world, micros * 2 // self.world.size)
        inputs = prepare(parts, LEXICON, self.engine.model, self.config, step, self.world)
        return run_step(self.engine, inputs, self.config.loss, self.world).loss

    def go(self, start: int, stop: int, micros: int = 2) -> list[float]:
        losses = []
        for step in range(start, stop):
            losses.append(self.gradients(step, micros))
            result = self.engine.step(1e-3)
            assert result.stepped and math.isfinite(result.grad_norm)
        return losses

    def save(self, folder: Path) -> None:
        """From rank 0, as a checkpoint would; all ranks then find it."""
        found = {"weights": self.engine.weights(), "average": self.engine.average(), "state": self.engine.state()}
        assert all((tensors is not None) == self.world.is_first for tensors in found.values())
        for name, tensors in found.items():
            if tensors is not None:
                folder.mkdir(exist_ok=True)
                save_file(tensors, folder / f"{name}.safetensors")
        self.world.barrier()

    def load(self, folder: Path) -> "Trial":
        self.engine.load(*saved(folder))
        return self


def saved(folder: Path) -> tuple[Tensors, Tensors, Tensors]:
    weights, average, state = (load_file(folder / f"{name}.safetensors") for name in ("weights", "average", "state"))
    return weights, average, state


def distance(a: Tensors, b: Tensors) -> float:
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def worst(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


# What ranks do.


def alone(folder: Path, trunk: Path, world: World) -> None:
    """One process: DeepSpeed begins a group of its own; its checkpoint is for the ranks that come after."""
    assert world.size == 1
    data = batches(make_config(folder, trunk, None))
    local = Trial(make_config(folder, trunk, None), world, data)
    ours = Trial(make_config(folder, trunk, 1), world, data)
    assert worst(ours.go(0, 3), local.go(0, 3)) <= 1e-5
    ours.save(folder / "alone")


def equal_runs(folder: Path, trunk: Path, world: World) -> None:
    """Ten steps of two micro-batches, forty of one, for all stages; a local run, and one that adds up in another order."""
    data = batches(make_config(folder, trunk, None))

    def run(zero: int | None, world: World) -> tuple[list[float], Tensors | None]:
        trial = Trial(make_config(folder, trunk, zero), world, data)
        losses = trial.go(0, 10) + trial.go(10, 50, micros=1)
        return losses, trial.engine.weights()

    local, weights = run(None, world)
    for zero in range(4):
        losses, theirs = run(zero, world)
        assert worst(losses[:10], local[:10]) <= 1e-5, zero
        if world.is_first:
            assert weights is not None and theirs is not None
            if zero == 0:
                other, other_weights = run(None, World())  # four micro-batches, then two, and no average over ranks
                assert other_weights is not None
            of_losses, of_weights = worst(local, other), distance(weights, other_weights)
            print(zero, worst(losses, local), of_losses, distance(weights, theirs), of_weights)
            assert worst(losses, local) <= 10 * of_losses, zero
            assert distance(weights, theirs) <= 10 * of_weights, zero


def same_again(folder: Path, trunk: Path, world: World) -> None:
    """For each stage: a step that isn't finite on one rank, one that is to be skipped, save, go on, resume, the same."""
    data = batches(make_config(folder, trunk, None))
    for zero in range(4):
        config = make_config(folder, trunk, zero)
        trial = Trial(config, world, data)
        trial.go(0, 2)
        trial.save(folder / f"before-{zero}")

        scale = trial.engine.model.region_logit_scale
        handle = scale.register_hook(lambda gradient: gradient * math.nan) if world.rank == 1 else None
        trial.gradients(2)
        result = trial.engine.step(1e-3)
        assert not result.stepped and not math.isfinite(result.grad_norm)
        if handle is not None:
            handle.remove()
        trial.gradients(2)
        result = trial.engine.step(1e-3, skip=True)
        assert not result.stepped and math.isfinite(result.grad_norm)
        assert not trial.engine.step(1e-3, skip=True).stepped  # nothing to skip, where the loss wasn't finite
        trial.save(folder / f"after-{zero}")
        if world.is_first:
            for before, after in zip(saved(folder / f"before-{zero}"), saved(folder / f"after-{zero}"), strict=True):
                assert distance(before, after) == 0

        losses = trial.go(2, 4)
        trial.save(folder / f"straight-{zero}")
        resumed = Trial(config, world, data).load(folder / f"after-{zero}")
        assert resumed.go(2, 4) == losses
        resumed.save(folder / f"resumed-{zero}")
        if world.is_first:
            for straight, again in zip(
                saved(folder / f"straight-{zero}"), saved(folder / f"resumed-{zero}"), strict=True
            ):
                assert distance(straight, again) == 0


def elsewhere(folder: Path, trunk: Path, world: World) -> None:
    """A state goes on in other stages, engines and numbers of ranks; what has another shape or name is refused."""
    data = batches(make_config(folder, trunk, None))
    local = Trial(make_config(folder, trunk, None), world, data)
    expected = local.go(0, 3)
    local.save(folder / "local")
    expected = local.go(3, 5)
    for source, zero in (("local", 3), ("alone", 2), ("alone", None)):
        trial = Trial(make_config(folder, trunk, zero), world, data).load(folder / source)
        assert worst(trial.go(3, 5), expected) <= 1e-5, (source, zero)
        trial.save(folder / f"{source}-{zero}")
    back = Trial(make_config(folder, trunk, None), world, data).load(folder / "local-3")
    onwards = Trial(make_config(folder, trunk, 1), world, data).load(folder / "local-3")
    assert worst(back.go(5, 7), onwards.go(5, 7)) <= 1e-5
    weights, average, state = saved(folder / "local")
    for wrong in (
        (weights, average, {name: value for name, value in state.items() if "region_logit_scale" not in name}),
        (weights | {"more": torch.zeros(1)}, average, state),
        (weights, {name: value.flatten() for name, value in average.items()}, state),
    ):
        with pytest.raises(MedpclipError, match="resume with the run's own config"):
            onwards.engine.load(*wrong)


def autocast(folder: Path, trunk: Path, world: World) -> None:
    """bf16 is the local engine's."""
    data = batches(make_config(folder, trunk, None))
    expected = Trial(make_config(folder, trunk, None, precision="bf16"), world, data).go(0, 3)
    ours = Trial(make_config(folder, trunk, 2, precision="bf16"), world, data).go(0, 3)
    assert worst(ours, expected) <= 1e-5


def pure(folder: Path, trunk: Path, world: World) -> None:
    """Pure bf16 trains; frozen parts stay; scales keep to their limits."""
    data = batches(make_config(folder, trunk, None))
    for zero, changes in (
        (1, {"__offload": True}),
        (2, {}),
        (3, {"freeze": ["text"], "__activation_checkpointing": True}),
    ):
        trial = Trial(make_config(folder, trunk, zero, precision="pure_bf16", **changes), world, data)
        model = trial.engine.model
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        if zero == 2:
            weights, average, state = trial.engine.weights(), trial.engine.average(), trial.engine.state()
            given = world_wide(world, folder, weights, average, state)
            given[0]["clip.logit_scale"].fill_(MAX_LOGIT_SCALE + 1)
            trial.engine.load(*given)
        frozen = trial.engine.weights()
        losses = trial.go(0, 10)
        assert losses[5] < losses[0] and losses[9] < losses[4], losses  # the same images again
        weights = trial.engine.weights()
        if weights is not None:
            assert frozen is not None and {value.dtype for value in weights.values()} == {torch.float32}
            assert weights["clip.logit_scale"].item() <= MAX_LOGIT_SCALE
            moved = {name for name in weights if not torch.equal(weights[name], frozen[name])}
            text = {name for name in weights if name.startswith(("clip.transformer.", "clip.token_embedding"))}
            assert not moved & text if zero == 3 else text <= moved
        assert model.clip.transformer.training == (zero != 3)  # no dropout where nothing is trained


def world_wide(world: World, folder: Path, *tensors: Tensors | None) -> list[Tensors]:
    if world.is_first:
        for name, value in zip(("weights", "average", "state"), tensors, strict=True):
            assert value is not None
            (folder / "whole").mkdir(exist_ok=True)
            save_file(value, folder / "whole" / f"{name}.safetensors")
    world.barrier()
    return list(saved(folder / "whole"))


@pytest.mark.parametrize(
    ("world", "checks"),
    [(1, "alone"), (2, "autocast,equal_runs,same_again,elsewhere,pure")],
)
def test_ranks(
    world: int, checks: str, folder: Path, micro_trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No compiler is to be found, and nothing is written where the user keeps things."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    outputs = run_ranks(Path(__file__), world, checks, str(folder), str(micro_trunk))
    assert list(tmp_path.iterdir()) == []
    for output in outputs:
        assert not any(noise in output for noise in ("INFO", "untested", "deprecated", "Virtual Memory")), output
        print(output)


# What needs no ranks.


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ({"train_batch_size": 8}, "'train_batch_size' follows from the run's 'batch_size'"),
        ({"zero_optimization": {"stage": 2}}, "'zero_optimization.stage' follows from the run's 'engine.zero'"),
        ({"bf16": {"enabled": True}}, "'bf16' follows from the run's 'precision'"),
        ({"wandb": {}}, "'wandb' follows from the run's 'tracking.wandb'"),
        ([1], "expected a JSON object"),
        ("{", "can't be read"),
    ],
)
def test_a_setting_that_is_the_runs_own_is_refused(
    extra: Any, key: str, folder: Path, micro_trunk: Path, tmp_path: Path
) -> None:
    path = tmp_path / "more.json"
    path.write_text(extra if isinstance(extra, str) else json.dumps(extra))
    config = make_config(folder, micro_trunk, 1)
    config = replace(config, engine=replace(config.engine, deepspeed_config=path))
    with pytest.raises(MedpclipError, match=rf"^more\.json: .*{key}.*") as error:
        settings(config, CPU, 1000)
    assert "\n" not in str(error.value)


def test_settings_are_merged_section_by_section(folder: Path, micro_trunk: Path) -> None:
    out = settings(make_config(folder, micro_trunk, 3, __offload=True), CPU, 1000)
    assert out["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 1000,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
        "stage3_param_persistence_threshold": 0,
        "sub_group_size": 5000,
    }
    assert out["gradient_clipping"] == 1.0


def test_what_cant_be_had_is_refused(folder: Path, micro_trunk: Path) -> None:
    with pytest.raises(MedpclipError, match="fp16 needs a GPU, the device is cpu; set precision: bf16"):
        settings(make_config(folder, micro_trunk, 1, precision="fp16"), CPU, 1)
    with pytest.raises(MedpclipError, match=r"pure_bf16 needs engine\.zero of 1, 2 or 3"):
        settings(make_config(folder, micro_trunk, 0, precision="pure_bf16"), CPU, 1)
    with pytest.raises(MedpclipError, match=r"compile' can't be had with engine\.zero 3"):
        settings(make_config(folder, micro_trunk, 3, __compile=True), CPU, 1)


def test_a_missing_deepspeed_is_one_line(folder: Path, micro_trunk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(
        MedpclipError, match=r"'engine\.kind' is deepspeed, which isn't installed; pip install"
    ) as error:
        make_engine(make_config(folder, micro_trunk, 1), World())
    assert "\n" not in str(error.value)


def test_masters_are_held_limited_and_averaged() -> None:
    weight, scale = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.full((1,), 4.0))
    groups = [{"params": [weight], "scale": 1.0}, {"params": [scale], "scale": 1.0, "limits": (0.0, 4.5)}]
    optimizer = MastersAdamW(groups, OptimizerConfig(lr=1.0), 0.9)
    optimizer.prepare([weight, scale])
    average = weight.detach().clone()
    for step in range(4):
        optimizer.held = step == 2
        weight.grad, scale.grad = torch.randn(3), torch.full((1,), -1.0)
        before = weight.detach().clone()
        optimizer.step()
        assert torch.equal(weight, before) == optimizer.held
        if not optimizer.held:
            average = 0.9 * average + 0.1 * weight.detach()
    assert scale.item() == 4.5
    assert optimizer.state[weight]["step"].item() == 3
    torch.testing.assert_close(optimizer.state[weight][AVERAGE], average)


if __name__ == "__main__":
    torch.set_num_threads(1)
    names, *paths = sys.argv[1:]
    for name in names.split(","):
        began = time.process_time()
        globals()[name](*map(Path, paths), join(CPU))
        print(name, f"{time.process_time() - began:.1f} s")
