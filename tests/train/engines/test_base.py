"""Attention's kernel on CPUs in bfloat16."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medpclip.data.loading.config import DataConfig
from medpclip.distributed import World
from medpclip.models import FusionConfig, ModelConfig, Prompts
from medpclip.models.load import build_model
from medpclip.train.config import EngineConfig, TrainConfig
from medpclip.train.engines.local import LocalEngine


def make_engine(precision: str, checkpointing: bool = False) -> LocalEngine:
    model_config = ModelConfig("medpclip-tiny-16", fusion=FusionConfig(prompt_dim=32))
    torch.manual_seed(0)
    config = TrainConfig(
        out=Path("unused"),
        data=DataConfig([Path("unused")]),
        model=model_config,
        engine=EngineConfig(activation_checkpointing=checkpointing),
        precision=precision,  # type: ignore[arg-type]
    )
    return LocalEngine(build_model(model_config), config, World(), torch.device("cpu"))


def gradient(engine: LocalEngine) -> Tensor:
    """Of a sum of all outputs, of all parameters that have one."""
    generator = torch.Generator().manual_seed(1)
    prompts = Prompts.empty(2, 3, 1, 32)
    prompts.boxes[..., 2:] = torch.rand(2, 3, 2, generator=generator)
    prompts.box_valid[:] = True
    pixels = torch.randn(2, 3, 128, 128, generator=generator)
    text = torch.randint(1, 49000, (4, 48), generator=generator)
    image, region, words, _ = engine.forward(pixels, text, None, prompts)
    engine.backward(image[:, 0].sum() + region[..., 1].sum() + words[:, 2].sum(), last=True)
    return torch.cat([p.grad.flatten() for p in engine.model.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return gradient(make_engine("fp32"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_low_precision_gradients_are_those_of_float32_to_rounding(checkpointing: bool, exact: Tensor) -> None:
    low = gradient(make_engine("bf16", checkpointing))
    assert torch.cosine_similarity(exact, low, dim=0) > 0.999
    assert low.norm() == pytest.approx(exact.norm().item(), rel=0.02)


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def test_the_kernel_is_chosen_in_low_precision_and_put_back() -> None:
    before, seen = flags(), []
    for precision in ("bf16", "fp32"):
        engine = make_engine(precision)
        engine.model.fusion.register_forward_pre_hook(lambda *args: seen.append(flags()))
        gradient(engine)
    assert seen == [(False, True), before] and flags() == before


def test_it_is_put_back_after_an_error() -> None:
    before, engine = flags(), make_engine("bf16")
    with pytest.raises(RuntimeError):
        engine.forward(
            torch.zeros(1, 2, 128, 128), torch.ones(1, 48, dtype=torch.int64), None, Prompts.empty(1, 1, 1, 32)
        )
    assert flags() == before
