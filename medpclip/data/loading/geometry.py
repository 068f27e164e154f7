"""One geometry for an image and everything that lies on it.

A `Window` is a square of the source image, in whole pixels; it may reach beyond the image, where it is filled with a
colour. The image, its boxes, masks and points all go through the same window, so they cannot come apart. The default
window is the smallest square that holds the whole image, centred: padding to square, as LLaVA's `image_aspect_ratio:
pad` does, so that no prompted region is ever cropped away.

Coordinates: pixels have their origin at the image's top left corner, pixel (0, 0) covers [0, 1) x [0, 1). Unit
coordinates run from 0 to 1 over the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Window:
    """The square [left, left + side) x [top, top + side) of a source image, in pixels."""

    left: int
    top: int
    side: int

    @classmethod
    def whole(cls, width: int, height: int) -> Window:
        """The smallest centred square that holds a `width` x `height` image."""
        side = max(width, height)
        return cls(-((side - width) // 2), -((side - height) // 2), side)

    def unit_points(self, points: np.ndarray) -> np.ndarray:
        """Pixel points (..., 2) as xy -> unit coordinates, float32."""
        return ((np.asarray(points, np.float32) - (self.left, self.top)) / self.side).astype(np.float32)

    def unit_box(self, bbox: list[float]) -> np.ndarray:
        """A pixel box [x, y, width, height] -> unit [x1, y1, x2, y2], clipped to the window, float32."""
        x, y, w, h = bbox
        corners = np.array([x, y, x + w, y + h], np.float32) - np.array([self.left, self.top] * 2, np.float32)
        return np.clip(corners / self.side, 0.0, 1.0)

    def cut(self, array: np.ndarray, fill: int | tuple[int, ...] = 0) -> np.ndarray:
        """The window's pixels of `array` (height, width[, channels]), (side, side[, channels]); outside is `fill`."""
        height, width = array.shape[:2]
        y1, y2 = max(self.top, 0), min(self.top + self.side, height)
        x1, x2 = max(self.left, 0), min(self.left + self.side, width)
        if (y2 - y1, x2 - x1) == (self.side, self.side):
            return array[y1:y2, x1:x2]
        out = np.empty((self.side, self.side, *array.shape[2:]), array.dtype)
        out[:] = fill
        if y2 > y1 and x2 > x1:
            out[y1 - self.top : y2 - self.top, x1 - self.left : x2 - self.left] = array[y1:y2, x1:x2]
        return out

    def image(self, image: np.ndarray, size: int, fill: tuple[int, ...]) -> np.ndarray:
        """The window of a uint8 image (height, width, 3), resized (bicubic, antialiased) to (size, size, 3)."""
        square = self.cut(image, fill)
        if square.shape[0] == size:
            return np.ascontiguousarray(square)
        return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))

    def coverage(self, mask: np.ndarray, grid: int) -> np.ndarray:
        """The share of each of grid x grid cells that a bool mask (height, width) covers, float32 in [0, 1]."""
        return _bin(_bin(self.cut(mask).astype(np.float32), grid).T, grid).T


def _bin(array: np.ndarray, cells: int) -> np.ndarray:
    """Means over `cells` equal parts of the first axis, (side, ...) -> (cells, ...), parts of pixels counted exactly.

    By differences of running sums: Pillow's BOX filter takes or leaves whole pixels, and a matrix product would start
    BLAS threads in every loader process.
    """
    side = len(array)
    sums = np.concatenate([np.zeros_like(array[:1]), array.cumsum(0)])
    edges = np.arange(cells + 1) * side / cells
    whole = np.minimum(edges.astype(int), side - 1)
    part = (edges - whole).astype(np.float32)[:, None]
    at_edges = sums[whole] + part * array[whole]
    return np.diff(at_edges, axis=0) * np.float32(cells / side)


def fill_colour(mean: tuple[float, ...]) -> tuple[int, ...]:
    """The padding's colour: the normalisation's mean, in 8 bits (LLaVA rounds down too)."""
    return tuple(int(channel * 255) for channel in mean)
