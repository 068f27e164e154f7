"""open_clip's own ViT with a CLS token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.models.positions import resize_positions
from medpclip.models.trunk.interface import Block, Trunk, keep_patches


class PlainBlock(Block):
    """An `open_clip.transformer.ResidualAttentionBlock`."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.parts = module
        self.heads = module.attn.num_heads

    def qkv(self, x: Tensor) -> Tensor:
        attention = self.parts.attn
        return F.linear(self.parts.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)

    def out(self, mixed: Tensor) -> Tensor:
        added: Tensor = self.parts.ls_1(self.parts.attn.out_proj(mixed))
        return added

    def feed(self, x: Tensor) -> Tensor:
        added: Tensor = self.parts.ls_2(self.parts.mlp(self.parts.ln_2(x)))
        return added


class PlainTrunk(Trunk):
    """An `open_clip.transformer.VisionTransformer`. `embed` and `head` repeat what its `forward` does before and after
    the blocks; a test holds them to it."""

    def __init__(self, visual: Any) -> None:
        super().__init__(visual)
        self.parts = visual
        self.width = visual.transformer.width
        self.output_dim = visual.output_dim
        self.grid = visual.grid_size
        self.patch = visual.patch_size[0]
        self.blocks = [PlainBlock(block) for block in visual.transformer.resblocks]

    def embed(self, images: Tensor, keep: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        visual = self.parts
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        if added is not None:
            patches = patches + added
        cls = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([cls, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        embedded: Tensor = visual.ln_pre(keep_patches(tokens, keep, self.prefix))
        return embedded

    def embed_patches(self, pixels: Tensor) -> Tensor:
        visual = self.parts
        patches = visual.conv1(pixels)
        positions = resize_positions(visual.positional_embedding, patches.shape[2:], 1)[1:]
        embedded: Tensor = visual.ln_pre(patches.flatten(2).transpose(1, 2) + positions.to(patches.dtype))
        return embedded

    def head(self, features: Tensor) -> Tensor:
        projected: Tensor = self.parts.ln_post(features) @ self.parts.proj
        return projected


def problem_of_plain(visual: Any) -> str | None:
    """Why region prompts can't be fused into this open_clip `VisionTransformer`; None if they can."""
    from open_clip.transformer import ResidualAttentionBlock

    if visual.attn_pool is not None:
        return "pools by attention (attentional_pool)"
    if visual.pool_type != "tok":
        return f"pools by {visual.pool_type!r} (pool_type), not by its CLS token"
    if not all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks):
        return f"has blocks of type {type(visual.transformer.resblocks[0]).__name__} (block_type, qk_norm or scaled attention)"
    if not isinstance(visual.patch_dropout, nn.Identity):
        return "drops patches itself (patch_dropout), which hides which ones are left; set patch_dropout to 0"
    if visual.image_size[0] != visual.image_size[1] or visual.proj is None or visual.output_tokens:
        return "has a non-square input, no projection, or output_tokens"
    return None
