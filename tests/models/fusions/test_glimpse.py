"""Glimpses, and region tokens without some of their parts, against the sentences they implement: one region at a time."""

import json
import math
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.fusions.glimpse import prompts_in
from medpclip.models.fusions.region_tokens import PromptedAttention
from medpclip.models.fusions.regions import extents
from medpclip.models.prompt_encoder import Coverage
from medpclip.models.prompts import Windows


def build(trunk: Path, config: FusionConfig) -> RegionCLIP:
    """A micro model (4 x 4 patches of 16 pixels) with a fusion that has left its zeros, in float64."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**json.loads(trunk.read_text()))
    model = RegionCLIP(clip, ModelConfig(str(trunk), fusion=config), None, None)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.double().eval()


def inputs(glimpse: int = 2) -> tuple[Tensor, Prompts, Windows]:
    """Two images with three regions, each pointed at in several ways."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    prompts = Prompts.empty(2, 3, 2, 16)
    prompts.points, prompts.point_labels = random(2, 3, 2, 2), torch.tensor([1, 0]).expand(2, 3, 2).clone()
    prompts.boxes = torch.cat([random(2, 3, 2) * 0.5, random(2, 3, 2) * 0.4 + 0.5], dim=-1)
    prompts.box_valid[:, 1:] = True
    prompts.masks, prompts.mask_valid[:, :2] = (random(2, 3, 16, 16) > 0.6).double(), True
    middle, half = (prompts.boxes[..., :2] + prompts.boxes[..., 2:]) / 2, random(2, 3, 1) * 0.4 + 0.1
    rects = torch.cat([middle - half, middle + half], dim=-1)
    return random(2, 3, 64, 64), prompts, Windows(random(2, 3, 3, 16 * glimpse, 16 * glimpse), rects)


def attended(
    layer: PromptedAttention, h: int, q: Tensor, keys: Tensor, values: Tensor, m: Tensor, own: tuple[Tensor, ...] = ()
) -> Tensor:
    """What head `h`'s query (d) gets from keys and values (n, d) that coverage m (n, channels) modulates."""
    if layer.key_gain is not None:
        keys = keys + m @ layer.key_gain[h]
    if layer.value_gain is not None:
        values = values + m @ layer.value_gain[h]
    logits = keys @ q / math.sqrt(len(q))
    if layer.logit_gain is not None:
        logits = logits + m @ layer.logit_gain[h]
    if own:
        logits = torch.cat([(own[0] @ q / math.sqrt(len(q)))[None], logits])
        values = torch.cat([own[1][None], values])
    return logits.softmax(0) @ values


def reference(model: RegionCLIP, images: Tensor, prompts: Prompts, windows: Windows) -> Tensor:
    """Region embeddings (B, R, D): one region, block and head at a time."""
    trunk, fusion = model.trunk, model.fusion
    blocks, layers = model.visual.transformer.resblocks, fusion.layers  # type: ignore[union-attr]
    out = torch.zeros(prompts.batch_size, prompts.regions, trunk.output_dim, dtype=images.dtype)
    cover = torch.zeros(2, 3, 6, 16) if fusion.coverage is None else fusion.coverage(prompts)
    small = fusion.glimpse(trunk, prompts, windows) if fusion.glimpse else None
    for b, r in [(b, r) for b in range(prompts.batch_size) for r in range(prompts.regions)]:
        x = trunk.embed(images[b : b + 1])
        token = x[0, 0]
        if fusion.start is not None:
            token = token + fusion.start(fusion.encoder(prompts).pooled)[b, r]
        if fusion.place is not None:
            token = token + fusion.place(extents(prompts))[b, r]
        g = None if small is None else small[0][b * prompts.regions + r][None]
        for layer, block in zip(layers, blocks, strict=True):
            weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
            q, own_k, own_v = F.linear(block.ln_1(token), weight, bias).chunk(3)
            _, k, v = F.linear(block.ln_1(x[0, 1:]), weight, bias).chunk(3, dim=-1)
            mixed = []
            for h in range(block.attn.num_heads):
                part = slice(h * block.attn.head_dim, (h + 1) * block.attn.head_dim)
                own = own_k[part], own_v[part]
                seen = attended(layer, h, q[part], k[:, part], v[:, part], cover[b, r].T, own)
                if layer.gate is not None:
                    _, gk, gv = F.linear(block.ln_1(g[0]), weight, bias).chunk(3, dim=-1)
                    m = torch.zeros(g.shape[1], 6) if small[1] is None else small[1][b * prompts.regions + r, 0].T
                    seen = seen + layer.gate[h] * attended(layer, h, q[part], gk[:, part], gv[:, part], m)
                mixed.append(seen)
            token = token + block.ls_1(block.attn.out_proj(torch.cat(mixed)))
            token = token + block.ls_2(block.mlp(block.ln_2(token)))
            x, g = block(x), None if g is None else block(g)
        out[b, r] = trunk.head(token)
    return out


