"""Prompts as tokens (what and where, sparse) and as coverage of the patches (where, dense).

The vocabulary of points, box corners and masks with Fourier positions and learned type embeddings is Segment
Anything's (Kirillov et al. 2023, section 3 and appendix A); the frequencies, the mask summary and the coverage channels
are our design.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.models.prompts import NEGATIVE, POSITIVE, Prompts

# Coverage channels. Areas come twice: the exact share of the patch, and the same divided by the region's largest share,
# so that a region smaller than a patch still stands out.
CHANNELS = ("mask", "mask_normalised", "box", "box_normalised", "positive", "negative")


_OUTLINE = 8


class SparsePrompts(NamedTuple):
    """Attributes:
    tokens: (B, R, T, dim): the P points, the two box corners, the mask's summary.
    valid: (B, R, T) bool.
    pooled: (B, R, dim): one vector per prompt.
    """

    tokens: Tensor
    valid: Tensor
    pooled: Tensor


class PromptEncoder(nn.Module):
    """Sparse tokens and a pooled embedding for each prompt.

    Args:
        dim: width of the tokens.
        octaves: number of Fourier frequencies per axis, from half a period over the image upwards by factors of 2.
    """

    def __init__(self, dim: int = 256, octaves: int = 6) -> None:
        super().__init__()
        self.octaves = octaves
        features = 2 + 4 * octaves
        self.point_position = nn.Linear(features, dim)
        self.corner_position = nn.Linear(features, dim)
        self.mask_position = nn.Linear(features + 1, dim)
        self.point_type = nn.Parameter(torch.randn(2, dim) * 0.5)  # row 0 off the region, row 1 on it
        self.corner_type = nn.Parameter(torch.randn(2, dim) * 0.5)  # top left, bottom right
        self.mask_outline = nn.Linear(_OUTLINE**2, dim)
        self.mask_type = nn.Parameter(torch.randn(dim) * 0.5)
        self.pool = nn.Sequential(nn.LayerNorm(3 * dim), nn.Linear(3 * dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, prompts: Prompts) -> SparsePrompts:
        points = self._points(prompts)
        point_valid = prompts.point_labels >= 0
        dtype = self.mask_type.dtype  # coordinates keep theirs up to here: bfloat16 has no room for pixels
        corners = self.corner_position(self.fourier(prompts.boxes.unflatten(-1, (2, 2))).to(dtype)) + self.corner_type
        shape = self.mask_outline(mask_outline(prompts.masks, _OUTLINE).flatten(2).to(dtype))
        mask = (self.mask_position(self._mask_summary(prompts.masks).to(dtype)) + shape + self.mask_type).unsqueeze(2)
        box_valid, mask_valid = prompts.box_valid.unsqueeze(-1), prompts.mask_valid.unsqueeze(-1)
        tokens = torch.cat([points, corners, mask], dim=2)
        valid = torch.cat([point_valid, box_valid.expand(-1, -1, 2), mask_valid], dim=2)
        tokens = tokens * valid.unsqueeze(-1)
        count = points.shape[2]
        # Points have no order, so they are averaged; the two corners have types, so their sum keeps both.
        pooled_points = tokens[:, :, :count].sum(2) / point_valid.sum(2, keepdim=True).clamp(min=1)
        pooled = self.pool(torch.cat([pooled_points, tokens[:, :, count : count + 2].sum(2), tokens[:, :, -1]], dim=-1))
        return SparsePrompts(tokens, valid, pooled)

    def fourier(self, coordinates: Tensor) -> Tensor:
        """Coordinates in [0, 1] (..., 2) -> (..., 2 + 4 * octaves)."""
        # Computed, not a buffer: one would be rounded with the weights where these are bfloat16.
        octaves = torch.arange(self.octaves, device=coordinates.device, dtype=coordinates.dtype)
        angles = (coordinates.unsqueeze(-1) * (math.pi * octaves.exp2())).flatten(-2)
        return torch.cat([coordinates * 2 - 1, angles.sin(), angles.cos()], dim=-1)

    def _points(self, prompts: Prompts) -> Tensor:
        types = self.point_type[prompts.point_labels.clamp(min=0)]
        return self.point_position(self.fourier(prompts.points).to(types.dtype)) + types

    def _mask_summary(self, masks: Tensor) -> Tensor:
        """Mean Fourier features over the covered area (place, extent and, coarsely, shape), and the log of the area."""
        height, width = masks.shape[-2:]
        rows = (torch.arange(height, device=masks.device, dtype=masks.dtype) + 0.5) / height
        columns = (torch.arange(width, device=masks.device, dtype=masks.dtype) + 0.5) / width
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)
        flat = masks.flatten(2)
        area = flat.sum(-1, keepdim=True)
        mean = (flat @ self.fourier(cells)) / area.clamp(min=1e-6)
        return torch.cat([mean, (area / flat.shape[-1] + 1e-4).log() / 4], dim=-1)


class Coverage(nn.Module):
    """How much of each patch each prompt covers: (B, R, 6, N), channels as in `CHANNELS`, absent kinds 0.

    Args:
        grid: (rows, columns) of the patch grid; N = rows * columns.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        # A click speaks for about a patch at first; how far it really reaches is learned, apart for + and -.
        self.log_sigma = nn.Parameter(torch.zeros(2))

    def forward(self, prompts: Prompts, keep: Tensor | None = None) -> Tensor:
        """All patches' coverage, or (B, R, 6, K) that of the patches `keep` (B, K)."""
        mask = self._mask_share(prompts.masks) * prompts.mask_valid[:, :, None]
        box = self._box_share(prompts.boxes) * prompts.box_valid[:, :, None]
        positive = self._clicks(prompts, POSITIVE)
        negative = self._clicks(prompts, NEGATIVE)
        cover = torch.stack([mask, _normalised(mask), box, _normalised(box), positive, negative], dim=2)
        return cover if keep is None else cover.gather(-1, keep[:, None, None].expand(*cover.shape[:3], -1))

    def _mask_share(self, masks: Tensor) -> Tensor:
        rows, columns = self.grid
        height, width = masks.shape[-2:]
        if height % rows or width % columns:
            raise ValueError(
                f"prompts.masks are {height}x{width}, expected multiples of the {rows}x{columns} patch grid"
            )
        return F.avg_pool2d(masks, (height // rows, width // columns)).flatten(2)

    def _box_share(self, boxes: Tensor) -> Tensor:
        rows, columns = self.grid
        x = overlap(boxes[..., 0], boxes[..., 2], columns)
        y = overlap(boxes[..., 1], boxes[..., 3], rows)
        return (y.unsqueeze(-1) * x.unsqueeze(-2)).flatten(2)

    def _clicks(self, prompts: Prompts, label: int) -> Tensor:
        rows, columns = self.grid
        scale = torch.tensor([columns, rows], device=prompts.points.device, dtype=prompts.points.dtype)
        points = prompts.points * scale
        x = torch.arange(columns, device=points.device) + 0.5
        y = torch.arange(rows, device=points.device) + 0.5
        square = (points[..., 0, None, None] - x).square() + (points[..., 1, None, None] - y[:, None]).square()
        exponent = -0.5 * square * torch.exp(-2 * self.log_sigma[label])
        given = (prompts.point_labels == label)[..., None, None]
        return (exponent.exp() * given).amax(2).flatten(2)


def mask_outline(masks: Tensor, size: int) -> Tensor:
    """What shape masks have, whatever their place and size: (B, R, h, w) -> (B, R, size, size), their own box resampled."""
    height, width = masks.shape[-2:]
    top, bottom = covered_span((masks > 0).any(-1))
    left, right = covered_span((masks > 0).any(-2))
    steps = (torch.arange(size, device=masks.device, dtype=masks.dtype) + 0.5) / size
    y = (top[..., None] + (bottom - top)[..., None] * steps) * 2 / height - 1
    x = (left[..., None] + (right - left)[..., None] * steps) * 2 / width - 1
    grid = torch.stack([x[..., None, :].expand(*x.shape[:2], size, size), y[..., None].expand(*y.shape, size)], dim=-1)
    sampled = F.grid_sample(masks.flatten(0, 1).unsqueeze(1), grid.flatten(0, 1), align_corners=False)
    return sampled.squeeze(1).unflatten(0, masks.shape[:2])


def covered_span(covered: Tensor) -> tuple[Tensor, Tensor]:
    """Bool (..., n) -> the first covered cell and one past the last, float (...); 0 and 0 where none is."""
    first = covered.int().argmax(-1)
    last = covered.shape[-1] - covered.flip(-1).int().argmax(-1)
    some = covered.any(-1)
    return (first * some).float(), (last * some).float()


def overlap(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(...,) intervals in [0, 1] -> (..., cells): covered share of each of `cells` equal cells."""
    edges = torch.arange(cells + 1, device=low.device, dtype=low.dtype) / cells
    return ((torch.minimum(high[..., None], edges[1:]) - torch.maximum(low[..., None], edges[:-1])) * cells).clamp(0, 1)


def _normalised(share: Tensor) -> Tensor:
    return share / share.amax(-1, keepdim=True).clamp(min=1e-6)
