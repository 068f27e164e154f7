"""What a region looks like at the picture's own resolution: a square cut around its prompt.

The square depends on the prompt as it is given, not on the annotation behind it: its middle and extent are those of the
mask, else of the box, else of the positive clicks. It is cut from the picture as it was decoded, turned and mirrored as
the image's window is, and filled like padding where it reaches beyond the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medpclip.data.loading.decode import render
from medpclip.data.loading.geometry import Window

_FINER = 4  # a picture is made smaller first where its square stays so many times finer than what it is resized to
_MARGIN = 4  # pixels around a turned square that its interpolation may look at


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


def cut_windows(
    pictures: Sequence[np.ndarray],
    image_windows: Sequence[Window],
    prompts: Mapping[str, np.ndarray],
    spec: WindowSpec,
    fill: tuple[int, ...],
) -> CutWindows:
    """Cut a square around each of R prompts on each of B pictures.

    Where nothing points at a region (no prompt, an empty mask, clicks off it only), it is the image's whole window.

    Args:
        pictures: uint8 (height, width, 3), at their own resolution.
        image_windows: which square of each picture the model sees as its image.
        prompts: arrays named as the fields of `medpclip.models.Prompts`, in unit coordinates of `image_windows`.
        spec: which squares.
        fill: the padding's colour.
    """
    places = place_windows(image_windows, prompts, spec)
    pixels = np.empty((*places.windows.shape, spec.size, spec.size, 3), np.uint8)
    for b, picture in enumerate(pictures):
        places.cut(b, picture, 1, fill, pixels[b])
    return CutWindows(torch.from_numpy(pixels), torch.from_numpy(places.rects))


@dataclass
class PlacedWindows:
    """Squares before they are cut.

    Attributes:
        spec: what they were asked for by.
        windows: (B, R) of `Window`, in pixels of the pictures; None where there is no region.
        factors: int64 (B, R): how many times smaller the picture may be when a square is cut; it lies on such pixels.
        rects: as `CutWindows` has them.
    """

    spec: WindowSpec
    windows: np.ndarray
    factors: np.ndarray
    rects: np.ndarray

    def least_factor(self, image: int) -> int:
        """How many times smaller an image's picture may be decoded; 0 where it isn't needed."""
        return min((int(self.factors[image, r]) for r, w in enumerate(self.windows[image]) if w is not None), default=0)

    def cut(self, image: int, picture: np.ndarray | None, scale: int, fill: tuple[int, ...], out: np.ndarray) -> None:
        """Cut an image's squares, into uint8 (R, size, size, 3).

        Args:
            picture: the image's, `scale` times smaller, which divides `least_factor`; None only where that is 0.
        """
        done: dict[Window, int] = {}
        smaller: dict[int, np.ndarray] = {}
        for r, window in enumerate(self.windows[image]):
            if window is None:
                out[r] = fill
            elif window in done:  # a box and a mask often ask for the same square
                out[r] = out[done[window]]
            else:
                assert picture is not None
                factor = int(self.factors[image, r])
                if factor not in smaller:
                    smaller[factor] = _reduced(picture, factor // scale)
                out[r] = _cut(smaller[factor], window.scaled(factor), self.spec.size, fill)
                done[window] = r


def place_windows(
    image_windows: Sequence[Window],
    prompts: Mapping[str, np.ndarray],
    spec: WindowSpec,
    regions: np.ndarray | None = None,
) -> PlacedWindows:
    """Where the squares of `cut_windows` lie.

    Args:
        regions: bool (B, R): which prompts stand for a region, the others being padding; None for all.
    """
    x, y, side = np.moveaxis(_unit_squares(prompts, spec), -1, 0)
    wide = np.array([window.side for window in image_windows], np.float64)[:, None]
    factors = _factors(side * wide, spec.size)
    pixels = np.maximum(np.rint(side * wide / factors), 1).astype(np.int64) * factors
    turn = [_to_source(window) for window in image_windows]
    (a, b, c), (d, e, f) = np.moveaxis(np.array(turn, np.float64).reshape(-1, 2, 3, 1), 0, 2)
    left, top = (
        (np.rint((middle - pixels / 2) / factors) * factors).astype(np.int64)
        for middle in (a * x + b * y + c, d * x + e * y + f)
    )
    # Squares lie on whole pixels, so they aren't quite what was asked for; `rects` says where they are. The inverse of a
    # turn (and mirroring) times a scale is its transpose by the scale's square.
    dx, dy = left + pixels / 2 - c, top + pixels / 2 - f
    middle = np.stack([a * dx + d * dy, b * dx + e * dy], -1) / np.square(wide)[..., None]
    half = (pixels / (2 * wide))[..., None]
    rects = np.concatenate([middle - half, middle + half], -1).astype(np.float32)
    windows = np.full(x.shape, None, object)
    there = np.ones(x.shape, bool) if regions is None else regions
    rects[~there] = 0
    for i, r in np.argwhere(there).tolist():
        windows[i, r] = replace(image_windows[i], left=int(left[i, r]), top=int(top[i, r]), side=int(pixels[i, r]))
    return PlacedWindows(spec, windows, factors, rects)


def _unit_squares(prompts: Mapping[str, np.ndarray], spec: WindowSpec) -> np.ndarray:
    """float64 (B, R, 3): middle x, middle y and side, in unit coordinates."""
    masks = prompts["masks"] > 0
    given = prompts["mask_valid"] & masks.any((-1, -2))
    x1, x2 = _covered_span(np.logical_or.reduce(masks, -2))
    y1, y2 = _covered_span(np.logical_or.reduce(masks, -1))
    extents = np.where(given[..., None], np.stack([x1, y1, x2, y2], -1), prompts["boxes"].astype(np.float64))
    given = given | prompts["box_valid"]
    side = spec.context * (extents[..., 2:] - extents[..., :2]).max(-1)
    square = np.concatenate([(extents[..., :2] + extents[..., 2:]) / 2, side[..., None]], -1)
    on = (prompts["point_labels"] == 1)[..., None]
    clicks = on.sum(2)
    mean = (prompts["points"].astype(np.float64) * on).sum(2) / np.maximum(clicks, 1)
    square[~given] = np.concatenate([mean, np.full_like(mean[..., :1], spec.click_side)], -1)[~given]
    square[~given & (clicks[..., 0] == 0)] = (0.5, 0.5, 1.0)
    return square


def _covered_span(covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bool (..., n) -> where the covered cells begin and end, as shares of n."""
    cells = covered.shape[-1]
    return covered.argmax(-1) / cells, 1 - covered[..., ::-1].argmax(-1) / cells


