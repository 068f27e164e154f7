"""What a region looks like at the picture's own resolution: a square cut around its prompt.

The square depends on the prompt as it is given, not on the annotation behind it: its middle and extent are those of the
mask, else of the box, else of the positive clicks. It is cut from the picture as it was decoded, turned and mirrored as
the image's window is, and filled like padding where it reaches beyond the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowSpec:
    """Which square of the picture a model wants for each region.

    Attributes:
        size: pixels to which it is resized, each way.
        context: its side as a multiple of the prompt's longer extent.
        click_side: its side where clicks are all there is, as a share of the image window's side.
    """

    size: int
    context: float = 1.25
    click_side: float = 0.25


@dataclass
class CutWindows:
    """The squares of R regions of each of B images.

    Attributes:
        pixels: (B, R, size, size, 3) uint8; the padding's colour where there is no region.
        rects: (B, R, 4) float32: x1 y1 x2 y2 in unit coordinates of the image's window, as the region lies in it (turned and
            mirrored with it); may reach beyond 0 to 1. All zeros where there is no region.
    """

    pixels: Tensor
    rects: Tensor

    def to(self, device: torch.device | str) -> CutWindows:
        return CutWindows(self.pixels.to(device, non_blocking=True), self.rects.to(device, non_blocking=True))
