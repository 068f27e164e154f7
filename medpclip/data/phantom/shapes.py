"""Outlines of regions, as polygons that fill their box exactly.

A shape is turned (any way; the shapes of a pair by up to `_LEAN`), then stretched to its box, so boxes are distributed alike
whatever the shape. The shapes of a pair have one parameter more, which is solved for a wanted *fill* (area over box area):
so areas are alike too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Array = np.ndarray
_ANGLES = np.linspace(0.0, 2.0 * np.pi, 60, endpoint=False)
_SUPERSAMPLING = 4
_LEAN = 0.6  # radians


def blob(rng: np.random.Generator) -> Array:
    """A smooth round shape, slightly irregular."""
    phase = rng.uniform(0.0, 2.0 * np.pi, 3)
    radius = 1.0 + 0.07 * np.cos(2 * _ANGLES + phase[0]) + 0.06 * np.cos(3 * _ANGLES + phase[1])
    return _polar(radius + 0.03 * np.cos(5 * _ANGLES + phase[2]))


def ragged(rng: np.random.Generator) -> Array:
    """An irregular patch."""
    phase = rng.uniform(0.0, 2.0 * np.pi, 4)
    waves = [0.16 * np.cos(k * _ANGLES + p) / (1 + 0.15 * k) for k, p in zip((2, 3, 5, 7), phase, strict=True)]
    return _polar(1.0 + np.sum(waves, axis=0))


def bean(rng: np.random.Generator) -> Array:
    """A kidney bean."""
    notch = 0.45 * np.exp(-((np.angle(np.exp(1j * _ANGLES)) / 0.55) ** 2))
    return _polar(1.0 - notch + 0.03 * np.cos(3 * _ANGLES + rng.uniform(0.0, 6.28))) * [0.75, 1.0]


def square(rng: np.random.Generator) -> Array:
    """A plate with straight edges."""
    return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def vertebra(rng: np.random.Generator) -> Array:
    """A round body with a spinous and two transverse processes, nearly upright (y points down)."""
    processes = [
        0.55 * np.exp(-((np.angle(np.exp(1j * (_ANGLES - a))) / 0.28) ** 2)) for a in (0.45, np.pi / 2, np.pi - 0.45)
    ]
    return _polar(1.0 + np.sum(processes, axis=0)) @ _rotation(rng.uniform(-0.15, 0.15))


def star(depth: float) -> Array:
    """Five pointed arms; `depth` 0 to 1 deepens the notches between them."""
    angles = np.arange(10) * np.pi / 5
    return (
        np.stack([np.cos(angles), np.sin(angles)], axis=1)
        * np.where(np.arange(10) % 2, 0.8 - 0.7 * depth, 1.0)[:, None]
    )


def crescent(depth: float) -> Array:
    """A disc with a round bite, `depth` 0 to 1 deep."""
    bite, offset = 0.8, 1.75 - 1.4 * depth
    crossing = (1.0 - bite**2 + offset**2) / (2.0 * offset)
    alpha = np.arccos(np.clip(crossing, -1.0, 1.0))
    outer = np.linspace(alpha, 2.0 * np.pi - alpha, 48)
    beta = np.arctan2(-np.sin(alpha), crossing - offset) % (2.0 * np.pi)
    inner = np.linspace(beta, 2.0 * np.pi - beta, 32)
    arc = np.stack([offset + bite * np.cos(inner), bite * np.sin(inner)], axis=1)
    return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1), arc])


def trefoil(depth: float) -> Array:
    """Three round lobes, parted by notches `depth` 0 to 1 deep."""
    return _polar(1.0 + 0.95 * depth * np.cos(3 * _ANGLES))


def ring(depth: float) -> Array:
    """An annulus whose hole grows with `depth`: outer outline, then the hole's, as one closed path along a seam."""
    closed = np.linspace(0.0, 2.0 * np.pi, 61)
    circle = np.stack([np.cos(closed), np.sin(closed)], axis=1)
    return np.concatenate([circle, circle[::-1] * 0.9 * depth])


FREE_SHAPES: dict[str, Callable[[np.random.Generator], Array]] = {
    "blob": blob,
    "ragged": ragged,
    "bean": bean,
    "square": square,
    "vertebra": vertebra,
}
_UPRIGHT = ("vertebra",)
SOLVED_SHAPES: dict[str, tuple[Callable[[float], Array], tuple[float, float]]] = {
    "star": (star, (0.42, 0.48)),
    "crescent": (crescent, (0.42, 0.48)),
    "ring": (ring, (0.46, 0.52)),
    "trefoil": (trefoil, (0.46, 0.52)),
}


def outline(rng: np.random.Generator, shape: str) -> Array:
    """A polygon (n, 2) of (x, y) in a box from -1 to 1, touching all four sides, at a random angle."""
    most = 0.0 if shape in _UPRIGHT else np.pi if shape in FREE_SHAPES else _LEAN
    rotation = _rotation(rng.uniform(-most, most))
    if shape in FREE_SHAPES:
        return _to_box(FREE_SHAPES[shape](rng) @ rotation)
    family, fills = SOLVED_SHAPES[shape]
    wanted = rng.uniform(*fills)
    low, high = 0.0, 1.0
    for _ in range(10):  # the fill falls with depth
        middle = (low + high) / 2.0
        low, high = (middle, high) if fill(family(middle) @ rotation) > wanted else (low, middle)
    return _to_box(family((low + high) / 2.0) @ rotation)


def fill(polygon: Array) -> float:
    """Area of a polygon over the area of its box."""
    x, y = polygon[:, 0], polygon[:, 1]
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2.0
    return float(area / (np.ptp(x) * np.ptp(y)))


def rasterise(
    polygon: Array, cx: float, cy: float, width: float, height: float, blur: float, frame: tuple[int, int]
) -> tuple[slice, slice, Array, Array]:
    """Draw a unit polygon at its place.

    Args:
        polygon: from `outline`.
        cx, cy, width, height: the box's centre and size in pixels.
        blur: standard deviation in pixels of the softening of the edge.
        frame: the image's (height, width).

    Returns:
        Rows and columns of the window, and in it the softened coverage float32 0..1 and the mask bool (more than half covered).
    """
    margin = int(np.ceil(2.5 * blur)) + 1
    top, bottom = max(0, int(cy - height / 2) - margin), min(frame[0], int(np.ceil(cy + height / 2)) + margin)
    left, right = max(0, int(cx - width / 2) - margin), min(frame[1], int(np.ceil(cx + width / 2)) + margin)
    scale = _SUPERSAMPLING
    picture = Image.new("L", ((right - left) * scale, (bottom - top) * scale))
    points = (polygon * [width / 2, height / 2] + [cx - left, cy - top]) * scale
    ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in points], fill=255)
    picture = picture.reduce(scale)
    mask = np.asarray(picture) > 127
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32) / 255.0
    return slice(top, bottom), slice(left, right), soft, mask


def _rotation(turn: float) -> Array:
    return np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _polar(radius: Array) -> Array:
    return np.stack([radius * np.cos(_ANGLES), radius * np.sin(_ANGLES)], axis=1)


def _to_box(polygon: Array) -> Array:
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    return (polygon - (low + high) / 2.0) / ((high - low) / 2.0)
