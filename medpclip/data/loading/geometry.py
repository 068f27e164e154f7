"""One geometry for an image and everything that lies on it.

A `Window` is a square of the source image, in whole pixels; it may reach beyond the image, where it is filled with a
colour, may be turned about its centre, and may be seen mirrored. The image, its boxes, masks and points all go through
the same window, so they cannot come apart. The default window is the smallest square that holds the whole image,
centred: padding to square, as LLaVA's `image_aspect_ratio: pad` does, so that no prompted region is ever cropped away.

Coordinates: pixels have their origin at the image's top left corner, pixel (0, 0) covers [0, 1) x [0, 1). Unit
coordinates run from 0 to 1 over the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from medpclip.data.loading.strips import strips_of_masks


@dataclass(frozen=True)
class Window:
    """A square of a source image.

    Attributes:
        left, top, side: [left, left + side) x [top, top + side), in pixels.
        angle: degrees by which its content is turned, anticlockwise as seen, about the square's centre.
        flip: whether its content is mirrored, left to right, after all else.
    """

    left: int
    top: int
    side: int
    angle: float = 0.0
    flip: bool = False

    @classmethod
    def whole(cls, width: int, height: int) -> Window:
        """The smallest centred square that holds a `width` x `height` image."""
        side = max(width, height)
        return cls(-((side - width) // 2), -((side - height) // 2), side)

    def unit_points(self, points: np.ndarray) -> np.ndarray:
        """Pixel points (..., 2) as xy -> unit coordinates, float32."""
        points = np.asarray(points, np.float64)
        unit = Windows.of([self]).unit_points(points.reshape(1, -1, 2)).reshape(points.shape)
        if self.flip:
            unit[..., 0] = 1.0 - unit[..., 0]
        return unit.astype(np.float32)

    def unit_box(self, bbox: list[float]) -> np.ndarray:
        """A pixel box [x, y, width, height] -> unit [x1, y1, x2, y2], clipped to the window, float32.

        Of a turned box, the upright box around it.
        """
        x, y, w, h = bbox
        if self.angle:
            corners = self.unit_points(np.array([[x, y], [x + w, y], [x, y + h], [x + w, y + h]]))
            return np.clip(np.concatenate([corners.min(0), corners.max(0)]), 0.0, 1.0)
        # In Python: for a single box, numpy's clip takes longer than all of this.
        x1, x2 = (x - self.left) / self.side, (x + w - self.left) / self.side
        y1, y2 = (y - self.top) / self.side, (y + h - self.top) / self.side
        if self.flip:
            x1, x2 = 1.0 - x2, 1.0 - x1
        return np.array([_clip(x1), _clip(y1), _clip(x2), _clip(y2)], np.float32)

    def scaled(self, factor: int) -> Window:
        """The same square of the same image made `factor` times smaller, by which all of its numbers can be divided."""
        assert not (self.left % factor or self.top % factor or self.side % factor), (self, factor)
        return replace(self, left=self.left // factor, top=self.top // factor, side=self.side // factor)

    def cut(self, array: np.ndarray, fill: int | tuple[int, ...] = 0) -> np.ndarray:
        """The window's pixels of `array` (height, width[, channels]), (side, side[, channels]); outside is `fill`.

        Turned, a mask (bool) takes the nearest pixels and an image (uint8) interpolates bicubically.
        """
        out = self._turned(array, fill) if self.angle else self._upright(array, fill)
        return out[:, ::-1] if self.flip else out

    def image(self, image: np.ndarray, size: int, fill: tuple[int, ...]) -> np.ndarray:
        """The window of a uint8 image (height, width, 3), resized (bicubic, antialiased) to (size, size, 3)."""
        square = np.ascontiguousarray(self.cut(image, fill))
        if square.shape[0] == size:
            return square
        return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))

    def coverage(self, mask: np.ndarray, grid: int) -> np.ndarray:
        """The share of each of grid x grid cells that a bool mask (height, width) covers, float32 in [0, 1]."""
        return strips_of_masks([self.cut(mask)]).coverage(np.array([self.side]), grid)[0]

    def _turn(self) -> tuple[float, float]:
        return math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))

    def _upright(self, array: np.ndarray, fill: int | tuple[int, ...]) -> np.ndarray:
        height, width = array.shape[:2]
        y1, y2 = max(self.top, 0), min(self.top + self.side, height)
        x1, x2 = max(self.left, 0), min(self.left + self.side, width)
        if (y2 - y1, x2 - x1) == (self.side, self.side):
            return array[y1:y2, x1:x2]
        row = np.empty((self.side, *array.shape[2:]), array.dtype)
        row[:] = fill
        out = np.empty((self.side, *row.shape), array.dtype)
        out.reshape(self.side, -1)[:] = row.reshape(-1)  # whole rows are copied several times faster than colours
        if y2 > y1 and x2 > x1:
            out[y1 - self.top : y2 - self.top, x1 - self.left : x2 - self.left] = array[y1:y2, x1:x2]
        return out

    def _turned(self, array: np.ndarray, fill: int | tuple[int, ...]) -> np.ndarray:
        cosine, sine = self._turn()
        middle = self.side / 2
        # From the window's pixels to the source's: Pillow asks for the inverse.
        to_source = (cosine, -sine, self.left + middle * (1 - cosine + sine),
                     sine, cosine, self.top + middle * (1 - cosine - sine))  # fmt: skip
        is_mask = array.dtype == bool
        picture = Image.fromarray(array.astype(np.uint8) if is_mask else array)
        resample = Image.Resampling.NEAREST if is_mask else Image.Resampling.BICUBIC
        size, affine = (self.side, self.side), Image.Transform.AFFINE
        return np.asarray(picture.transform(size, affine, to_source, resample, fillcolor=fill)).astype(array.dtype)


@dataclass
class Windows:
    """N windows, and the same coordinates in all of them at once, *before* mirroring: whoever uses them mirrors last.

    Attributes:
        left, top, side: int64 (N,).
        angle: float64 (N,).
        flip: bool (N,).
    """

    left: np.ndarray
    top: np.ndarray
    side: np.ndarray
    angle: np.ndarray
    flip: np.ndarray

    @classmethod
    def of(cls, windows: Sequence[Window]) -> Windows:
        """As arrays."""
        numbers = np.array([(w.left, w.top, w.side) for w in windows], np.int64).reshape(-1, 3).T
        left, top, side = numbers
        return cls(left, top, side, np.array([w.angle for w in windows]), np.array([w.flip for w in windows], bool))

    def pick(self, index: Sequence[int] | np.ndarray) -> Windows:
        """Some of them, in any order and number."""
        return Windows(self.left[index], self.top[index], self.side[index], self.angle[index], self.flip[index])

    def unit_points(self, points: np.ndarray) -> np.ndarray:
        """Pixel points (N, P, 2) -> unit coordinates, float64, which may lie outside 0 to 1."""
        corner = np.stack([self.left, self.top], 1)[:, None]
        unit = (points - corner) / self.side[:, None, None]
        if not self.angle.any():
            return unit
        radians = np.radians(self.angle)[:, None]
        x, y = unit[..., 0] - 0.5, unit[..., 1] - 0.5
        cosine, sine = np.cos(radians), np.sin(radians)
        return np.stack([cosine * x + sine * y + 0.5, cosine * y - sine * x + 0.5], -1)

    def unit_boxes(self, boxes: np.ndarray, clip: bool = True) -> np.ndarray:
        """Pixel boxes (N, 4) as x y width height -> unit x1 y1 x2 y2, float32; of turned boxes, the ones around them."""
        x, y, w, h = boxes.T
        if self.angle.any():
            corners = np.stack([x, y, x + w, y, x, y + h, x + w, y + h], 1).reshape(-1, 4, 2)
            unit = self.unit_points(corners)
            out = np.concatenate([unit.min(1), unit.max(1)], 1)
        else:
            out = self.unit_points(np.stack([x, y, x + w, y + h], 1).reshape(-1, 2, 2)).reshape(-1, 4)
        return (np.clip(out, 0.0, 1.0) if clip else out).astype(np.float32)


def _clip(value: float) -> float:
    return 0.0 if value < 0.0 else 1.0 if value > 1.0 else value


def fill_colour(mean: tuple[float, ...]) -> tuple[int, ...]:
    """The padding's colour: the normalisation's mean, in 8 bits (LLaVA rounds down too)."""
    return tuple(int(channel * 255) for channel in mean)
