"""The local engine goes on with a whole state of its optimizer, or with none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medpclip.data.loading.loader import DataConfig
from medpclip.distributed import World
from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import build_model
from medpclip.train.config import TrainConfig
from medpclip.train.engines.local import LocalEngine

Tensors = dict[str, Tensor]


@pytest.fixture
def config(micro_trunk: Path) -> TrainConfig:
    model = ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16))
    return TrainConfig(Path("unused"), DataConfig([Path("unused")]), model, freeze=["text"])


def make(config: TrainConfig) -> LocalEngine:
    torch.manual_seed(3)
    return LocalEngine(build_model(config.model), config, World(), torch.device("cpu"))


def step(engine: LocalEngine, *parts: str) -> None:
    """Towards smaller parameters of these parts."""
    loss = sum((p.square().sum() for name, p in engine.parameters.items() if name.startswith(parts)), torch.zeros(()))
    engine.backward(loss, last=True)
    assert engine.step(1e-2).stepped


def saved(engine: LocalEngine) -> tuple[Tensors, Tensors]:
    weights, state = engine.weights(), engine.state()
    assert weights is not None and state is not None
    return weights, state


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_had_no_gradient_yet_is_resumed_too(config: TrainConfig) -> None:
    """Its own first step is AdamW's first, as `torch.optim.AdamW` counts for each parameter."""
    engine, resumed = make(config), make(config)
    step(engine, "fusion")
    weights, state = saved(engine)
    trained = {name for name, parameter in engine.parameters.items() if parameter.requires_grad}
    assert {name.rpartition("/")[0] for name in state} == trained
    assert {float(state[f"{name}/step"]) for name in trained if name.startswith("fusion")} == {1}
    assert float(state["region_logit_scale/step"]) == 0
    resumed.load(weights, None, state)
    for one in (engine, resumed):
        step(one, "fusion", "region_logit_scale", "clip.visual")
    for ours, theirs in zip(saved(engine), saved(resumed), strict=True):
        assert same(ours, theirs)


def test_steps_are_those_of_an_optimizer_that_makes_its_own_state(config: TrainConfig) -> None:
    engine, plain = make(config), make(config)
    plain.optimizer.state.clear()
    for parts in (["fusion"], ["fusion", "clip.visual"]):
        for one in (engine, plain):
            step(one, *parts)
    assert same(saved(engine)[0], saved(plain)[0])
    made, own = saved(plain)[1], saved(engine)[1]
    assert made.keys() < own.keys() and same(made, {name: own[name] for name in made})
    assert all(made[name].dtype == own[name].dtype for name in made)


def test_no_state_at_all_is_fine(config: TrainConfig) -> None:
    engine = make(config)
    engine.load(saved(engine)[0], None, {})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda state: state.pop("region_logit_scale/exp_avg"), "'region_logit_scale/exp_avg' is missing"),
        (lambda state: [state.pop(n) for n in list(state) if "visual.conv1" in n], "conv1.weight/exp_avg' is missing"),
        (lambda state: state.update({"more/step": torch.zeros(())}), "'more/step' is unknown"),
        (
            lambda state: state.update({"region_logit_scale/exp_avg": torch.zeros(3)}),
            r"exp_avg' is \(3,\), the model's",
        ),
    ],
)
def test_a_state_of_another_run_is_refused(config: TrainConfig, change: Callable[[Tensors], None], what: str) -> None:
    engine = make(config)
    step(engine, "fusion", "region_logit_scale", "clip.visual")
    weights, state = saved(engine)
    change(state)
    with pytest.raises(MedpclipError, match=f"the optimizer's state: .*{what}.*; resume with the run's own config"):
        make(config).load(weights, None, state)