def _factors(sides: np.ndarray, size: int) -> np.ndarray:
    """How many times smaller, a power of two, a picture may be for squares of these sides in pixels; int64."""
    room = np.maximum(sides / (_FINER * size), 1.0)
    return 2 ** np.floor(np.log2(room)).astype(np.int64)


def _to_source(window: Window) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Rows of the affine map from a window's unit coordinates to its picture's pixels."""
    cosine, sine = math.cos(math.radians(window.angle)), math.sin(math.radians(window.angle))
    a, b, d, e = (window.side * part for part in (cosine, -sine, sine, cosine))
    if window.flip:  # x becomes 1 - x first
        a, d = -a, -d
    middle = window.side / 2
    return (a, b, window.left + middle - (a + b) / 2), (d, e, window.top + middle - (d + e) / 2)


def _reduced(picture: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel the mean of factor x factor; cells at the right and lower border may hold fewer."""
    return picture if factor == 1 else np.asarray(Image.fromarray(picture).reduce(factor))


def _cut(picture: np.ndarray, window: Window, size: int, fill: tuple[int, ...]) -> np.ndarray:
    """`render`, of a turned square without handing on all of a large picture."""
    if window.angle:
        reach = math.ceil(window.side * (math.sqrt(2) - 1) / 2) + _MARGIN
        left, top = max(0, window.left - reach), max(0, window.top - reach)
        right, bottom = window.left + window.side + reach, window.top + window.side + reach
        near = picture[top : max(bottom, 0), left : max(right, 0)]
        if not near.size:  # wholly beyond the picture
            near, left, top = picture[:1, :1], 0, 0
        picture, window = np.ascontiguousarray(near), replace(window, left=window.left - left, top=window.top - top)
    return render(picture, 1, window, size, fill)
