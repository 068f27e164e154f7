"""Pictures made worse, after ImageNet-C (Hendrycks and Dietterich 2019, section 4).

Kinds are theirs; strengths are ours, since medical pictures differ in size more than ImageNet's: what has an extent is given
as a share of the picture's longer side, so that a severity looks alike at any resolution.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from medpclip.evaluation.task import Corruption

# By severity, from 1 to 5.
NOISE = (0.02, 0.04, 0.08, 0.14, 0.2)  # standard deviation, as a share of the range from black to white
BLUR = (0.002, 0.004, 0.008, 0.014, 0.02)  # standard deviation of the Gaussian, as a share of the longer side
JPEG = (50, 25, 12, 7, 4)  # quality
BRIGHTNESS = (0.05, 0.1, 0.2, 0.3, 0.4)  # added or taken away, as a share of the range
CONTRAST = (0.8, 0.6, 0.4, 0.25, 0.15)  # what is left of the distance from the picture's mean
_GRAIN = 448  # grains of noise along the longer side, at most


def corrupt(picture: np.ndarray, name: Corruption, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A worse copy of a picture.

    "noise" is Gaussian, alike in all channels of a grain and no finer than the longer side / 448; "blur" is Gaussian;
    "jpeg" compresses; "brightness" adds or subtracts, which of them is drawn; "contrast" draws values to their mean.

    Args:
        picture: uint8 (height, width, 3).
        severity: 1 to 5; the constants of this module say what it means.
        rng: decides everything that is drawn.

    Returns:
        uint8 of the same shape; the picture itself is left as it is.
    """
    return _KINDS[name](picture, severity - 1, rng)


def _noise(picture: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    shrink = max(1.0, max(height, width) / _GRAIN)
    size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
    grains = rng.normal(0, 255 * NOISE[level], size).astype(np.float32)
    rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), size, strict=True))
    return _bytes(picture + grains[rows][:, columns, None])


def _blur(picture: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    radius = BLUR[level] * max(picture.shape[:2])
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(picture: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG[level])
    return np.array(Image.open(stream))


def _brightness(picture: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    return _bytes(picture.astype(np.float32) + rng.choice([-255, 255]) * BRIGHTNESS[level])


def _contrast(picture: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    mean = picture.mean(dtype=np.float64)
    return _bytes(mean + (picture - mean) * CONTRAST[level])


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_KINDS: dict[Corruption, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "brightness": _brightness,
    "contrast": _contrast,
}
