"""The prompt is put into the pixels: the surroundings are washed out, or a line is drawn around the region.

One pass of the trunk for each marked copy of the image. A prompt that says nothing leaves the image as it is, or draws
the line around all of it.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from medpclip.models.fusions.interface import Fusion
from medpclip.models.fusions.regions import extents, visibility
from medpclip.models.preprocess import Preprocess
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Trunk


class Marked(Fusion):
    """A pass for each marked copy of the image."""

    def forward(
        self,
        trunk: Trunk,
        images: Tensor,
        prompts: Prompts,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> tuple[Tensor, Tensor]:
        copies = self.mark(trunk, images, prompts).flatten(0, 1)
        kept = None if keep is None else keep.repeat_interleave(prompts.regions, 0)
        region = self.whole(trunk, copies, kept).unflatten(0, (prompts.batch_size, prompts.regions))
        return self.whole(trunk, images, keep), region

    @abstractmethod
    def mark(self, trunk: Trunk, images: Tensor, prompts: Prompts) -> Tensor:
        """Pixels (B, 3, S, S) -> a marked copy for each of R prompts (B, R, 3, S, S)."""


class _Outside(Marked):
    """What lies outside of the region gives way to something else; softly, where the region's edge is soft."""

    @abstractmethod
    def instead(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) -> what is shown outside, the same shape."""

    def mark(self, trunk: Trunk, images: Tensor, prompts: Prompts) -> Tensor:
        height, width = images.shape[-2:]
        inside = visibility(prompts, height, width, click_radius=1 / trunk.grid[0]).unsqueeze(2).to(images.dtype)
        outside = self.instead(images)
        return outside.unsqueeze(1) + (images - outside).unsqueeze(1) * inside


class Blurred(_Outside):
    """The surroundings are blurred, as Yang et al. 2023 find best (Fine-Grained Visual Prompting, arXiv 2306.04356,
    section 3); by a Gaussian of a sixteenth of the image's side, which is our choice."""

    def instead(self, images: Tensor) -> Tensor:
        across, down = (self._smoothing(side, images) for side in (images.shape[-1], images.shape[-2]))
        return down @ images @ across.T

    def _smoothing(self, side: int, images: Tensor) -> Tensor:
        """(side, side): each row the weights of one pixel's neighbours; near the edge those that are there."""
        place = torch.arange(side, device=images.device, dtype=torch.float32)
        return (-0.5 * ((place[:, None] - place) / (side / 16)).square()).softmax(-1).to(images.dtype)


class Greyed(_Outside):
    """The surroundings take the mean colour that pixels are normalised by."""

    def instead(self, images: Tensor) -> Tensor:
        return torch.zeros_like(images)


class _Drawn(Marked):
    """A red line just outside of the extent; within the image, where the extent reaches its edge.

    Args:
        preprocess: says what red is in normalised pixels.
    """

    thickness = 1 / 64  # of the image's side

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        red = (1.0, 0.0, 0.0)
        self.colour = [(c - mean) / std for c, mean, std in zip(red, preprocess.mean, preprocess.std, strict=True)]

    @abstractmethod
    def within(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances from the middle (B, R, 1, S) and (B, R, S, 1), as shares of the extent's halves -> bool (B, R, S, S)."""

    def mark(self, trunk: Trunk, images: Tensor, prompts: Prompts) -> Tensor:
        line = self.thickness
        extent = extents(prompts).clamp(line, 1 - line)
        middle, half = (extent[..., :2] + extent[..., 2:]) / 2, (extent[..., 2:] - extent[..., :2]) / 2
        height, width = images.shape[-2:]
        x = (torch.arange(width, device=images.device) + 0.5) / width - middle[..., 0, None, None]
        y = (torch.arange(height, device=images.device)[:, None] + 0.5) / height - middle[..., 1, None, None]
        inner, outer = (
            self.within(x / side[..., 0, None, None], y / side[..., 1, None, None])
            for side in (half.clamp(min=1e-6), half + line)
        )
        colour = torch.tensor(self.colour, device=images.device, dtype=images.dtype)[:, None, None]
        return torch.where((outer & ~inner).unsqueeze(2), colour, images.unsqueeze(1))


class DrawnCircle(_Drawn):
    """A red ellipse (Shtedritski et al. 2023, arXiv 2304.06712, section 3), the one that fits into the extent."""

    def within(self, x: Tensor, y: Tensor) -> Tensor:
        return x.square() + y.square() <= 1


class DrawnBox(_Drawn):
    """A red rectangle."""

    def within(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.abs() <= 1) & (y.abs() <= 1)