CONFIGS = [
    FusionConfig(glimpse=2),
    FusionConfig(glimpse=3, depths=[0, 1], parts=["start"]),
    FusionConfig(glimpse=1, depths=[1], parts=["values", "logits"]),
    FusionConfig(depths=[0]),
    FusionConfig(depths=[1, 1], parts=["keys"]),
    FusionConfig(parts=["start"]),
    FusionConfig(parts=["place"]),
    FusionConfig(parts=["values"]),
    FusionConfig(parts=["logits"]),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.glimpse}-{c.depths}-{'+'.join(c.parts)}")
def test_the_joint_pass_equals_one_region_at_a_time(config: FusionConfig, micro_trunk: Path) -> None:
    model = build(micro_trunk, config)
    images, prompts, windows = inputs(config.glimpse or 1)
    with torch.no_grad():
        given = windows if config.glimpse else None
        image, region = model.encode_regions(images, prompts, normalize=False, windows=given)
        expected = reference(model, images, prompts, windows)
        plain = model.encode_image(images, normalize=False)
    assert (region - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert (image - plain).abs().max() <= 1e-9 * plain.abs().max()
    assert (region - image[:, None]).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.glimpse}-{c.depths}-{'+'.join(c.parts)}")
def test_what_is_not_there_has_no_parameters(config: FusionConfig, micro_trunk: Path) -> None:
    """And what is there has only parameters that are used."""
    model = build(micro_trunk, config)
    names = {name for name, _ in model.fusion.named_parameters()}
    gains = {"keys": "key_gain", "values": "value_gain", "logits": "logit_gain"}
    depths = [0, 1, 2] if config.depths is None else set(config.depths)
    expected = {f"layers.{n}.{gains[part]}" for n in depths for part in config.parts if part in gains}
    expected |= {f"layers.{n}.gate" for n in depths if config.glimpse}
    assert {name for name in names if name.startswith("layers.")} == expected
    assert any(name.startswith(("start.", "encoder.")) for name in names) == ("start" in config.parts)
    assert ("place.linear.weight" in names) == ("place" in config.parts)
    assert ("coverage.log_sigma" in names) == any(part in gains for part in config.parts)
    assert any(name.startswith("glimpse.") for name in names) == bool(config.glimpse)
    images, prompts, windows = inputs(config.glimpse or 1)
    out = model(images, prompts, windows=windows if config.glimpse else None)
    (out.region @ torch.randn(out.region.shape[-1], dtype=torch.float64)).square().sum().backward()
    for name, parameter in model.fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_the_pool_looks_at_glimpses(micro_trunk: Path) -> None:
    """A SigLIP's: against one region and head at a time."""
    from open_clip.timm_model import TimmModel
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    tower = TimmModel("test_vit", 32, image_size=64, pool="", proj="none")
    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    tower.trunk = VisionTransformer(**sizes, class_token=False, global_pool="map")
    clip = open_clip.CustomTextCLIP(**json.loads(micro_trunk.read_text()))
    clip.visual = tower
    model = RegionCLIP(clip, ModelConfig("s", fusion=FusionConfig(glimpse=2)), None, None)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model = model.double().eval()
    images, prompts, windows = inputs()
    trunk, fusion, pool, layer = model.trunk, model.fusion, tower.trunk.attn_pool, model.fusion.layers[0]
    with torch.no_grad():
        found = model.encode_regions(images, prompts, normalize=False, windows=windows)[1]
        patches = tower.trunk.forward_features(images)
        tokens, small = fusion.glimpse(trunk, prompts, windows)
        start = fusion.start(fusion.encoder(prompts).pooled) + fusion.place(extents(prompts))
        cover = fusion.coverage(prompts)
        for b, r in [(b, r) for b in range(2) for r in range(3)]:
            q = pool.q(pool.latent[0, 0] + start[b, r])
            k, v = pool.kv(patches[b]).chunk(2, dim=-1)
            glimpse = tokens[b * 3 + r][None]
            for block in tower.trunk.blocks:
                glimpse = block(glimpse)
            gk, gv = pool.kv(tower.trunk.norm(glimpse[0])).chunk(2, dim=-1)
            mixed = []
            for h, part in enumerate((slice(0, 16), slice(16, 32))):
                seen = attended(layer, h, q[part], k[:, part], v[:, part], cover[b, r].T)
                look = attended(layer, h, q[part], gk[:, part], gv[:, part], small[b * 3 + r, 0].T)
                mixed.append(seen + layer.gate[h] * look)
            pooled = pool.proj(torch.cat(mixed))
            pooled = pooled + pool.mlp(pool.norm(pooled))
            assert (found[b, r] - pooled).abs().max() <= 1e-9 * pooled.abs().max()


