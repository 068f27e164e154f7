"""The ranges that phantoms are drawn from: the one place to make them harder or easier.

Validation and test images come from `HELD_OUT_RANGES`, whose spans lie outside the training spans, 10 to 25 % beyond their
ends. So a held-out image has a noise level, a contrast, a size of region that training never showed.
Lengths are in pixels of an image whose longer side was resized to `REFERENCE_SIDE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REFERENCE_SIDE = 128

Spans = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Ranges:
    """Each field is one or more spans (low, high); a value is uniform over their union.

    Attributes:
        noise: standard deviation of the sensor noise, image values being 0 to 1.
        contrast: factor on every region's difference from its surroundings, and on its texture.
        blur: standard deviation of the blur of background and outlines.
        gamma: exponent of the final tone curve.
        structure: period of the background's structure (organs, ribs, fibres, folds).
        size: longer side of a region's box as a fraction of the image's longer side.
        aspect: width of a region's box over its height.
        fine_period: grain of the finer texture of the fine/coarse pair.
        coarse_period: grain of the coarser one.
        pattern_period: period of stripes and of dots.
        count: how many regions are tried; some find no room.
    """

    noise: Spans
    contrast: Spans
    blur: Spans
    gamma: Spans
    structure: Spans
    size: Spans
    aspect: Spans
    fine_period: Spans
    coarse_period: Spans
    pattern_period: Spans
    count: tuple[int, int] = (3, 8)


TRAIN_RANGES = Ranges(
    noise=((0.015, 0.040),),
    contrast=((0.85, 1.20),),
    blur=((0.20, 0.60),),
    gamma=((0.85, 1.15),),
    structure=((10.0, 16.0),),
    size=((0.22, 0.32),),
    aspect=((0.80, 1.25),),
    fine_period=((4.2, 5.2),),
    coarse_period=((11.0, 14.0),),
    pattern_period=((7.0, 9.0),),
)
HELD_OUT_RANGES = Ranges(
    noise=((0.040, 0.050),),
    contrast=((0.72, 0.85),),
    blur=((0.60, 0.75),),
    gamma=((0.72, 0.85), (1.15, 1.35)),
    structure=((8.5, 10.0), (16.0, 19.0)),
    size=((0.19, 0.22), (0.32, 0.36)),
    aspect=((0.70, 0.80), (1.25, 1.40)),
    fine_period=((3.8, 4.2), (5.2, 5.8)),
    coarse_period=((14.0, 16.0),),
    pattern_period=((6.2, 7.0), (9.0, 10.2)),
)


@dataclass(frozen=True)
class Acquisition:
    """What all images of one synthetic patient share; units as in `Ranges`."""

    noise: float
    contrast: float
    blur: float
    gamma: float
    structure: float


def ranges_of(split: str) -> Ranges:
    """The ranges that a split's images are drawn from."""
    return TRAIN_RANGES if split == "train" else HELD_OUT_RANGES


def draw(rng: np.random.Generator, spans: Spans) -> float:
    """A value uniform over the union of `spans`."""
    lengths = [high - low for low, high in spans]
    at = rng.uniform(0.0, sum(lengths))
    for (low, _), length in zip(spans, lengths, strict=True):
        if at <= length:
            return low + at
        at -= length
    return spans[-1][1]


def draw_acquisition(rng: np.random.Generator, ranges: Ranges) -> Acquisition:
    """One patient's acquisition."""
    return Acquisition(
        noise=draw(rng, ranges.noise),
        contrast=draw(rng, ranges.contrast),
        blur=draw(rng, ranges.blur),
        gamma=draw(rng, ranges.gamma),
        structure=draw(rng, ranges.structure),
    )
