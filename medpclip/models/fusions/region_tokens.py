"""Region tokens: R prompts answered in one pass of the trunk (our design).

Beside CLS and the patches runs one token per prompt. It starts as the CLS token plus zero-initialised projections of its
prompt and of the place and size of what that points at (see `place`), goes through the trunk's own weights, and in each
block attends to itself and to the patches: just what CLS attends to, a second CLS that has been told where to look. Its
view of the patches is modulated by the prompt's coverage m (6 channels, see `prompt_encoder.CHANNELS`): the keys gain a*m,
the values b*m, the logits c*m, all zero at first. None of it is made per region and patch: with q the token's query and w
its attention weights,

    logits_n += (c + q.a / sqrt(d)) . m_n        out += b . sum_n w_n m_n

Patches and CLS never attend to region tokens, and these not to each other. So the image path stays as it is, a prompt's
answer does not depend on its companions, and R prompts cost R queries instead of R forwards.

With a glimpse (see `glimpse`), each region's window runs along through the same blocks, its patches attending to one
another only. The region token looks at them by a second softmax, modulated by the same a, b and c, whose output is added
with a gate per head that is zero at first.

Where the trunk has no CLS token but pools by attention, a region token is a copy of the pooling query: R more queries in
the pool, which see the patches modulated in the same way, and their glimpse by a second attention too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.data.loading.windows import WindowSpec
from medpclip.errors import MedpclipError
from medpclip.models.fusions.config import FusionConfig, Part
from medpclip.models.fusions.glimpse import Glimpse
from medpclip.models.fusions.interface import Fusion
from medpclip.models.fusions.place import Place
from medpclip.models.fusions.regions import extents
from medpclip.models.prompt_encoder import CHANNELS, Coverage, PromptEncoder
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Block, Pool, Trunk, saved_or_repeated, split_heads


class PromptedAttention(nn.Module):
    """What prompts change in one attention over patches.

    Args:
        heads: of the attention.
        width: of the trunk's tokens.
        parts: which of "keys", "values" and "logits" coverage adds to.
        glimpse: whether glimpses are looked at.
    """

    def __init__(self, heads: int, width: int, parts: Collection[Part], glimpse: bool) -> None:
        super().__init__()
        gains = heads, len(CHANNELS), width // heads
        self.key_gain = nn.Parameter(torch.zeros(gains)) if "keys" in parts else None  # a
        self.value_gain = nn.Parameter(torch.zeros(gains)) if "values" in parts else None  # b
        self.logit_gain = nn.Parameter(torch.zeros(gains[:2])) if "logits" in parts else None  # c
        self.gate = nn.Parameter(torch.zeros(heads)) if glimpse else None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cover: Tensor | None, own: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Queries (B, heads, R, d) over patches.

        Args:
            q: the region tokens' queries.
            k: keys (B, heads, N, d) of the patches.
            v: their values.
            cover: (B, R, channels, N); None only where nothing is made of it.
            own: key and value (B, heads, R, d) of each region token, where it attends to itself too.
        """
        q = q * q.shape[-1] ** -0.5
        gain = self._gain(q)
        logits = q @ k.transpose(-1, -2)
        if gain is not None:
            assert cover is not None
            logits = logits + (gain @ cover).transpose(1, 2)
        if own is not None:
            logits = torch.cat([(q * own[0]).sum(-1, keepdim=True), logits], dim=-1)
        weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(v.dtype)
        on_patches = weights if own is None else weights[..., 1:]
        if self.value_gain is None:
            out = on_patches @ v
        else:
            assert cover is not None
            covered = on_patches.transpose(1, 2) @ cover.transpose(-1, -2)  # (B, R, heads, channels)
            out = on_patches @ v + torch.einsum("brhc,hcd->bhrd", covered, self.value_gain.to(v.dtype))
        return out if own is None else out + weights[..., :1] * own[1]

    def look(self, q: Tensor, k: Tensor, v: Tensor, cover: Tensor | None) -> Tensor:
        """What queries (B, heads, R, d) gain by a look at keys and values (B * R, heads, n, d) of their own glimpses, of
        which the prompts cover (B * R, 1, channels, n)."""
        assert self.gate is not None
        alone = q.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        looked = self.attend(alone, k, v, cover).squeeze(2).unflatten(0, (len(q), -1)).transpose(1, 2)
        return self.gate.to(looked.dtype)[:, None, None] * looked

    def _gain(self, q: Tensor) -> Tensor | None:
        """What a unit of each channel adds to the logits of scaled queries (B, heads, R, d): (B, R, heads, channels), or
        what broadcasts to it."""
        logit_gain = None if self.logit_gain is None else self.logit_gain.to(q.dtype)
        if self.key_gain is None:
            return logit_gain
        gain = torch.einsum("bhrd,hcd->brhc", q, self.key_gain.to(q.dtype))
        return gain if logit_gain is None else gain + logit_gain


