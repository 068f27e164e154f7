"""The fourth channel."""

from pathlib import Path

import torch
import torch.nn.functional as F

from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.fusions.alpha_channel import AlphaChannel
from medpclip.models.load import build_model


def build(trunk: Path) -> RegionCLIP:
    torch.manual_seed(0)
    return build_model(ModelConfig(str(trunk), fusion=FusionConfig("alpha_channel"))).eval()


def a_box(model: RegionCLIP) -> Prompts:
    """And a row of padding."""
    prompts = Prompts.empty(2, 2, 1, model.mask_grid)
    prompts.boxes[:, 0], prompts.box_valid[:, 0] = torch.tensor([0.25, 0.5, 0.75, 0.625]), True
    return prompts


@torch.no_grad()
def test_at_first_a_region_is_the_whole_image(micro_trunk: Path) -> None:
    model, images = build(micro_trunk), torch.randn(2, 3, 64, 64)
    image, region = model.encode_regions(images, a_box(model))
    assert (region - image[:, None]).abs().max() <= 1e-6


@torch.no_grad()
def test_it_equals_a_patch_embedding_of_four_channels(micro_trunk: Path) -> None:
    model, images = build(micro_trunk), torch.randn(2, 3, 64, 64)
    assert isinstance(model.fusion, AlphaChannel)
    model.fusion.alpha.weight.normal_(std=0.1)
    _, region = model.encode_regions(images, a_box(model), normalize=False)
    alpha = torch.ones(2, 1, 64, 64)
    alpha[0] = 0
    alpha[0, :, 32:40, 16:48] = 1
    visual, trunk = model.clip.visual, model.trunk
    for b in range(2):
        for r in range(2):
            pixels = torch.cat([images[b], alpha[r]])[None]  # the padding's map is 1 everywhere
            kernel = torch.cat([visual.conv1.weight, model.fusion.alpha.weight], dim=1)
            patches = F.conv2d(pixels, kernel, stride=16).flatten(2).transpose(1, 2)
            tokens = torch.cat([visual.class_embedding.view(1, 1, -1), patches], dim=1) + visual.positional_embedding
            expected = trunk.pooled(trunk.run(visual.ln_pre(tokens)))[0]
            assert torch.allclose(region[b, r], expected, atol=1e-5)


def test_it_learns_from_the_first_step_on(micro_trunk: Path) -> None:
    model = build(micro_trunk)
    model.visual.requires_grad_(False)
    model(torch.randn(2, 3, 64, 64), a_box(model)).region[:, 0].sum().backward()
    (name, parameter), = model.fusion.named_parameters()  # fmt: skip
    assert name == "alpha.weight" and parameter.grad is not None and parameter.grad.any()
