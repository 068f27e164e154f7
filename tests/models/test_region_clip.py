"""RegionCLIP against open_clip: the same numbers without prompts, untouched ones with prompts."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch

from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.load import build_model

Builder = Callable[..., RegionCLIP]
KINDS = ("region_tokens", "conditioned")


def random_prompts(batch: int, regions: int, grid: int, seed: int = 0) -> Prompts:
    """All kinds at once, with padding clicks."""
    generator = torch.Generator().manual_seed(seed)
    prompts = Prompts.empty(batch, regions, 3, grid)
    prompts.points = torch.rand(prompts.points.shape, generator=generator)
    prompts.point_labels = torch.randint(-1, 2, prompts.point_labels.shape, generator=generator)
    corner = torch.rand((batch, regions, 2), generator=generator) * 0.6
    prompts.boxes = torch.cat([corner, corner + 0.05 + 0.3 * torch.rand((batch, regions, 2), generator=generator)], -1)
    prompts.box_valid[:] = True
    prompts.masks = (torch.rand(prompts.masks.shape, generator=generator) > 0.7).float()
    prompts.mask_valid[:] = True
    return prompts


@pytest.fixture
def tiny(micro_trunk: Path) -> Callable[..., RegionCLIP]:
    """Builds a small model with a fusion of the given kind."""

    def build(kind: str = "region_tokens") -> RegionCLIP:
        torch.manual_seed(0)
        return build_model(ModelConfig(trunk=str(micro_trunk), fusion=FusionConfig(kind, 16)))  # type: ignore[arg-type]

    return build


def perturbed(model: RegionCLIP) -> RegionCLIP:
    """The same with a fusion that has left its zeros, so that prompts matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("architecture", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-B-32-quickgelu"])
def test_unprompted_embedding_is_open_clips_to_the_bit(architecture: str, tiny: Builder) -> None:
    torch.manual_seed(0)
    # Two blocks of the real widths: enough to go through every kind of computation.
    config = open_clip.get_model_config(architecture)
    config["vision_cfg"]["layers"] = 2
    config["text_cfg"]["layers"] = 1
    reference = open_clip.CLIP(**config, nonscalar_logit_scale=True)
    model = tiny()
    model.clip = reference
    images = torch.randn(2, 3, 224, 224)
    for training in (False, True):
        reference.train(training)
        model.train(training)
        with torch.no_grad():
            assert torch.equal(model.encode_image(images), reference.encode_image(images, normalize=True))
            assert torch.equal(model(images).image, reference.encode_image(images, normalize=True))
        assert torch.equal(model.encode_image(images), reference.encode_image(images, normalize=True))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.encode_image(images), reference.encode_image(images, normalize=True))


@pytest.mark.parametrize("kind", KINDS)
def test_prompted_image_embedding_ignores_the_prompts(kind: str, tiny: Builder) -> None:
    model = perturbed(tiny(kind)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = model.encode_image(images)
        image_a, region_a = model.encode_regions(images, random_prompts(2, 5, model.mask_grid, seed=1))
        image_b, region_b = model.encode_regions(images, random_prompts(2, 5, model.mask_grid, seed=2))
    assert (image_a - plain).abs().max() <= 1e-5
    assert torch.equal(image_a, image_b)
    assert (region_a - region_b).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_at_step_0_a_region_is_the_whole_image(kind: str, training: bool, tiny: Builder) -> None:
    model = tiny(kind).train(training)
    images = torch.randn(2, 3, 64, 64)
    image, region = model.encode_regions(images, random_prompts(2, 4, model.mask_grid))
    assert (region - image[:, None]).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_together_equal_prompts_alone(kind: str, tiny: Builder) -> None:
    model = perturbed(tiny(kind)).eval()
    images = torch.randn(2, 3, 64, 64)
    prompts = random_prompts(2, 6, model.mask_grid)
    with torch.no_grad():
        _, together = model.encode_regions(images, prompts)
        for r in range(6):
            _, alone = model.encode_regions(images, prompts.regions_slice(slice(r, r + 1)))
            assert (alone[:, 0] - together[:, r]).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_without_content_stay_finite(kind: str, tiny: Builder) -> None:
    model = perturbed(tiny(kind)).eval()
    _, region = model.encode_regions(torch.randn(1, 3, 64, 64), Prompts.empty(1, 3, 2, model.mask_grid))
    assert torch.isfinite(region).all()


def test_dense_features_pool_to_the_right_patch(tiny: Builder) -> None:
    model = tiny().eval()
    images = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        before = model.encode_patches(images)
        images[:, :, 16:32, 48:64] = 5.0  # patch row 1, column 3
        change = (model.encode_patches(images) - before).norm(dim=-1)[0]
    assert before.shape == (1, 16, 32)
    assert change.argmax() == 1 * 4 + 3


@pytest.mark.parametrize(
    ("vision", "named"),
    [
        ({"attentional_pool": True}, "attentional_pool"),
        ({"pool_type": "avg"}, "pool_type"),
        ({"patch_dropout": 0.5}, "patch_dropout"),
        ({"block_type": "custom"}, "block_type"),
    ],
)
def test_unsupported_towers_are_refused_by_name(vision: dict[str, object], named: str, tiny: Builder) -> None:
    base = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 8, "width": 32, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(embed_dim=32, vision_cfg=base | vision, text_cfg=text)
    model = tiny()
    with pytest.raises(MedpclipError, match=named):
        RegionCLIP(clip, model.config, model.preprocess, model.tokenizer)


def test_a_convolutional_tower_is_refused_by_name() -> None:
    with pytest.raises(MedpclipError, match="ModifiedResNet"):
        build_model(ModelConfig(trunk="RN50"))


def test_wrong_prompt_shapes_say_what_was_expected(tiny: Builder) -> None:
    prompts = random_prompts(2, 3, 32)
    with pytest.raises(ValueError, match=r"prompts.boxes has shape \(2, 3, 5\), expected \(2, 3, 4\)"):
        Prompts(prompts.points, prompts.point_labels, torch.zeros(2, 3, 5), prompts.box_valid, prompts.masks,
                prompts.mask_valid)  # fmt: skip
    model = tiny()
    with pytest.raises(ValueError, match="multiples of the 4x4 patch grid"):
        model.encode_regions(torch.zeros(2, 3, 64, 64), random_prompts(2, 3, 30))
