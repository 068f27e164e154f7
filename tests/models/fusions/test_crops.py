"""Crops are images of their own."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from medpclip.data.loading.windows import WindowSpec
from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.fusions import make_fusion, prompted_crop
from medpclip.models.load import build_model
from medpclip.models.prompts import Windows


def build(trunk: Path, **fusion: object) -> RegionCLIP:
    torch.manual_seed(0)
    return build_model(ModelConfig(str(trunk), fusion=FusionConfig(prompt_dim=16, **fusion))).eval()  # type: ignore[arg-type]


def crops(seed: int = 0) -> Windows:
    pixels = torch.randn(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return Windows(pixels, torch.zeros(2, 3, 4))


@torch.no_grad()
def test_a_crop_is_encoded_like_an_image(micro_trunk: Path) -> None:
    model, windows, images = build(micro_trunk, kind="crop"), crops(), torch.randn(2, 3, 64, 64)
    prompts = Prompts.empty(2, 3, 1, model.mask_grid)
    image, region = model.encode_regions(images, prompts, windows=windows)
    expected = torch.stack([model.encode_image(own) for own in windows.pixels])
    assert torch.allclose(region, expected, atol=1e-5) and torch.allclose(image, model.encode_image(images), atol=1e-5)
    keep = torch.tensor([[0, 3, 9], [1, 2, 15]])
    few, again = model.encode_regions(images, prompts, windows=windows, keep=keep)
    assert torch.equal(again, region) and not torch.allclose(few, image, atol=1e-3)


def test_what_crops_ask_for(micro_trunk: Path) -> None:
    assert build(micro_trunk, kind="crop").fusion.window == WindowSpec(64, 1.25, 0.25)
    assert build(micro_trunk, kind="context_crop").fusion.window == WindowSpec(64, 2.5, 0.5)


@torch.no_grad()
def test_a_placed_crop_is_a_crop_whose_patches_start_with_the_place(micro_trunk: Path) -> None:
    model, windows, images = build(micro_trunk, kind="placed_crop"), crops(), torch.randn(2, 3, 64, 64)
    prompts = Prompts.empty(2, 3, 1, model.mask_grid)
    prompts.boxes = torch.rand(2, 3, 4).sort(-1).values[..., [0, 1, 2, 3]]
    prompts.box_valid[:] = True
    plain = torch.stack([model.encode_image(own) for own in windows.pixels])
    assert torch.allclose(model.encode_regions(images, prompts, windows=windows)[1], plain, atol=1e-5)  # at its start
    model.fusion.place.linear.weight.normal_(generator=torch.Generator().manual_seed(1))
    image, region = model.encode_regions(images, prompts, windows=windows)
    assert torch.allclose(image, model.encode_image(images), atol=1e-5)
    for b in range(2):
        for r in range(3):
            vector = model.fusion.place(prompts.boxes[b : b + 1, r : r + 1])[0, 0]
            # A constant added to each patch is a bias of the convolution that makes them.
            patches = model.trunk.embed(windows.pixels[b, r : r + 1], added=vector.expand(1, 16, -1))
            expected = F.normalize(model.trunk.embeddings(patches)[0], dim=0)
            assert torch.allclose(region[b, r], expected, atol=1e-5)
            assert not torch.allclose(region[b, r], plain[b, r], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("glimpse", [0, 2])
def test_a_prompted_crop_is_a_crop_under_a_box_around_all_of_it(micro_trunk: Path, glimpse: int) -> None:
    model, windows, images = build(micro_trunk, glimpse=glimpse), crops(), torch.randn(2, 3, 64, 64)
    for parameter in model.fusion.parameters():  # at its start a prompt changes nothing
        parameter.add_(0.3 * torch.randn_like(parameter))
    prompts = Prompts.empty(2, 3, 1, model.mask_grid)
    fusion = prompted_crop(model.fusion, model.preprocess)
    assert fusion.window == WindowSpec(64, 1.25, 0.25)
    image, region = fusion(model.trunk, images, prompts, None, windows)
    whole = Prompts.empty(1, 1, 1, model.mask_grid)
    whole.boxes[0, 0], whole.box_valid[0, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0]), True
    for b in range(2):
        for r in range(3):
            pixels, own = windows.pixels[b, r : r + 1], None
            if glimpse:
                small = F.interpolate(pixels, (32, 32), mode="bicubic", antialias=True)
                own = Windows(small[None], whole.boxes)
            expected = model.encode_regions(pixels, whole, normalize=False, windows=own)[1][0, 0]
            assert torch.allclose(region[b, r], expected, atol=1e-5)
    assert torch.allclose(image, model.encode_image(images, normalize=False), atol=1e-5)
    plain = make_fusion(FusionConfig("crop"), model.trunk, model.preprocess)
    assert not torch.allclose(plain(model.trunk, images, prompts, None, windows)[1], region, atol=1e-2)
