"""Region tokens: R prompts answered in one pass of the trunk (our design).

Beside CLS and the patches runs one token per prompt. It starts as the CLS token plus a zero-initialised projection of
its prompt, goes through the trunk's own weights, and in each block attends to itself and to the patches: just what CLS
attends to, a second CLS that has been told where to look. Its view of the patches is modulated by the prompt's coverage
m (6 channels, see `prompt_encoder.CHANNELS`): the keys gain a*m, the values b*m, the logits c*m, all zero at first.
None of it is made per region and patch: with q the token's query and w its attention weights,

    logits_n += (c + q.a / sqrt(d)) . m_n        out += b . sum_n w_n m_n

Patches and CLS never attend to region tokens, and these not to each other. So the image path stays as it is, a prompt's
answer does not depend on its companions, and R prompts cost R queries instead of R forwards.

Where the trunk has no CLS token but pools by attention, a region token is a copy of the pooling query: R more queries in
the pool, which see the patches modulated in the same way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.models.fusions.interface import Fusion
from medpclip.models.prompt_encoder import CHANNELS, Coverage, PromptEncoder
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Block, Pool, Trunk, saved_or_repeated


class PromptedAttention(nn.Module):
    """What prompts change in one attention over patches."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.key_gain = nn.Parameter(torch.zeros(heads, len(CHANNELS), width // heads))  # a
        self.value_gain = nn.Parameter(torch.zeros(heads, len(CHANNELS), width // heads))  # b
        self.logit_gain = nn.Parameter(torch.zeros(heads, len(CHANNELS)))  # c

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cover: Tensor, own: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Queries (B, heads, R, d) over patches.

        Args:
            q: the region tokens' queries.
            k: keys (B, heads, N, d) of the patches.
            v: their values.
            cover: (B, R, channels, N).
            own: key and value (B, heads, R, d) of each region token, where it attends to itself too.
        """
        q = q * q.shape[-1] ** -0.5
        gain = torch.einsum("bhrd,hcd->brhc", q, self.key_gain.to(q.dtype)) + self.logit_gain.to(q.dtype)
        logits = q @ k.transpose(-1, -2) + (gain @ cover).transpose(1, 2)
        if own is not None:
            logits = torch.cat([(q * own[0]).sum(-1, keepdim=True), logits], dim=-1)
        weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(v.dtype)
        on_patches = weights if own is None else weights[..., 1:]
        covered = on_patches.transpose(1, 2) @ cover.transpose(-1, -2)  # (B, R, heads, channels)
        out = on_patches @ v + torch.einsum("brhc,hcd->bhrd", covered, self.value_gain.to(v.dtype))
        return out if own is None else out + weights[..., :1] * own[1]


class RegionBlock(PromptedAttention):
    """One block of a trunk with a CLS token, for the image's tokens and the region tokens behind them."""

    def forward(self, block: Block, tokens: Tensor, count: int, cover: Tensor, last: bool) -> Tensor:
        """Shared matrices, split attention.

        Args:
            block: the trunk's block.
            tokens: (B, count + R, width).
            count: CLS and patches.
            cover: (B, R, channels, N).
            last: nobody reads the patches any more, so only CLS and the region tokens go on.

        Returns:
            The tokens behind the block; (B, 1 + R, width) of the last one.
        """
        queries = 1 if last else count
        image, region = block.qkv(tokens).split([count, tokens.shape[1] - count], dim=1)
        q, k, v = _heads(image, block.heads, 3)
        region_q, own_k, own_v = _heads(region, block.heads, 3)
        seen = self.attend(region_q, k[:, :, 1:], v[:, :, 1:], cover, (own_k, own_v))
        image = F.scaled_dot_product_attention(q[:, :, :queries], k, v)
        mixed = torch.cat([image, seen.to(image.dtype)], dim=2).transpose(1, 2).flatten(2)
        if last:
            tokens = torch.cat([tokens[:, :1], tokens[:, count:]], dim=1)
        tokens = tokens + block.out(mixed)
        return tokens + block.feed(tokens)


class RegionPool(PromptedAttention):
    """The attention pool of a trunk without CLS, for the image's query and R more of them."""

    def forward(self, pool: Pool, patches: Tensor, start: Tensor, cover: Tensor) -> Tensor:
        """Patches (B, N, width), what prompts add to the query (B, R, width) and their coverage (B, R, channels, N) ->
        pooled features (B, 1 + R, width), the image's first."""
        k, v = _heads(pool.kv(patches), pool.heads, 2)
        latent = pool.query().to(start.dtype)
        queries = torch.cat([latent.expand(len(start), -1, -1), latent + start], dim=1)
        (q,) = _heads(pool.q(queries), pool.heads, 1)
        image = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        seen = self.attend(q[:, :, 1:], k, v, cover)
        return pool.out(torch.cat([image, seen.to(image.dtype)], dim=2).transpose(1, 2).flatten(2))


class RegionTokens(Fusion):
    """The parameters that region tokens add to a trunk, and the joint pass.

    Each layer's parameters are those of a module of its own, whose forward runs that layer: what shards parameters
    (DeepSpeed's ZeRO-3) gathers them module by module.

    Args:
        trunk: only its sizes are read here, it is handed over again at each call.
        prompt_dim: width of the prompt encoder.
    """

    def __init__(self, trunk: Trunk, prompt_dim: int = 256) -> None:
        super().__init__()
        self.encoder = PromptEncoder(prompt_dim)
        self.coverage = Coverage(trunk.grid)
        self.start = nn.Linear(prompt_dim, trunk.width)
        self.layers = nn.ModuleList(
            [RegionBlock(block.heads, trunk.width) for block in trunk.blocks]
            if trunk.pool is None
            else [RegionPool(trunk.pool.heads, trunk.width)]
        )
        nn.init.zeros_(self.start.weight)
        nn.init.zeros_(self.start.bias)

    def forward(
        self,
        trunk: Trunk,
        images: Tensor,
        prompts: Prompts,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W), R prompts each and the patches to keep (B, K), None for all -> image (B, D) and region
        embeddings (B, R, D), not normalised."""
        tokens = trunk.embed(images, keep)
        cover = self.coverage(prompts, keep).to(tokens.dtype)
        start = self.start(self.encoder(prompts).pooled).to(tokens.dtype)
        save = self.saves
        if trunk.pool is None:
            count = tokens.shape[1]
            tokens = torch.cat([tokens, tokens[:, :1] + start], dim=1)
            for number, (layer, block) in enumerate(zip(self.layers, trunk.blocks, strict=True), 1):
                tokens = saved_or_repeated(save, layer, block, tokens, count, cover, number == len(self.layers))
        else:
            patches = trunk.norm(trunk.run(tokens, save=save))
            tokens = saved_or_repeated(save, self.layers[0], trunk.pool, patches, start, cover)
        features = trunk.head(tokens)
        return features[:, 0], features[:, 1:]


def _heads(projected: Tensor, heads: int, parts: int) -> list[Tensor]:
    """(B, tokens, parts * width), side by side -> `parts` tensors (B, heads, tokens, width / heads)."""
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in projected.chunk(parts, dim=-1)]
