"""What holds for every way to get a region's embedding, on a trunk with CLS and on one that pools by attention."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.fusions import FUSION_KINDS, TRAINING_FREE
from medpclip.models.preprocess import Preprocess
from medpclip.models.prompts import Windows

CASES = [
    (kind, pool)
    for kind in FUSION_KINDS
    for pool in ("cls", "attention")
    if (kind, pool) != ("conditioned", "attention")
]
every = pytest.mark.parametrize(("kind", "pool"), CASES)
REGIONS = 4


def build(trunk: Path, kind: str, pool: str = "cls") -> RegionCLIP:
    """With a fusion that has left its zeros."""
    torch.manual_seed(0)
    architecture = json.loads(trunk.read_text())
    clip = open_clip.CLIP(**architecture, nonscalar_logit_scale=True)
    if pool == "attention":
        from open_clip.timm_model import TimmModel
        from timm.models.vision_transformer import VisionTransformer

        text = architecture["text_cfg"]
        clip = open_clip.CustomTextCLIP(32, architecture["vision_cfg"], text, nonscalar_logit_scale=True)
        clip.visual = TimmModel("test_vit", 32, image_size=64, pool="", proj="none")
        sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
        clip.visual.trunk = VisionTransformer(**sizes, class_token=False, global_pool="map")
    preprocess = Preprocess(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    config = ModelConfig(str(trunk), fusion=FusionConfig(kind, 16))  # type: ignore[arg-type]
    model = RegionCLIP(clip, config, preprocess, lambda texts: torch.zeros(len(texts), 16, dtype=torch.int64))
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def pictures() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def some_prompts() -> Prompts:
    """Rows: a box, a click, a mask, padding."""
    prompts = Prompts.empty(2, REGIONS, 2, 16)
    prompts.boxes[:, 0], prompts.box_valid[:, 0] = torch.tensor([[0.1, 0.2, 0.6, 0.5], [0.5, 0.4, 0.9, 0.9]]), True
    prompts.points[:, 1, 0], prompts.point_labels[:, 1, 0] = torch.tensor([0.7, 0.3]), 1
    prompts.masks[:, 2, 3:9, 5:11], prompts.mask_valid[:, 2] = 1, True
    return prompts


def some_windows(model: RegionCLIP) -> Windows | None:
    if model.fusion.window is None:
        return None
    side, draw = model.fusion.window.size, torch.Generator().manual_seed(1)
    rects = torch.tensor([0.0, 0.0, 0.5, 0.5]).repeat(2, REGIONS, 1)
    return Windows(torch.randn(2, REGIONS, 3, side, side, generator=draw), rects)


def picked(windows: Windows | None, r: int) -> Windows | None:
    return None if windows is None else Windows(windows.pixels[:, r : r + 1], windows.rects[:, r : r + 1])


def test_the_training_free_are_those_without_parameters(micro_trunk: Path) -> None:
    free = {kind for kind in FUSION_KINDS if not list(build(micro_trunk, kind).fusion.parameters())}
    assert free == set(TRAINING_FREE)


@torch.no_grad()
@every
def test_the_image_is_open_clips_and_regions_are_finite(micro_trunk: Path, kind: str, pool: str) -> None:
    model = build(micro_trunk, kind, pool)
    image, region = model.encode_regions(pictures(), some_prompts(), windows=some_windows(model))
    assert (image - model.clip.encode_image(pictures(), normalize=True)).abs().max() <= 1e-5
    assert region.shape == (2, REGIONS, 32) and region.isfinite().all()
    assert torch.allclose(region.norm(dim=-1), torch.ones(2, REGIONS), atol=1e-5)
    differ = (region[:, 0] - region[:, 2]).abs().max() > 1e-3
    assert differ == (kind != "unprompted")
    if kind == "unprompted":
        assert torch.equal(region, image[:, None].expand(-1, REGIONS, -1))


@torch.no_grad()
@every
def test_companions_do_not_matter(micro_trunk: Path, kind: str, pool: str) -> None:
    model = build(micro_trunk, kind, pool)
    prompts, windows = some_prompts(), some_windows(model)
    together = model.encode_regions(pictures(), prompts, windows=windows)[1]
    for r in range(REGIONS):
        alone = model.encode_regions(pictures(), prompts.regions_slice(slice(r, r + 1)), windows=picked(windows, r))[1]
        assert (alone[:, 0] - together[:, r]).abs().max() <= 1e-5


@every
def test_gradients_reach_the_trunk_and_the_fusion(micro_trunk: Path, kind: str, pool: str) -> None:
    """From regions alone; and are the same where activations are computed again, with and without dropped patches."""
    model = build(micro_trunk, kind, pool).train()
    found = []
    for on in (False, True):
        model.set_activation_checkpointing(on)
        model.zero_grad()
        for keep in (None, torch.tensor([[0, 1, 5, 6, 9], [3, 7, 10, 14, 15]])):
            region = model.encode_regions(pictures(), some_prompts(), keep=keep, windows=some_windows(model))[1]
            (region @ torch.arange(32.0)).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    # Over one patch alone, as these two use it, an attention pool's query makes no difference.
    patches_alone = kind in ("mask_pooling", "roi_align")
    for name, parameter in model.named_parameters():
        if name.startswith(("clip.visual.", "fusion.")):
            if not (patches_alone and ".attn_pool." in name):
                assert found[0][name].any(), name
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(torch.equal(found[0][name], gradient) for name, gradient in found[1].items())


@torch.no_grad()
@every
def test_low_precision_stays_close(micro_trunk: Path, kind: str, pool: str) -> None:
    """As engines run it: by autocast, or with weights and pixels in bfloat16; coordinates aren't."""
    model = build(micro_trunk, kind, pool)
    windows = some_windows(model)
    exact = model.encode_regions(pictures(), some_prompts(), windows=windows)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.encode_regions(pictures(), some_prompts(), windows=windows)[1]
    if windows is not None:
        windows = Windows(windows.pixels.bfloat16(), windows.rects)
    rough = model.bfloat16().encode_regions(pictures().bfloat16(), some_prompts(), windows=windows)[1]
    assert rough.dtype == torch.bfloat16
    for found in (mixed, rough):
        assert (found.float() * exact).sum(-1).min() > 0.98
