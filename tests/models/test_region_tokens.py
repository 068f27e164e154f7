"""The fused pass against the sentence it implements: a token per region, keys, values and logits materialised."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from medpclip.models import ModelConfig, Prompts
from medpclip.models.load import build_model
from medpclip.models.trunk import embed, head


def reference(model, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Region embeddings, one region, block, head and query at a time."""
    visual, fusion = model.visual, model.fusion
    tokens = embed(visual, images)
    cover = fusion.coverage(prompts)
    start = fusion.start(fusion.encoder(prompts).pooled)
    out = torch.zeros(prompts.batch_size, prompts.regions, visual.output_dim, dtype=images.dtype)
    for b in range(prompts.batch_size):
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
                    keys = k[:, part] + m @ fusion.key_gain[layer, h]
                    values = v[:, part] + m @ fusion.value_gain[layer, h]
                    logits = keys @ q[part] / math.sqrt(d) + m @ fusion.logit_gain[layer, h]
                    own = own_k[part] @ q[part] / math.sqrt(d)
                    w = torch.cat([own[None], logits]).softmax(0)
                    mixed.append(w[0] * own_v[part] + w[1:] @ values)
                token = token + block.ls_1(block.attn.out_proj(torch.cat(mixed)))
                token = token + block.ls_2(block.mlp(block.ln_2(token)))
                x = block(x)
            out[b, r] = head(visual, token)
    return out


def test_the_fused_pass_equals_the_materialised_one(micro_trunk: Path) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(trunk=str(micro_trunk))).double().eval()
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        prompts = Prompts.empty(2, 3, 2, model.mask_grid)
        prompts.points = torch.rand(2, 3, 2, 2, dtype=torch.float64)
        prompts.point_labels = torch.tensor([1, 0]).expand(2, 3, 2).clone()
        prompts.boxes = torch.tensor([0.1, 0.2, 0.5, 0.45], dtype=torch.float64).expand(2, 3, 4).clone()
        prompts.box_valid[:, 1:] = True
        prompts.masks = (torch.rand(2, 3, 16, 16) > 0.6).double()
        prompts.mask_valid[:, :2] = True
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        expected = reference(model, images, prompts)
        _, actual = model.encode_regions(images, prompts, normalize=False)
    assert (actual - expected).abs().max() <= 1e-9 * expected.abs().max()
