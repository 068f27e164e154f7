"""timm ViTs as open_clip wraps them: with a CLS token (BiomedCLIP), or with an attention pool (SigLIP)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medpclip.models.positions import resize_positions
from medpclip.models.trunk.interface import Block, Pool, Trunk, keep_patches


class TimmBlock(Block):
    """A `timm.models.vision_transformer.Block`."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.parts = module
        self.heads = module.attn.num_heads

    def qkv(self, x: Tensor) -> Tensor:
        projected: Tensor = self.parts.attn.qkv(self.parts.norm1(x))
        return projected

    def out(self, mixed: Tensor) -> Tensor:
        added: Tensor = self.parts.ls1(self.parts.attn.proj(mixed))
        return added

    def feed(self, x: Tensor) -> Tensor:
        added: Tensor = self.parts.ls2(self.parts.mlp(self.parts.norm2(x)))
        return added


class TimmPool(Pool):
    """A `timm.layers.AttentionPoolLatent` with one query."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts
        self.heads = parts.num_heads

    def query(self) -> Tensor:
        latent: Tensor = self.parts.latent
        return latent

    def q(self, query: Tensor) -> Tensor:
        projected: Tensor = self.parts.q(query)
        return projected

    def kv(self, patches: Tensor) -> Tensor:
        projected: Tensor = self.parts.kv(patches)
        return projected

    def out(self, mixed: Tensor) -> Tensor:
        features: Tensor = self.parts.proj(mixed)
        return features if self.parts.mlp is None else features + self.parts.mlp(self.parts.norm(features))


class TimmTrunk(Trunk):
    """An `open_clip.timm_model.TimmModel` around a `timm` `VisionTransformer`. `embed` and `head` repeat what their
    `forward`s do before and after the blocks; a test holds them to it."""

    def __init__(self, visual: Any) -> None:
        super().__init__(visual)
        trunk = self.parts = visual.trunk
        self.outer_head: nn.Module = visual.head
        self.width = trunk.embed_dim
        linear = [m for part in (trunk.head, visual.head) for m in part.modules() if isinstance(m, nn.Linear)]
        self.output_dim = linear[-1].out_features if linear else trunk.num_features
        self.grid = trunk.patch_embed.grid_size
        self.patch = trunk.patch_embed.patch_size[0]
        self.blocks = [TimmBlock(block) for block in trunk.blocks]
        self.prefix = trunk.num_prefix_tokens
        self.pool = None if trunk.attn_pool is None else TimmPool(trunk.attn_pool)

    def embed(self, images: Tensor, keep: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        trunk = self.parts
        tokens = trunk.patch_embed(images)
        if added is not None:
            tokens = tokens + added
        cls = [trunk.cls_token.expand(tokens.shape[0], -1, -1)] if self.prefix else []
        if trunk.no_embed_class:
            tokens = torch.cat([*cls, tokens + trunk.pos_embed], dim=1)
        else:
            tokens = torch.cat([*cls, tokens], dim=1) + trunk.pos_embed
        embedded: Tensor = trunk.norm_pre(keep_patches(tokens, keep, self.prefix))
        return embedded

    def embed_patches(self, pixels: Tensor) -> Tensor:
        trunk = self.parts
        patches = trunk.patch_embed.proj(pixels)  # `patch_embed` itself takes images of one size only
        own = trunk.pos_embed[0] if trunk.no_embed_class else trunk.pos_embed[0, self.prefix :]
        positions = resize_positions(own, patches.shape[2:], 0)
        tokens = trunk.patch_embed.norm(patches.flatten(2).transpose(1, 2)) + positions
        embedded: Tensor = trunk.norm_pre(tokens)
        return embedded

    def norm(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.parts.norm(tokens)
        return normed

    def head(self, features: Tensor) -> Tensor:
        if self.pool is None:
            features = self.norm(features)
        projected: Tensor = self.outer_head(self.parts.head(self.parts.fc_norm(features)))
        return projected

    def pooled(self, tokens: Tensor) -> Tensor:
        return super().pooled(tokens) if self.pool is None else self.head(self.parts.attn_pool(self.norm(tokens)))

    def patches(self, tokens: Tensor) -> Tensor:
        if self.pool is None:
            return super().patches(tokens)
        # An attention pool over a single patch gives all its attention to it.
        alone = self.parts.attn_pool(self.norm(tokens).flatten(0, 1).unsqueeze(1))
        return self.head(alone).unflatten(0, tokens.shape[:2])


def problem_of_timm(visual: Any) -> str | None:
    """Why region prompts can't be fused into this open_clip `TimmModel`; None if they can."""
    from timm.models.vision_transformer import VisionTransformer

    trunk = visual.trunk
    if type(trunk) is not VisionTransformer:
        return f"is timm's {type(trunk).__name__}, not its VisionTransformer"
    if trunk.num_reg_tokens or trunk.pos_embed is None or trunk.dynamic_img_size:
        return "has register tokens, no positions (pos_embed) or dynamic_img_size"
    size = tuple(trunk.patch_embed.img_size)
    if size[0] != size[1] or size != tuple(visual.image_size):
        return f"takes {size[0]}x{size[1]} pixels where open_clip says {visual.image_size[0]}x{visual.image_size[1]}"
    return _problem_of_blocks(trunk) or _problem_of_pool(trunk) or _problem_of_noise(visual)


def _problem_of_blocks(trunk: Any) -> str | None:
    from timm.layers import Attention
    from timm.models.vision_transformer import Block as StandardBlock

    for block in trunk.blocks:
        if type(block) is not StandardBlock or type(block.attn) is not Attention:
            return f"has blocks of type {type(block).__name__} with {type(block.attn).__name__}"
        if not isinstance(block.attn.q_norm, nn.Identity) or not isinstance(block.attn.k_norm, nn.Identity):
            return "norms its queries and keys (qk_norm)"
        if not isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity):
            return "norms its attention's output (scale_attn_norm)"
        if getattr(block.attn, "gate", None) is not None or block.attn.qkv.out_features != 3 * trunk.embed_dim:
            return "gates its attention, or has heads whose widths don't add up to its own"
    return None


def _problem_of_pool(trunk: Any) -> str | None:
    from timm.layers import AttentionPoolLatent

    pool = trunk.attn_pool
    if pool is None:
        return (
            None
            if trunk.global_pool == "token"
            else f"pools by {trunk.global_pool!r} (timm_pool), not by its CLS token"
        )
    if type(pool) is not AttentionPoolLatent or trunk.has_class_token:
        return f"pools by {type(pool).__name__}, or by attention beside a CLS token"
    if pool.latent_len != 1 or pool.pos_embed is not None or pool.latent_dim != trunk.embed_dim:
        return "pools by attention with several queries, positions of its own or another width"
    if not isinstance(pool.q_norm, nn.Identity) or not isinstance(pool.k_norm, nn.Identity):
        return "norms its pooling queries and keys (qk_norm)"
    return None


def _problem_of_noise(visual: Any) -> str | None:
    """Region tokens go through the same blocks as the image, and prompts must not depend on draws inside the model."""
    if not isinstance(visual.trunk.patch_drop, nn.Identity):
        return "drops patches itself (patch_dropout), which hides which ones are left; set patch_dropout to 0"
    for module in visual.modules():
        if getattr(module, "drop_prob", 0):
            return "skips blocks at random (timm_drop_path); set it to null"
        if isinstance(module, nn.Dropout) and module.p > 0:
            return "drops activations (timm_drop); set it to 0"
    return None
