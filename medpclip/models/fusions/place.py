"""Where a region lies and how large it is, straight into a trunk's tokens (our design).

A prompt encoder has to learn to hand these on through its layers. A linear map of Fourier features has them from the
first step, and in the few hundred steps of a small run that makes much of the difference (docs/results.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_OCTAVES = 6  # frequencies per axis, from half a period over the image upwards by factors of 2
_SMALLEST = 1e-3  # of the image's side: what is smaller isn't told apart


class Place(nn.Module):
    """Middles and sides of rectangles as vectors, all zero at first.

    Args:
        width: of the trunk's tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4 + 4 * _OCTAVES, width, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, rects: Tensor) -> Tensor:
        """x1 y1 x2 y2 in the image's unit coordinates, also beyond 0 to 1, (B, R, 4) -> (B, R, width). Empty rectangles
        are taken as of side 1."""
        vector: Tensor = self.linear(_features(rects).to(self.linear.weight.dtype))
        return vector


def corner_and_side(rects: Tensor) -> tuple[Tensor, Tensor]:
    """(B, R, 4) -> top left corners and sides (B, R, 2), an empty rectangle's sides being 1."""
    corner, side = rects[..., :2], rects[..., 2:] - rects[..., :2]
    return corner, torch.where(side > 0, side, 1.0)


def _features(rects: Tensor) -> Tensor:
    """(B, R, 4) -> Fourier features of the middles and the logarithms of the sides (B, R, 4 + 4 * octaves)."""
    corner, side = corner_and_side(rects)
    middle = corner + side / 2
    octaves = torch.arange(_OCTAVES, device=rects.device, dtype=rects.dtype).exp2()
    angles = (middle.unsqueeze(-1) * (math.pi * octaves)).flatten(-2)
    return torch.cat([middle * 2 - 1, angles.sin(), angles.cos(), side.clamp(min=_SMALLEST).log() / 2], dim=-1)
