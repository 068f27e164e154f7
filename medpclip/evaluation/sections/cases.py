"""Which regions are asked about, how they are pointed at, and their embeddings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import PromptKind, RegionPrompt, available_kinds, exact_prompt
from medpclip.data.schema import Region
from medpclip.evaluation.corpus import Item, rng_for
from medpclip.evaluation.embedding.features import Features, Request
from medpclip.evaluation.scores import Case
from medpclip.evaluation.task import Corruption


@dataclass(frozen=True)
class Way:
    """A way to ask about n cases.

    Attributes:
        name: as rows and predictions call it.
        prompts: of each case; None where it can't be asked so.
        corruption: what is done to the picture, and how much; None for nothing.
    """

    name: str
    prompts: Sequence[RegionPrompt | None]
    corruption: tuple[Corruption, int] | None = None


def chosen_regions(item: Item, classes: Collection[str], limit: int | None, seed: int) -> list[Region]:
    """An image's regions of some classes, without crowds; a seeded choice of them where there are more than `limit`."""
    known = [r for r in item.sample.regions if not r.iscrowd and r.category in classes]
    if limit is None or len(known) <= limit:
        return known
    chosen = rng_for(seed, item.sample.key, "regions").choice(len(known), limit, replace=False)
    return [known[i] for i in sorted(chosen)]


def region_prompt(case: Case, kind: PromptKind, grid: int, seed: int) -> RegionPrompt | None:
    """The prompt as annotated; None where the region can't be pointed at so.

    A click depends on the seed, the image's key and the region's id alone.
    """
    assert case.region is not None
    if kind not in available_kinds(case.region):
        return None
    sample = case.item.sample
    window = Window.whole(sample.width, sample.height)
    return exact_prompt(case.region, window, kind, grid, rng_for(seed, sample.key, case.region.id))


def embed_ways(
    features: Features, cases: Sequence[Case], ways: Sequence[Way], comparators: Sequence[str], what: str
) -> dict[tuple[str, str], np.ndarray]:
    """The embeddings of n cases, asked in several ways of several comparators, all of them in one go over the images.

    Args:
        what: is embedded, for the progress bar.

    Returns:
        (way's name, comparator) -> float32 (n, D), with rows of NaN where there is no prompt.
    """
    asked = [
        (way, comparator, i, prompt)
        for way in ways
        for comparator in comparators
        for i, prompt in enumerate(way.prompts)
        if prompt is not None
    ]
    rows = features.embed([Request(cases[i].item, p, name, way.corruption) for way, name, i, p in asked], what)
    shape = (len(cases), rows.shape[1])
    out = {(way.name, name): np.full(shape, np.nan, np.float32) for way in ways for name in comparators}
    for (way, name, i, _), row in zip(asked, rows, strict=True):
        out[way.name, name][i] = row
    return out
