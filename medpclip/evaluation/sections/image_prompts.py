"""Boxes that no annotation asked for, by which a prompted embedding answers for a whole image (our design)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import RegionPrompt
from medpclip.data.schema import Region, Sample
from medpclip.evaluation.corpus import rng_for
from medpclip.evaluation.task import ImagePrompt

SMALL_SIDE = 0.15  # of a small box, as a share of the image's longer side


def image_prompt(sample: Sample, kind: ImagePrompt, seed: int) -> RegionPrompt | None:
    """The box by which an image-level question is asked; it depends on the seed and the image alone.

    Args:
        kind: "full_box" around all of the image (not its padding), "small_box" at a uniformly drawn place inside it, or
            "irrelevant_box", the same among the places that touch no annotated region.

    Returns:
        None where no place is left for an irrelevant box.
    """
    width, height = sample.width, sample.height
    window = Window.whole(width, height)
    if kind == "full_box":
        return RegionPrompt(box=window.unit_box([0, 0, width, height]))
    side = max(1, round(SMALL_SIDE * max(width, height)))
    w, h = min(side, width), min(side, height)
    rng = rng_for(seed, sample.key, kind)
    if kind == "small_box":
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    else:
        assert kind == "irrelevant_box", kind
        free = np.flatnonzero(_free_places(_annotated(sample.regions, width, height), w, h))
        if not len(free):
            return None
        y, x = divmod(int(free[rng.integers(len(free))]), width - w + 1)
    return RegionPrompt(box=window.unit_box([x, y, w, h]))


def _annotated(regions: Sequence[Region], width: int, height: int) -> np.ndarray:
    """Bool (height, width): the pixels of all regions' masks, else of their boxes, else of their points."""
    out = np.zeros((height, width), bool)
    for region in regions:
        mask = region.mask()
        if mask is not None:
            out |= mask
        elif region.bbox is not None:
            x, y, w, h = region.bbox
            out[max(0, int(y)) : int(np.ceil(y + h)), max(0, int(x)) : int(np.ceil(x + w))] = True
        else:
            for px, py in region.points or ():
                out[min(int(py), height - 1), min(int(px), width - 1)] = True
    return out


def _free_places(taken: np.ndarray, w: int, h: int) -> np.ndarray:
    """Bool (height - h + 1, width - w + 1): whether a box with its corner there holds no taken pixel."""
    sums = np.pad(taken.astype(np.int32).cumsum(0, np.int32).cumsum(1, np.int32), ((1, 0), (1, 0)))
    return (sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]) == 0
