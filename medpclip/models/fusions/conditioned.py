"""Conditioned fusion: the prompt is written into the patch features themselves (our design).

Gated cross-attention blocks at chosen depths let all tokens of the image look at the prompt's tokens, and add the
prompt's coverage to the patches. One pass per prompt above the first such block, so R prompts cost up to R forwards;
needed where the consumer reads patches. The gates are zero at first: a conditioned pass then is the plain pass.
MedP-CLIP (arXiv 2604.11197) states prompts that are integrated at feature level by attention; depths and gates are not
public, these are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.errors import MedpclipError
from medpclip.models.fusions.interface import Fusion
from medpclip.models.prompt_encoder import CHANNELS, Coverage, PromptEncoder
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Trunk, saved_or_repeated


class GatedCrossAttention(nn.Module):
    """x + tanh(g) * attention(x -> prompt tokens), and + tanh(h) * projected coverage on the patches."""

    def __init__(self, width: int, heads: int, prompt_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.prompt_norm = nn.LayerNorm(prompt_dim)
        self.attention = nn.MultiheadAttention(width, heads, kdim=prompt_dim, vdim=prompt_dim, batch_first=True)
        self.dense = nn.Linear(len(CHANNELS), width, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))
        self.dense_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, tokens: Tensor, valid: Tensor, cover: Tensor) -> Tensor:
        """x (M, 1 + N, width), tokens (M, T, prompt_dim) with valid (M, T), cover (M, N, channels)."""
        prompt = self.prompt_norm(tokens)
        said, _ = self.attention(self.norm(x), prompt, prompt, key_padding_mask=~valid, need_weights=False)
        x = x + self.gate.tanh() * said
        patches = x[:, 1:] + self.dense_gate.tanh() * self.dense(cover)
        return torch.cat([x[:, :1], patches], dim=1)


class ConditionedFusion(Fusion):
    """Args:
    trunk: only its sizes are read here.
    depths: before which blocks (0-based) the prompt is written in; by default a quarter, a half and three quarters up.
    prompt_dim: width of the prompt encoder.

    Raises:
        MedpclipError: depths beyond the trunk's, or a trunk without CLS.
    """

    def __init__(self, trunk: Trunk, depths: Sequence[int] | None = None, prompt_dim: int = 256) -> None:
        super().__init__()
        if trunk.pool is not None:
            raise MedpclipError(
                "key 'fusion.kind' is 'conditioned', but this trunk pools by attention; choose 'region_tokens'"
            )
        layers = len(trunk.blocks)
        self.depths = sorted(set(depths)) if depths is not None else sorted({layers // 4, layers // 2, 3 * layers // 4})
        if not self.depths or self.depths[0] < 0 or self.depths[-1] >= layers:
            raise MedpclipError(
                f"key 'fusion.depths' is {list(self.depths)}, expected block numbers from 0 to {layers - 1}"
            )
        self.encoder = PromptEncoder(prompt_dim)
        self.coverage = Coverage(trunk.grid)
        self.blocks = nn.ModuleList(
            GatedCrossAttention(trunk.width, trunk.blocks[0].heads, prompt_dim) for _ in self.depths
        )

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
        shared = self._shared(trunk, images, keep)
        image = trunk.embeddings(shared, self.depths[0], self.saves)
        written = self._written(trunk, shared, prompts, keep)
        region = trunk.embeddings(written, self.depths[-1], self.saves)
        return image, region.unflatten(0, (prompts.batch_size, prompts.regions))

    def patches(self, trunk: Trunk, images: Tensor, prompts: Prompts) -> Tensor:
        """Prompt-conditioned patch features (B, R, N, width) from the last block, not normalised."""
        written = self._written(trunk, self._shared(trunk, images), prompts)
        tokens = trunk.run(written, self.depths[-1], save=self.saves)
        return tokens[:, trunk.prefix :].unflatten(0, (prompts.batch_size, prompts.regions))

    def _shared(self, trunk: Trunk, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """The part below the first fusion, which no prompt touches: once per image."""
        return trunk.run(trunk.embed(images, keep), 0, self.depths[0], self.saves)

    def _written(self, trunk: Trunk, shared: Tensor, prompts: Prompts, keep: Tensor | None = None) -> Tensor:
        """What enters the block before which prompts are written in for the last time (B * R, 1 + N, width)."""
        sparse = self.encoder(prompts)
        # The pooled prompt is a token too, and always there, so that padding leaves softmax something to look at.
        tokens = torch.cat([sparse.pooled.unsqueeze(2), sparse.tokens], dim=2).flatten(0, 1)
        valid = F.pad(sparse.valid, (1, 0), value=True).flatten(0, 1)
        cover = self.coverage(prompts, keep).flatten(0, 1).transpose(1, 2).to(shared.dtype)
        x = shared.repeat_interleave(prompts.regions, dim=0)
        for block, before, depth in zip(self.blocks, [self.depths[0], *self.depths], self.depths, strict=False):
            x = trunk.run(x, before, depth, self.saves)
            x = saved_or_repeated(self.saves, block, x, tokens, valid, cover)
        return x
