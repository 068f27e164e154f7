"""Region tokens: R prompts answered in one pass of the trunk (our design).

Beside CLS and the patches runs one token per prompt. It starts as the CLS token plus a zero-initialised projection of
its prompt, goes through the trunk's own weights, and in each block attends to itself and to the patches: just what CLS
attends to, a second CLS that has been told where to look. Its view of the patches is modulated by the prompt's coverage
m (6 channels, see `prompt_encoder.CHANNELS`): the keys gain a*m, the values b*m, the logits c*m, all zero at first.
None of it is made per region and patch: with q the token's query and w its attention weights,

    logits_n += (c + q.a / sqrt(d)) . m_n        out += b . sum_n w_n m_n

Patches and CLS never attend to region tokens, and these not to each other. So the image path stays as it is, a prompt's
answer does not depend on its companions, and R prompts cost R queries instead of R forwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.models.prompt_encoder import CHANNELS, Coverage, PromptEncoder
from medpclip.models.prompts import Prompts
from medpclip.models.trunk import embed, head

if TYPE_CHECKING:  # at run time this file needs torch alone
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer


class RegionTokens(nn.Module):
    """The parameters that region tokens add to a trunk, and the joint pass.

    Args:
        visual: the trunk; only its sizes are read here, it is handed over again at each call.
        prompt_dim: width of the prompt encoder.
    """

    def __init__(self, visual: VisionTransformer, prompt_dim: int = 256) -> None:
        super().__init__()
        width, layers = visual.transformer.width, len(visual.transformer.resblocks)
        heads = visual.transformer.resblocks[0].attn.num_heads
        self.encoder = PromptEncoder(prompt_dim)
        self.coverage = Coverage(visual.grid_size)
        self.start = nn.Linear(prompt_dim, width)
        shape = (layers, heads, len(CHANNELS))
        self.key_gain = nn.Parameter(torch.zeros(*shape, width // heads))  # a
        self.value_gain = nn.Parameter(torch.zeros(*shape, width // heads))  # b
        self.logit_gain = nn.Parameter(torch.zeros(*shape))  # c
        nn.init.zeros_(self.start.weight)
        nn.init.zeros_(self.start.bias)

    def forward(self, visual: VisionTransformer, images: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) and R prompts each -> image (B, D) and region embeddings (B, R, D), not normalised."""
        tokens = embed(visual, images)
        cover = self.coverage(prompts).to(tokens.dtype)
        start = tokens[:, :1] + self.start(self.encoder(prompts).pooled).to(tokens.dtype)
        count = tokens.shape[1]
        tokens = torch.cat([tokens, start], dim=1)
        for layer, block in enumerate(visual.transformer.resblocks):
            tokens = self._block(block, layer, tokens, count, cover)
        features = head(visual, torch.cat([tokens[:, :1], tokens[:, count:]], dim=1))
        return features[:, 0], features[:, 1:]

    def _block(self, block: ResidualAttentionBlock, layer: int, tokens: Tensor, count: int, cover: Tensor) -> Tensor:
        """One block for the `count` image tokens and the region tokens behind them: shared matrices, split attention."""
        attention = block.attn
        qkv = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        # (3, B, heads, tokens, d)
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
        image = F.scaled_dot_product_attention(q[:, :, :count], k[:, :, :count], v[:, :, :count])
        region = self._attend(layer, q[:, :, count:], k, v, count, cover)
        mixed = torch.cat([image, region.to(image.dtype)], dim=2).transpose(1, 2).flatten(2)
        tokens = tokens + block.ls_1(attention.out_proj(mixed))
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, count: int, cover: Tensor) -> Tensor:
        """Queries (B, heads, R, d) of the region tokens over themselves and the patches."""
        scale = q.shape[-1] ** -0.5
        q = q * scale
        patches = slice(1, count)
        gain = torch.einsum("bhrd,hcd->brhc", q, self.key_gain[layer].to(q.dtype)) + self.logit_gain[layer].to(q.dtype)
        to_patches = q @ k[:, :, patches].transpose(-1, -2) + (gain @ cover).transpose(1, 2)
        to_itself = (q * k[:, :, count:]).sum(-1, keepdim=True)
        weights = torch.cat([to_itself, to_patches], dim=-1).float().softmax(-1).to(v.dtype)
        on_itself, on_patches = weights[..., :1], weights[..., 1:]
        covered = on_patches.transpose(1, 2) @ cover.transpose(-1, -2)  # (B, R, heads, channels)
        shift = torch.einsum("brhc,hcd->bhrd", covered, self.value_gain[layer].to(v.dtype))
        return on_patches @ v[:, :, patches] + on_itself * v[:, :, count:] + shift
