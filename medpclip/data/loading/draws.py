"""Random numbers that belong to a sample: a pure function of who asks, whatever else is drawn, in any order.

SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 15), used as a counter:
the n-th number of a stream is the mixed value of its key plus n times an odd constant. Thousands of streams are drawn
at once, where a numpy generator for each would cost more than the image's resizing.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream_keys(*parts: int | np.ndarray) -> np.ndarray:
    """Keys of streams, uint64, one per combination of `parts` (whole numbers; arrays broadcast against each other).

    Different parts, and the same in another order, give unrelated streams.
    """
    keys = np.zeros(1, np.uint64)  # an array: numpy warns where single numbers overflow
    for part in parts:
        keys = _mix(keys + _GOLDEN) ^ _mix(np.atleast_1d(part).astype(np.uint64) + _GOLDEN)
        keys = _mix(keys)
    return keys


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """The first `count` numbers of each stream, float64 (len(keys), count), uniform in [0, 1)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(keys[:, None] + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(uniform: np.ndarray) -> np.ndarray:
    """Standard normal numbers from as many uniform ones, (..., even) -> the same shape (Box and Muller 1958)."""
    half = uniform.shape[-1] // 2
    radius = np.sqrt(-2.0 * np.log1p(-uniform[..., :half]))
    angle = 2.0 * np.pi * uniform[..., half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
