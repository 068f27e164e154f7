"""Which parameters learn when: exactly the zero-initialised factors gate what lies before them."""

from pathlib import Path

import pytest
import torch

from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.load import build_model

# At step 0 these have no gradient, since a zero-initialised projection, gain or gate lies between them and the loss.
UPSTREAM = {
    "region_tokens": ("fusion.encoder.", "fusion.coverage.log_sigma"),
    "conditioned": (
        "fusion.encoder.",
        "fusion.coverage.log_sigma",
        ".norm.",
        ".prompt_norm.",
        ".attention.",
        ".dense.weight",
    ),
}
# Which parameters a prompt kind can't reach: those that speak for the other kinds.
SERVES = {
    "point": ("point_position", "point_type", "log_sigma"),
    "box": ("corner_position", "corner_type"),
    "mask": ("mask_position", "mask_outline", "mask_type"),
}


def prompts_of(kind: str, grid: int) -> Prompts:
    prompts = Prompts.empty(4, 3, 2, grid)
    corner = torch.rand(4, 3, 2) * 0.5
    if kind == "point":
        prompts.points = torch.rand(4, 3, 2, 2)
        prompts.point_labels[:] = torch.tensor([1, 0])
    elif kind == "box":
        prompts.boxes = torch.cat([corner, corner + 0.4], -1)
        prompts.box_valid[:] = True
    else:
        prompts.masks = (torch.rand(4, 3, grid, grid) > 0.5).float()
        prompts.mask_valid[:] = True
    return prompts


def backward(model: RegionCLIP, prompts: Prompts) -> dict[str, torch.Tensor]:
    """Gradients of a contrast between regions and random directions, by parameter name; zeros where there is none."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    tokens = model.tokenizer(["a kidney", "a lung", "CT"])
    out = model(images, prompts, tokens)
    logits = model.region_logit_scale.exp() * out.region.flatten(0, 1) @ out.text.T
    image_logits = model.clip.logit_scale.exp() * out.image @ out.text.T
    target = torch.arange(12) % 3
    loss = torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(
        image_logits, target[:4]
    )
    loss.backward()
    return {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()}


@pytest.mark.parametrize("fusion", ["region_tokens", "conditioned"])
def test_step_0_gradients_are_zero_exactly_upstream_of_the_zeros(fusion: str, micro_trunk: Path) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(trunk=str(micro_trunk), fusion=FusionConfig(fusion, 16)))  # type: ignore[arg-type]
    zero = {
        kind: {n for n, g in backward(model, prompts_of(kind, model.mask_grid)).items() if not g.any()}
        for kind in SERVES
    }
    expected = {
        n for n, _ in model.named_parameters() if n.startswith("fusion.") and any(u in n for u in UPSTREAM[fusion])
    }
    assert expected
    for kind in SERVES:
        assert zero[kind] == expected


@pytest.mark.parametrize("fusion", ["region_tokens", "conditioned"])
def test_after_one_step_every_parameter_learns_from_each_kind_it_serves(fusion: str, micro_trunk: Path) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(trunk=str(micro_trunk), fusion=FusionConfig(fusion, 16)))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for kind in SERVES:  # a batch that holds all kinds, as training draws them
        backward(model, prompts_of(kind, model.mask_grid))
        optimizer.step()
    for kind, own in SERVES.items():
        for name, gradient in backward(model, prompts_of(kind, model.mask_grid)).items():
            assert torch.isfinite(gradient).all(), name
            others = [part for other, parts in SERVES.items() if other != kind for part in parts]
            if any(part in name for part in others):
                continue
            assert gradient.any(), f"{name} learns nothing from {kind} prompts"
            if any(part in name for part in own) and gradient.ndim > 1:
                assert gradient.flatten(1).any(1).all(), f"a row of {name} learns nothing from {kind} prompts"
