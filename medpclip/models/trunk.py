"""The ViT that open_clip built: which ones are supported, and their pieces by name.

Only public attributes of `open_clip.transformer.VisionTransformer` are used. `embed` and `head` repeat what its
`forward` does before and after the blocks; a test holds them to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medpclip.errors import MedpclipError

if TYPE_CHECKING:  # fusion modules build on this file and need torch alone
    from open_clip.transformer import VisionTransformer


def check_supported(visual: nn.Module, name: str) -> VisionTransformer:
    """The trunk of an open_clip model, if region prompts can be fused into it.

    Raises:
        MedpclipError: naming what is not supported: another kind of tower, an attentional or average pool, blocks with
            other attention than `nn.MultiheadAttention`, patch dropout, non-square inputs.
    """
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if not isinstance(visual, VisionTransformer):
        raise MedpclipError(
            f"model {name!r}: its image tower is a {type(visual).__name__}; region prompts need an open_clip VisionTransformer"
        )
    problem = None
    if visual.attn_pool is not None:
        problem = "pools by attention (attentional_pool)"
    elif visual.pool_type != "tok":
        problem = f"pools by {visual.pool_type!r} (pool_type), not by its CLS token"
    elif not all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks):
        problem = f"has blocks of type {type(visual.transformer.resblocks[0]).__name__} (block_type, qk_norm or scaled attention)"
    elif not isinstance(visual.patch_dropout, nn.Identity):
        problem = "drops patches itself (patch_dropout), which hides which ones are left; set patch_dropout to 0"
    elif visual.image_size[0] != visual.image_size[1] or visual.proj is None or visual.output_tokens:
        problem = "has a non-square input, no projection, or output_tokens"
    if problem:
        raise MedpclipError(f"model {name!r}: its image tower {problem}; choose a plain ViT such as ViT-B-16")
    return visual


def embed(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) -> the tokens that enter the first block (B, 1 + N, width), CLS first."""
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
    tokens = torch.cat([cls, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
    return visual.ln_pre(tokens)


def head(visual: VisionTransformer, tokens: Tensor) -> Tensor:
    """Tokens (..., width) from the last block -> the shared embedding space (..., output_dim), not normalised."""
    return visual.ln_post(tokens) @ visual.proj
