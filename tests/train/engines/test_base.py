from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.load import build_model
from medpclip.train.engines import Forward


@pytest.fixture(scope="module")
def model() -> RegionCLIP:
    torch.manual_seed(0)
    return build_model(ModelConfig("medpclip-tiny-16", fusion=FusionConfig(prompt_dim=32))).train()


def inputs() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    prompts = Prompts.empty(2, 3, 1, 32)
    prompts.boxes[..., 2:] = torch.rand(2, 3, 2, generator=generator)
    prompts.box_valid[:] = True
    pixels = torch.randn(2, 3, 128, 128, generator=generator)
    text = torch.randint(1, 49000, (4, 48), generator=generator)
    return pixels, text, None, None, None, *vars(prompts).values()


def gradient(model: RegionCLIP, low: bool) -> Tensor:
    """Of a sum of all outputs, in float32, of all parameters that have one."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        image, region, text, _ = Forward(model)(*inputs())
    (image[:, 0].sum() + region[..., 1].sum() + text[:, 2].sum()).float().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_low_precision_gradients_are_those_of_float32_to_rounding(model: RegionCLIP) -> None:
    exact, low = gradient(model, low=False), gradient(model, low=True)
    assert torch.cosine_similarity(exact, low, dim=0) > 0.999
    assert low.norm() == pytest.approx(exact.norm().item(), rel=0.02)


def test_the_kernel_is_chosen_for_the_forward_only(model: RegionCLIP) -> None:
    seen: list[tuple[bool, bool]] = []

    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()

    def look(*args: object) -> None:
        seen.append(flags())

    handle = model.fusion.register_forward_pre_hook(look)
    before = flags()
    try:
        gradient(model, low=True)
        gradient(model, low=False)
    finally:
        handle.remove()
    assert seen == [(False, True), before] and flags() == before


def test_flags_are_put_back_after_an_error(model: RegionCLIP) -> None:
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    pixels, *rest = inputs()
    with pytest.raises(RuntimeError), torch.autocast("cpu", torch.bfloat16):
        Forward(model)(pixels[:, :2], *rest)
    after = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    assert after == before
