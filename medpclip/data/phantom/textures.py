"""Textures inside regions, all with one and the same grey-level distribution.

Whatever the pattern, its values inside a region are replaced by their ranks and the ranks mapped to one distribution (that of
a sine wave: u -> -cos(pi u)). So only the arrangement of grey levels tells textures apart, never their histogram.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medpclip.data.phantom.fields import smooth_noise

Array = np.ndarray
_TURN = 0.4  # radians that stripes and lattices lean either way


def stripes(rng: np.random.Generator, height: int, width: int, period: float) -> Array:
    """Parallel waves, nearly upright, slightly bent."""
    u, _ = _turned(rng, height, width)
    bend = 0.5 * smooth_noise(rng, height, width, 2.5 * period)
    return np.sin(2.0 * np.pi * u / period + bend)


def dots(rng: np.random.Generator, height: int, width: int, period: float) -> Array:
    """Spots on a nearly upright square lattice, slightly bent."""
    u, v = _turned(rng, height, width)
    bend = 0.5 * smooth_noise(rng, height, width, 2.5 * period)
    return np.sin(2.0 * np.pi * u / period + bend) + np.sin(2.0 * np.pi * v / period + bend)


def grain(rng: np.random.Generator, height: int, width: int, period: float) -> Array:
    """Random speckle; a bright and a dark grain together span about `period`."""
    return smooth_noise(rng, height, width, period / 2.0)


PATTERNS: dict[str, Callable[[np.random.Generator, int, int, float], Array]] = {
    "stripes": stripes,
    "dots": dots,
    "grain": grain,
}


def equalise(values: Array, mask: Array) -> Array:
    """Map values to -1..1 by their rank inside the mask, so that the mask's values follow a sine wave's distribution."""
    inside = np.sort(values[mask])
    ranks = np.searchsorted(inside, values.ravel()).reshape(values.shape)
    return -np.cos(np.pi * np.minimum((ranks + 0.5) / inside.size, 1.0)).astype(np.float32)


def _turned(rng: np.random.Generator, height: int, width: int) -> tuple[Array, Array]:
    turn, shift_x, shift_y = rng.uniform(-_TURN, _TURN), *rng.uniform(0.0, 100.0, 2)
    x, y = np.arange(width)[None, :] + shift_x, np.arange(height)[:, None] + shift_y
    return x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
