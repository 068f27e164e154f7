"""The rate's course and the parameter groups."""

import itertools

import pytest

from medpclip.models import ModelConfig
from medpclip.models.load import build_model
from medpclip.train.config import OptimizerConfig
from medpclip.train.optimizer import learning_rate, make_optimizer, set_learning_rate


def test_warm_up_then_half_a_cosine() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, final_lr=0.1)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[109] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_what_decays_and_at_which_rate(micro_trunk) -> None:  # type: ignore[no-untyped-def]
    model = build_model(ModelConfig(str(micro_trunk)))
    optimizer = make_optimizer(model, OptimizerConfig(lr=0.5, fusion_lr_scale=4.0, weight_decay=0.2))
    set_learning_rate(optimizer, 0.25)
    of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    groups = {name: of[id(p)] for name, p in model.named_parameters()}
    assert len(groups) == sum(len(g["params"]) for g in optimizer.param_groups)
    for name, decay, rate in [
        ("clip.visual.conv1.weight", 0.2, 0.25),
        ("clip.token_embedding.weight", 0.2, 0.25),
        ("clip.visual.ln_post.weight", 0.0, 0.25),
        ("clip.visual.positional_embedding", 0.0, 0.25),
        ("clip.logit_scale", 0.0, 0.25),
        ("region_logit_scale", 0.0, 0.25),
        ("fusion.start.weight", 0.2, 1.0),
        ("fusion.logit_gain", 0.0, 1.0),
        ("fusion.encoder.point_type", 0.0, 1.0),
    ]:
        assert (groups[name]["weight_decay"], groups[name]["lr"]) == (decay, rate), name