def window_at(*corners: float) -> Tensor:
    """The same window for each of the regions."""
    return torch.tensor(corners, dtype=torch.float64).expand(2, 3, 4)


def test_prompts_in_a_window_of_the_whole_image_are_the_same() -> None:
    _, prompts, _ = inputs()
    for name, given in vars(prompts).items():
        found = getattr(prompts_in(prompts, window_at(0, 0, 1, 1), 16), name)
        assert torch.allclose(found.double(), given.double(), atol=1e-12), name


def test_prompts_in_a_window_lie_where_they_lie_in_the_picture() -> None:
    """The middle half of the image, in which a window's cell is a cell of the image; and one that reaches beyond it."""
    _, prompts, _ = inputs()
    middle = prompts_in(prompts, window_at(0.25, 0.25, 0.75, 0.75), 8)
    assert torch.allclose(middle.masks, prompts.masks[..., 4:12, 4:12], atol=1e-12)
    prompts.boxes[:], prompts.box_valid[:] = torch.tensor([0.3, 0.1, 0.5, 0.6]), True
    corner = prompts_in(prompts, window_at(-0.5, 0.5, 0.5, 1.5), 16)
    expected = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    expected[..., :8, 8:] = prompts.masks[..., 8:, :8]
    assert torch.allclose(corner.masks, expected, atol=1e-12)
    shares = torch.zeros(4, 4, dtype=torch.float64)
    shares[0, 3] = 0.8 * 0.4  # in the window, the box goes from 0.8 to 1 across and from -0.4 to 0.1 down
    found = Coverage((4, 4)).double()(corner)[..., 2, :]
    assert torch.allclose(found, shares.flatten().expand(2, 3, -1), atol=1e-6)


def test_a_click_is_where_it_is_in_the_window() -> None:
    _, prompts, _ = inputs()
    prompts.points[..., 0, :] = torch.tensor([0.55, 0.35])  # of the window below: x 0.75, y 0.25
    found = Coverage((2, 2)).double()(prompts_in(prompts, window_at(0.25, 0.25, 0.65, 0.65), 8))
    assert (found[..., 4, :].argmax(-1) == 1).all() and torch.allclose(found[..., 4, 1], torch.ones(2, 3).double())


def test_padding_is_finite(micro_trunk: Path) -> None:
    model = build(micro_trunk, FusionConfig(glimpse=2)).float().train()
    prompts = Prompts.empty(1, 2, 1, 16)
    out = model(torch.randn(1, 3, 64, 64), prompts, windows=Windows(torch.zeros(1, 2, 3, 32, 32), torch.zeros(1, 2, 4)))
    out.region.sum().backward()
    assert out.region.isfinite().all() and all(p.grad.isfinite().all() for p in model.fusion.parameters())


def test_the_window_is_g_patches(micro_trunk: Path) -> None:
    window = build(micro_trunk, FusionConfig(glimpse=3, glimpse_context=1.5)).fusion.window
    assert window is not None and (window.size, window.context) == (48, 1.5)
    assert build(micro_trunk, FusionConfig()).fusion.window is None


@pytest.mark.parametrize("depths", [[], [-1], [0, 3]])
def test_depths_that_the_trunk_lacks_are_refused(depths: list[int], micro_trunk: Path) -> None:
    with pytest.raises(MedpclipError, match=r"key 'fusion\.depths' is .*, expected block numbers from 0 to 2"):
        build(micro_trunk, FusionConfig(depths=depths))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"parts": []}, "'parts' is"),
        ({"parts": ["start", "queries"]}, "'parts' is"),
        ({"glimpse": -1}, "'glimpse'"),
        ({"glimpse_context": 0.0}, "'glimpse_context'"),
        ({"kind": "conditioned", "glimpse": 2}, "need kind region_tokens"),
        ({"kind": "crop", "parts": ["start"]}, "need kind region_tokens"),
        ({"kind": "crop", "depths": [0]}, "'depths' needs kind"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FusionConfig(**settings)  # type: ignore[arg-type]
