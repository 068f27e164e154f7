"""From an 8-bit picture to the trunk's pixels: pad to square, resize, normalise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medpclip.data.loading.geometry import Window, fill_colour
from medpclip.data.loading.windows import CutWindows
from medpclip.models.prompts import Windows


@dataclass(frozen=True)
class Preprocess:
    """How images become pixels.

    Attributes:
        image_size: the trunk's input side, in pixels.
        mean, std: of RGB in [0, 1], as the trunk was trained with.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def fill(self) -> tuple[int, ...]:
        """Colour of the padding, 8 bits."""
        return fill_colour(self.mean)

    def pad_resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) -> uint8 (image_size, image_size, 3)."""
        height, width = image.shape[:2]
        return Window.whole(width, height).image(image, self.image_size, self.fill)

    def to_pixels(self, images: torch.Tensor, colours: torch.Tensor | None = None) -> torch.Tensor:
        """uint8 (B, image_size, image_size, 3) -> normalised float32 (B, 3, image_size, image_size), same device.

        Args:
            colours: float32 (B, 2): first, each image becomes (image - 128) * gain + 128 + offset, clipped to 0 to 255.
        """
        mean = torch.tensor(self.mean, device=images.device) * 255.0
        scale = 1.0 / (torch.tensor(self.std, device=images.device) * 255.0)
        # Bytes are turned into planes faster than floats; the floats are ours to change in place.
        pixels = images.permute(0, 3, 1, 2).contiguous().float()
        if colours is not None:
            gain, offset = colours.to(images.device)[:, :, None, None, None].unbind(1)
            pixels.sub_(128.0).mul_(gain).add_(128.0 + offset).clamp_(0.0, 255.0)
        return pixels.sub_(mean[:, None, None]).mul_(scale[:, None, None])

    def to_windows(self, cut: CutWindows, colours: torch.Tensor | None = None) -> Windows:
        """The same for regions' windows: uint8 (B, R, s, s, 3) -> `Windows`, each in its image's colours."""
        count, regions = cut.pixels.shape[:2]
        spread = None if colours is None else colours.repeat_interleave(regions, 0)
        pixels = self.to_pixels(cut.pixels.flatten(0, 1), spread)
        return Windows(pixels.unflatten(0, (count, regions)), cut.rects)
