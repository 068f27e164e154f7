"""The image's patches, averaged over the region: all regions from one plain pass.

Patches are those of the last block, each on its own through the image's head. What regions differ in are the patches'
weights.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from medpclip.models.fusions.interface import Fusion
from medpclip.models.fusions.regions import extents, shares
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Trunk

_SAMPLES = 14


class Pooled(Fusion):
    """Weighted means of patches. Where no patch with a weight is left, all that are count the same."""

    def forward(
        self,
        trunk: Trunk,
        images: Tensor,
        prompts: Prompts,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> tuple[Tensor, Tensor]:
        tokens = trunk.run(trunk.embed(images, keep), save=self.saves)
        weights = self.weights(trunk.grid, prompts)
        if keep is not None:
            weights = weights.gather(-1, keep[:, None].expand(-1, prompts.regions, -1))
        total = weights.sum(-1, keepdim=True)
        weights = torch.where(total > 0, weights / total, 1 / weights.shape[-1])
        return trunk.pooled(tokens), weights.to(tokens.dtype) @ trunk.patches(tokens)

    @abstractmethod
    def weights(self, grid: tuple[int, int], prompts: Prompts) -> Tensor:
        """(B, R, N), at least 0: how much each patch of the grid (rows, columns) counts; of any sum."""


class MaskPooling(Pooled):
    """The weight of a patch is the share of it that the mask covers; else the box; else a Gaussian of a patch around each
    positive click. A region smaller than a patch keeps its fractional share."""

    def weights(self, grid: tuple[int, int], prompts: Prompts) -> Tensor:
        return shares(prompts, *grid, click_radius=1 / grid[0]).flatten(2)


class RoIAlign(Pooled):
    """RoIAlign over the extent, averaged (He et al. 2017, Mask R-CNN, section 3): the patches are interpolated bilinearly at
    14 x 14 regular places, as 7 x 7 bins of 2 x 2 samples have. That is linear in the patches, so their weights will do."""

    def weights(self, grid: tuple[int, int], prompts: Prompts) -> Tensor:
        x1, y1, x2, y2 = extents(prompts).unbind(-1)
        down, across = _interpolation(y1, y2, grid[0]), _interpolation(x1, x2, grid[1])
        return (down[..., :, None] * across[..., None, :]).flatten(2)


def _interpolation(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Intervals (...,) in [0, 1] -> (..., cells): the mean weight of each of `cells` equal cells, whose values stand for
    their middles, in linear interpolations at regular places of the interval."""
    steps = (torch.arange(_SAMPLES, device=low.device) + 0.5) / _SAMPLES
    places = (low[..., None] + (high - low)[..., None] * steps) * cells - 0.5
    apart = places.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=low.device)
    return (1 - apart.abs()).clamp(min=0).mean(-2)
