"""What fusions need of an image tower. Adapters hold no parameters: they say where the tower keeps its pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


class Block(ABC):
    """One pre-norm transformer block: x + out(attention(qkv(x))), then x + feed(x).

    Attributes:
        module: the block itself.
        heads: its number of attention heads.
    """

    heads: int

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @abstractmethod
    def qkv(self, x: Tensor) -> Tensor:
        """Tokens (..., width), normed here -> queries, keys and values side by side (..., 3 * width)."""

    @abstractmethod
    def out(self, mixed: Tensor) -> Tensor:
        """Heads' outputs side by side (..., width) -> what the attention adds to its tokens, layer scale included."""

    @abstractmethod
    def feed(self, x: Tensor) -> Tensor:
        """What the MLP adds to tokens (..., width): norm, MLP and layer scale."""

    def first(self, x: Tensor) -> Tensor:
        """Tokens (M, tokens, width) -> what becomes of the first alone (M, width), which looks at all."""
        q, k, v = split_heads(self.qkv(x), self.heads, 3)
        seen = F.scaled_dot_product_attention(q[:, :, :1], k, v).transpose(1, 2).flatten(2)
        token = x[:, :1] + self.out(seen)
        return (token + self.feed(token))[:, 0]


class Pool(ABC):
    """A head that pools by attention: learned queries over all patches.

    Attributes:
        heads: number of attention heads.
    """

    heads: int

    @abstractmethod
    def query(self) -> Tensor:
        """The one pooling query (1, 1, width), as it is learned."""

    @abstractmethod
    def q(self, query: Tensor) -> Tensor:
        """Queries (..., width) -> projected (..., width)."""

    @abstractmethod
    def kv(self, patches: Tensor) -> Tensor:
        """Patches (..., width) -> keys and values side by side (..., 2 * width)."""

    @abstractmethod
    def out(self, mixed: Tensor) -> Tensor:
        """Heads' outputs side by side (..., width) -> the pooled features (..., width), MLP included."""


class Trunk(ABC):
    """An image tower made of `embed`, `blocks`, and either a CLS token or an attention pool before `head`.

    Attributes:
        visual: the tower, an open_clip module.
        width: of its tokens.
        output_dim: D, the width of the shared space.
        grid: (rows, columns) of patches.
        patch: side of a patch in pixels.
        blocks: from the first to the last.
        prefix: tokens before the patches: 1 (CLS) or 0.
        pool: the attention pool, of a tower without CLS.
    """

    width: int
    output_dim: int
    grid: tuple[int, int]
    patch: int
    blocks: Sequence[Block]
    prefix: int = 1
    pool: Pool | None = None

    def __init__(self, visual: nn.Module) -> None:
        self.visual = visual

    @abstractmethod
    def embed(self, images: Tensor, keep: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """Pixels (B, 3, S, S) -> the tokens that enter the first block (B, prefix + N, width), CLS first.

        Args:
            images: pixels.
            keep: (B, K) int64, ascending numbers of the patches that stay, row by row; None for all of them.
            added: (B, N, width), what the patches start with besides their pixels and places; None for nothing.
        """

    @abstractmethod
    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Squares of g x g patches, whatever the grid -> their patches as `embed` makes them, without CLS.

        Positions are the grid's, spread over the square: it is embedded as a small picture of its own.

        Args:
            pixels: (M, 3, g * patch, g * patch).

        Returns:
            (M, g * g, width), row by row.
        """

    @abstractmethod
    def head(self, features: Tensor) -> Tensor:
        """CLS tokens from the last block, or pooled features (..., width) -> the shared space (..., D), not normalised."""

    def norm(self, tokens: Tensor) -> Tensor:
        """What stands between the last block and the attention pool."""
        raise NotImplementedError

    def run(self, tokens: Tensor, start: int = 0, stop: int | None = None, save: bool = True) -> Tensor:
        """Tokens through the blocks from `start` to before `stop`, as the tower itself runs them.

        Args:
            tokens: (M, tokens, width).
            start: the first block, 0-based.
            stop: one past the last; None for all.
            save: keep the activations inside blocks for the backward pass; else they are computed again.
        """
        for block in self.blocks[start:stop]:
            tokens = saved_or_repeated(save, block.module, tokens)
        return tokens

    def embeddings(self, tokens: Tensor, start: int = 0, save: bool = True) -> Tensor:
        """Tokens (M, tokens, width) before block `start` -> image embeddings (M, D), not normalised.

        Behind the last block nobody reads the patches, so a tower with CLS works out nothing but CLS there.
        """
        if self.pool is not None:
            return self.pooled(self.run(tokens, start, save=save))
        tokens = self.run(tokens, start, len(self.blocks) - 1, save)
        return self.head(saved_or_repeated(save, self.blocks[-1].first, tokens))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Tokens (B, tokens, width) from the last block -> image embeddings (B, D), not normalised."""
        return self.head(tokens[:, 0])

    def patches(self, tokens: Tensor) -> Tensor:
        """Tokens from the last block -> each patch on its own through the head (B, N, D), not normalised."""
        return self.head(tokens[:, self.prefix :])


def split_heads(projected: Tensor, heads: int, parts: int) -> list[Tensor]:
    """(B, tokens, parts * width), side by side -> `parts` tensors (B, heads, tokens, width / heads)."""
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in projected.chunk(parts, dim=-1)]


def keep_patches(tokens: Tensor, keep: Tensor | None, prefix: int) -> Tensor:
    """Tokens (B, prefix + N, width) -> the prefix and the patches `keep` (B, K) of each image (B, prefix + K, width)."""
    if keep is None:
        return tokens
    rows = keep + prefix
    if prefix:
        rows = nn.functional.pad(rows, (prefix, 0))
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def saved_or_repeated(save: bool, function: Callable[..., T], *inputs: Any) -> T:
    """`function(*inputs)`; without `save` its activations are dropped, and computed again in the backward pass."""
    if save:
        return function(*inputs)
    result: T = checkpoint(function, *inputs, use_reentrant=False)
    return result
