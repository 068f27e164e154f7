"""Which patches training leaves out.

FLIP (Li et al. 2023, arXiv 2212.00794) drops patches at random, which makes steps cheaper. Here patches under regions stay
first, since the region's answer has to be read off them (our design).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medpclip.models.prompt_encoder import Coverage
from medpclip.models.prompts import Prompts


def kept_count(grid: tuple[int, int], drop: float) -> int:
    """K: how many patches of a (rows, columns) grid stay if a share `drop` is left out; at least 1."""
    return max(1, round((1 - drop) * grid[0] * grid[1]))


def kept_patches(prompts: Prompts, grid: tuple[int, int], drop: float, seeds: Sequence[tuple[int, ...]]) -> Tensor:
    """(B, K) int64, ascending: the `kept_count` patches that stay, row by row of the grid.

    Patches that a mask or a box covers in part, or a click lies near, go before all others; among equals the draw decides.
    Where regions cover more than K patches, some of theirs are dropped too.

    Args:
        prompts: of B images.
        grid: (rows, columns) of patches.
        drop: share of the patches to leave out.
        seeds: of each image's draw.
    """
    count = grid[0] * grid[1]
    with torch.no_grad():
        cover = Coverage(grid)(prompts)[:, :, [0, 2, 4]]  # mask, box, positive clicks
        # exp(-1/2): a click's own patch and those that it nearly touches.
        covered = (cover > cover.new_tensor([0.0, 0.0, 0.6])[:, None]).any(2).any(1)
    draws = torch.from_numpy(np.stack([np.random.default_rng(seed).random(count) for seed in seeds]))
    return (covered + draws).topk(kept_count(grid, drop), dim=1).indices.sort(1).values
