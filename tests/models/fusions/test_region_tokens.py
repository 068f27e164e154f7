"""The fused pass against the sentence it implements: a token per region, keys, values and logits materialised."""

import json
import math
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from medpclip.models import ModelConfig, Prompts, RegionCLIP
from medpclip.models.fusions.regions import extents


def reference(model, images: torch.Tensor, prompts: Prompts, kept: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Image and region embeddings (B, 1 + R, D), one region, block, head and query at a time; nothing attends to patches
    outside `kept` (B, N), but all are there."""
    visual, fusion = model.visual, model.fusion
    tokens = model.trunk.embed(images)
    cover = fusion.coverage(prompts)
    start = fusion.start(fusion.encoder(prompts).pooled) + fusion.place(extents(prompts))
    out = torch.zeros(prompts.batch_size, 1 + prompts.regions, visual.output_dim, dtype=images.dtype)
    for b in range(prompts.batch_size):
        hidden = torch.zeros(kept.shape[1], dtype=images.dtype).masked_fill(~kept[b], -torch.inf)
        mask = torch.nn.functional.pad(hidden, (1, 0)).expand(kept.shape[1] + 1, -1)  # CLS always stays
        x = tokens[b : b + 1]
        for block in visual.transformer.resblocks:
            x = block(x, attn_mask=mask)
        out[b, 0] = model.trunk.head(x[0, 0])
        for r in range(prompts.regions):
            x, token = tokens[b : b + 1], tokens[b, 0] + start[b, r]
            for layer, block in enumerate(visual.transformer.resblocks):
                weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
                q, own_k, own_v = F.linear(block.ln_1(token), weight, bias).chunk(3)
                _, k, v = F.linear(block.ln_1(x[0, 1:]), weight, bias).chunk(3, dim=-1)
                heads, d = block.attn.num_heads, block.attn.head_dim
                mixed = []
                for h in range(heads):
                    part = slice(h * d, (h + 1) * d)
                    m = cover[b, r].T  # (N, channels)
                    keys = k[:, part] + m @ fusion.layers[layer].key_gain[h]
                    values = v[:, part] + m @ fusion.layers[layer].value_gain[h]
                    logits = keys @ q[part] / math.sqrt(d) + m @ fusion.layers[layer].logit_gain[h]
                    own = own_k[part] @ q[part] / math.sqrt(d)
                    w = torch.cat([own[None], logits + hidden]).softmax(0)
                    mixed.append(w[0] * own_v[part] + w[1:] @ values)
                token = token + block.ls_1(block.attn.out_proj(torch.cat(mixed)))
                token = token + block.ls_2(block.mlp(block.ln_2(token)))
                x = block(x, attn_mask=mask)
            out[b, 1 + r] = model.trunk.head(token)
    return out


def moved(model):  # type: ignore[no-untyped-def]
    """The same with a fusion that has left its zeros, in float64."""
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.double().eval()


def some_prompts(grid: int) -> Prompts:
    prompts = Prompts.empty(2, 3, 2, grid)
    prompts.points = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    prompts.point_labels = torch.tensor([1, 0]).expand(2, 3, 2).clone()
    prompts.boxes = torch.tensor([0.1, 0.2, 0.5, 0.45], dtype=torch.float64).expand(2, 3, 4).clone()
    prompts.box_valid[:, 1:] = True
    prompts.masks = (torch.rand(2, 3, grid, grid) > 0.6).double()
    prompts.mask_valid[:, :2] = True
    return prompts


@pytest.mark.parametrize("keep", [None, [[0, 3, 4, 9, 15], [1, 2, 5, 6, 14]]])
def test_the_fused_pass_equals_the_materialised_one(keep: list[list[int]] | None, micro_trunk: Path) -> None:
    """Dropping patches is the same as leaving them there and never looking at them."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**json.loads(micro_trunk.read_text()))
    model = moved(RegionCLIP(clip, ModelConfig(str(micro_trunk)), None, None))  # type: ignore[arg-type]
    prompts, images = some_prompts(model.mask_grid), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    kept = torch.ones(2, 16, dtype=torch.bool)
    if keep is not None:
        kept = torch.zeros(2, 16, dtype=torch.bool).scatter(1, torch.tensor(keep), True)
    with torch.no_grad():
        expected = reference(model, images, prompts, kept)
        index = None if keep is None else torch.tensor(keep)
        image, region = model.encode_regions(images, prompts, normalize=False, keep=index)
        alone = model.encode_image(images, normalize=False, keep=index)
    assert (torch.cat([image[:, None], region], 1) - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert (alone - expected[:, 0]).abs().max() <= 1e-9 * expected.abs().max()