class RegionBlock(PromptedAttention):
    """One block of a trunk with a CLS token, for the image's tokens, the region tokens behind them and their glimpses."""

    def forward(
        self,
        block: Block,
        tokens: Tensor,
        count: int,
        cover: Tensor | None,
        last: bool,
        glimpse: Tensor | None = None,
        glimpse_cover: Tensor | None = None,
        last_look: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Shared matrices, split attention.

        Args:
            block: the trunk's block.
            tokens: (B, count + R, width).
            count: CLS and patches.
            cover: (B, R, channels, N).
            last: nobody reads the patches any more, so only CLS and the region tokens go on.
            glimpse: tokens (B * R, n, width) of the regions' glimpses.
            glimpse_cover: (B * R, 1, channels, n).
            last_look: nobody reads the glimpses any more.

        Returns:
            The tokens behind the block, (B, 1 + R, width) of the last one; and those of the glimpses, if they go on.
        """
        queries = 1 if last else count
        image, region = block.qkv(tokens).split([count, tokens.shape[1] - count], dim=1)
        q, k, v = split_heads(image, block.heads, 3)
        region_q, own_k, own_v = split_heads(region, block.heads, 3)
        seen = self.attend(region_q, k[:, :, 1:], v[:, :, 1:], cover, (own_k, own_v))
        if glimpse is not None:
            glimpse_q, glimpse_k, glimpse_v = split_heads(block.qkv(glimpse), block.heads, 3)
            if self.gate is not None:
                seen = seen + self.look(region_q, glimpse_k, glimpse_v, glimpse_cover)
            if last_look:
                glimpse = None
            else:
                glimpse = _onward(block, glimpse, F.scaled_dot_product_attention(glimpse_q, glimpse_k, glimpse_v))
        image = F.scaled_dot_product_attention(q[:, :, :queries], k, v)
        if last:
            tokens = torch.cat([tokens[:, :1], tokens[:, count:]], dim=1)
        return _onward(block, tokens, torch.cat([image, seen.to(image.dtype)], dim=2)), glimpse


class RegionPool(PromptedAttention):
    """The attention pool of a trunk without CLS, for the image's query and R more of them."""

    def forward(
        self,
        pool: Pool,
        patches: Tensor,
        start: Tensor,
        cover: Tensor | None,
        glimpse: Tensor | None = None,
        glimpse_cover: Tensor | None = None,
    ) -> Tensor:
        """Patches (B, N, width), what prompts add to the query (B, R, width), their coverage (B, R, channels, N), and the
        glimpses' patches (B * R, n, width) with theirs (B * R, 1, channels, n) -> pooled features (B, 1 + R, width), the
        image's first."""
        k, v = split_heads(pool.kv(patches), pool.heads, 2)
        latent = pool.query().to(start.dtype)
        queries = torch.cat([latent.expand(len(start), -1, -1), latent + start], dim=1)
        (q,) = split_heads(pool.q(queries), pool.heads, 1)
        image = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        seen = self.attend(q[:, :, 1:], k, v, cover)
        if glimpse is not None:
            glimpse_k, glimpse_v = split_heads(pool.kv(glimpse), pool.heads, 2)
            seen = seen + self.look(q[:, :, 1:], glimpse_k, glimpse_v, glimpse_cover)
        return pool.out(torch.cat([image, seen.to(image.dtype)], dim=2).transpose(1, 2).flatten(2))


class RegionTokens(Fusion):
    """The parameters that region tokens add to a trunk, and the joint pass.

    Each layer's parameters are those of a module of its own, whose forward runs that layer: what shards parameters
    (DeepSpeed's ZeRO-3) gathers them module by module.

    Args:
        trunk: only its sizes are read here, it is handed over again at each call.
        config: which parts there are, in which blocks, and whether there is a glimpse; of other blocks a region token
            sees the patches as CLS does, and no glimpse.

    Raises:
        MedpclipError: depths that the trunk doesn't have.
    """

    def __init__(self, trunk: Trunk, config: FusionConfig) -> None:
        super().__init__()
        parts, side = config.parts, config.glimpse
        covered = bool({"keys", "values", "logits"} & set(parts))
        self.depths = _depths(trunk, config.depths)
        self.encoder = PromptEncoder(config.prompt_dim) if "start" in parts else None
        self.coverage = Coverage(trunk.grid) if covered else None
        self.start = nn.Linear(config.prompt_dim, trunk.width) if "start" in parts else None
        self.place = Place(trunk.width) if "place" in parts else None
        heads = [block.heads for block in trunk.blocks] if trunk.pool is None else [trunk.pool.heads]
        kind = RegionBlock if trunk.pool is None else RegionPool
        self.layers = nn.ModuleList(
            kind(heads[number], trunk.width, parts, side > 0)
            if number in self.depths
            else kind(heads[number], trunk.width, (), False)
            for number in range(len(heads))
        )
        self.glimpse = Glimpse(trunk.width, side, covered) if side else None
        if side:
            self.window = WindowSpec(side * trunk.patch, config.glimpse_context)
        if self.start is not None:
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
        """Pixels (B, 3, H, W), R prompts each, the patches to keep (B, K), None for all, and with a glimpse the prompts'
        windows -> image (B, D) and region embeddings (B, R, D), not normalised."""
        tokens = trunk.embed(images, keep)
        cover = None if self.coverage is None else self.coverage(prompts, keep).to(tokens.dtype)
        start = self._start(prompts, tokens)
        glimpse, glimpse_cover = None, None
        if self.glimpse is not None:
            assert windows is not None
            glimpse, glimpse_cover = self.glimpse(trunk, prompts, windows)
        run = self._through_blocks if trunk.pool is None else self._through_pool
        features = trunk.head(run(trunk, tokens, start, cover, glimpse, glimpse_cover))
        return features[:, 0], features[:, 1:]

    def _start(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """What the prompts add to CLS or to the pooling query (B, R, width)."""
        start = tokens.new_zeros(prompts.batch_size, prompts.regions, tokens.shape[-1])
        if self.start is not None and self.encoder is not None:
            start = start + self.start(self.encoder(prompts).pooled).to(tokens.dtype)
        if self.place is not None:
            start = start + self.place(extents(prompts)).to(tokens.dtype)
        return start

    def _through_blocks(
        self,
        trunk: Trunk,
        tokens: Tensor,
        start: Tensor,
        cover: Tensor | None,
        glimpse: Tensor | None,
        glimpse_cover: Tensor | None,
    ) -> Tensor:
        """(B, 1 + R, width): CLS and the region tokens from the last block."""
        save, count = self.saves, tokens.shape[1]
        tokens = torch.cat([tokens, tokens[:, :1] + start], dim=1)
        for number, (layer, block) in enumerate(zip(self.layers, trunk.blocks, strict=True)):
            last, last_look = number == len(self.layers) - 1, number == self.depths[-1]
            tokens, glimpse = saved_or_repeated(
                save, layer, block, tokens, count, cover, last, glimpse, glimpse_cover, last_look
            )
        return tokens

    def _through_pool(
        self,
        trunk: Trunk,
        tokens: Tensor,
        start: Tensor,
        cover: Tensor | None,
        glimpse: Tensor | None,
        glimpse_cover: Tensor | None,
    ) -> Tensor:
        """(B, 1 + R, width): what the pool makes of the image and of each region."""
        save = self.saves
        patches = trunk.norm(trunk.run(tokens, save=save))
        if glimpse is not None:
            glimpse = trunk.norm(trunk.run(glimpse, save=save))
        pooled: Tensor = saved_or_repeated(
            save, self.layers[0], trunk.pool, patches, start, cover, glimpse, glimpse_cover
        )
        return pooled


def _depths(trunk: Trunk, asked: Sequence[int] | None) -> list[int]:
    """The layers in which prompts come in, ascending: blocks, or the pool alone."""
    if trunk.pool is not None:
        if asked is not None:
            raise MedpclipError(
                "key 'fusion.depths' is set, but this trunk's prompts come in at its attention pool; set it to null"
            )
        return [0]
    layers = len(trunk.blocks)
    depths = sorted(set(range(layers) if asked is None else asked))
    if not depths or depths[0] < 0 or depths[-1] >= layers:
        raise MedpclipError(f"key 'fusion.depths' is {depths}, expected block numbers from 0 to {layers - 1}")
    return depths


def _onward(block: Block, tokens: Tensor, mixed: Tensor) -> Tensor:
    """Tokens (B, n, width) and their heads' outputs (B, heads, n, width / heads) -> the tokens behind the block."""
    tokens = tokens + block.out(mixed.transpose(1, 2).flatten(2))
    return tokens + block.feed(tokens)
