"""Noise fields and coordinate grids, cheap enough for a hundred images a second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from medpclip.data.phantom.ranges import REFERENCE_SIDE

Array = np.ndarray


@dataclass(frozen=True)
class Frame:
    """An image's size in pixels."""

    width: int
    height: int

    @property
    def long(self) -> int:
        return max(self.width, self.height)

    @property
    def unit(self) -> float:
        """Pixels of this image per reference pixel."""
        return self.long / REFERENCE_SIDE

    def grid(self) -> tuple[Array, Array]:
        """Pixel centres x (1, width) and y (height, 1), float32."""
        x = np.arange(self.width, dtype=np.float32)[None, :] + 0.5
        y = np.arange(self.height, dtype=np.float32)[:, None] + 0.5
        return x, y


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, cell_y: float, cell_x: float | None = None
) -> Array:
    """Random hills about one unit high, float32 (height, width), from a coarse grid enlarged by bicubic interpolation.

    `cell_y` and `cell_x` (the same by default) are the grid's spacing in pixels; a hill and a valley span two cells.
    """
    cell_x = cell_y if cell_x is None else cell_x
    rows, columns = int(np.ceil(height / cell_y)) + 3, int(np.ceil(width / cell_x)) + 3
    grid = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    # A random offset, so that grid lines don't lie at the same pixels in every image.
    top, left = 1.0 + rng.random(), 1.0 + rng.random()
    box = (left, top, left + width / cell_x, top + height / cell_y)
    box = (box[0], box[1], min(box[2], columns), min(box[3], rows))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC, box=box))


def blur_plane(plane: Array, sigma: float) -> Array:
    """Gaussian blur of a float32 (height, width) array of values in 0..1, in 8 bits."""
    picture = Image.fromarray((np.clip(plane, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(sigma)), dtype=np.float32) / 255.0


def soft_step(values: Array, width: float) -> Array:
    """0 below -width/2, 1 above width/2, linear between: an edge without jaggies."""
    return np.clip(values / width + 0.5, 0.0, 1.0)


def ellipse(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float, power: float = 2.0) -> Array:
    """Signed distance-like field of a (super)ellipse in pixels: positive inside, 0 on the outline."""
    u, v = np.abs((x - cx) / rx), np.abs((y - cy) / ry)
    norm = np.sqrt(u * u + v * v) if power == 2.0 else (u**power + v**power) ** (1.0 / power)
    return (1.0 - norm) * min(rx, ry)
