"""The regions of a batch's images as arrays: which of them a window shows, and which are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medpclip.data.loading.geometry import Window, Windows
from medpclip.data.loading.strips import Strips, strips_of_masks, strips_of_runs
from medpclip.data.schema import Region

_NO_BOX = [float("nan")] * 4
_SLACK = 0.5  # pixels by which a box may leave its image, as the schema has it


@dataclass
class RegionTable:
    """N regions of several images, as their JSON states them.

    Attributes:
        image: int64 (N,): which image.
        number: int64 (N,): which region of the image.
        terms: the T different terms.
        category: int64 (N,): which of them.
        boxes: float64 (N, 4): x y width height in pixels, NaN where there is none.
        has_mask: bool (N,).
        crowd: bool (N,): stands for many things, so is never drawn.
        stated: the JSON objects.
        image_windows, windows: of the images, and one per region.
        sizes: int64 (N, 2): width, height of the image.
    """

    image: np.ndarray
    number: np.ndarray
    terms: list[str]
    category: np.ndarray
    boxes: np.ndarray
    has_mask: np.ndarray
    crowd: np.ndarray
    stated: list[Mapping[str, Any]]
    image_windows: Sequence[Window]
    windows: Windows
    sizes: np.ndarray

    @classmethod
    def read(cls, facts: Sequence[Mapping[str, Any]], windows: Sequence[Window]) -> RegionTable:
        """The regions of images, by their samples' JSON.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: something breaks the schema.
        """
        lists = [sample.get("regions", ()) for sample in facts]
        stated = [region for regions in lists for region in regions]
        names = [region["category"] for region in stated]
        codes = {term: code for code, term in enumerate(dict.fromkeys(names))}
        if not all(type(term) is str and term for term in codes):
            raise ValueError("a region's term breaks the schema")
        if not {type(region["id"]) for region in stated} <= {int}:
            raise ValueError("a region's id breaks the schema")
        counts = [len(regions) for regions in lists]
        image = np.repeat(np.arange(len(facts)), counts)
        sizes = np.array([(sample["width"], sample["height"]) for sample in facts], np.int64).reshape(-1, 2)[image]
        masks = [region.get("segmentation") for region in stated]
        has_mask = np.array([mask is not None for mask in masks], bool)
        whole = [[sample["height"], sample["width"]] for sample in facts]
        if any(mask is not None and mask["size"] != whole[i] for mask, i in zip(masks, image.tolist(), strict=True)):
            raise ValueError("a mask is of another size than its image")
        table = cls(
            image=image,
            number=np.arange(len(stated)) - np.repeat(np.cumsum(counts) - counts, counts),
            terms=list(codes),
            category=np.array([codes[name] for name in names], np.int64),
            boxes=np.array([region.get("bbox") or _NO_BOX for region in stated], np.float64).reshape(-1, 4),
            has_mask=has_mask,
            crowd=np.array([region.get("iscrowd", 0) for region in stated], bool),
            stated=stated,
            image_windows=windows,
            windows=Windows.of(windows).pick(image),
            sizes=sizes,
        )
        table._check()
        return table

    def _check(self) -> None:
        """Of what the draws rely on; a region's run lengths are checked where they are decoded."""
        x, y, w, h = self.boxes.T
        width, height = self.sizes.T
        inside = (w > 0) & (h > 0) & (x >= -_SLACK) & (y >= -_SLACK)
        inside &= (x + w <= width + _SLACK) & (y + h <= height + _SLACK)
        boxless = np.isnan(x)
        if not (inside | boxless).all():
            raise ValueError("a box breaks the schema")
        for i in np.flatnonzero(boxless & ~self.has_mask):
            points = np.array(self.stated[i]["points"], np.float64)
            if points.ndim != 2 or points.shape[1] != 2 or not len(points):
                raise ValueError("a region's points break the schema")
            if points.min() < 0 or (points > self.sizes[i]).any():
                raise ValueError("a point lies outside its image")

    def strips(self, index: np.ndarray) -> Strips:
        """What the windows show of the masks of some regions, which all have one."""
        if self.windows.angle[index].any():
            return strips_of_masks([self._turned(i) for i in index])
        width, height = self.sizes[index].T
        return self._clip(strips_of_runs(self._counts(index), height, width), index)

    def visible(self) -> np.ndarray:
        """Whether the window shows at least half of each region, or a point of one without extent: bool (N,). No crowd.

        A mask that its box may not place wholly inside is asked itself.
        """
        shown = ~self.crowd
        boxed = ~np.isnan(self.boxes[:, 0])
        unit = self.windows.unit_boxes(self.boxes, clip=False).astype(np.float64)
        clipped = np.clip(unit, 0.0, 1.0)
        with np.errstate(invalid="ignore"):
            share = np.prod(clipped[:, 2:] - clipped[:, :2], 1) / np.prod(unit[:, 2:] - unit[:, :2], 1)
        shown[boxed] &= share[boxed] >= 0.5
        asked = np.flatnonzero(self.has_mask & ~self.crowd & ~(share > 0.999))
        if len(asked):
            width, height = self.sizes[asked].T
            whole = strips_of_runs(self._counts(asked), height, width)
            turned = self.windows.angle[asked].any()
            shown[asked] = 2 * (self.strips(asked) if turned else self._clip(whole, asked)).areas() >= whole.areas()
        for i in np.flatnonzero(~boxed & ~self.has_mask & ~self.crowd).tolist():
            points = self.windows.pick([i]).unit_points(np.array(self.stated[i]["points"], np.float64)[None])
            shown[i] = ((points >= 0) & (points <= 1)).all(-1).any()
        return shown

    def _counts(self, index: np.ndarray) -> list[str]:
        return [self.stated[i]["segmentation"]["counts"] for i in index]

    def _clip(self, strips: Strips, index: np.ndarray) -> Strips:
        return strips.clip(self.windows.left[index], self.windows.top[index], self.windows.side[index])

    def _turned(self, index: int) -> np.ndarray:
        """A mask as a turned window shows it, before any mirroring: it has to be drawn."""
        mask = Region(0, "", segmentation=dict(self.stated[index]["segmentation"])).mask()
        assert mask is not None
        return replace(self.image_windows[self.image[index]], flip=False).cut(mask)

    def draw(
        self, candidates: np.ndarray, draws: np.ndarray, balance: bool, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """At most `most` regions of each image, in random order; balanced: one of each category by turns.

        Args:
            candidates: int64 (M,): regions to draw from.
            draws: (M,) uniform numbers.

        Returns:
            The chosen regions, by image, and each one's place among its image's, both int64.
        """
        image = self.image[candidates]
        turn = np.zeros(len(candidates), np.int64)
        if balance:
            category = self.category[candidates]
            order = np.lexsort((draws, category, image))
            turn[order] = _place_in_group(image[order], category[order])
        order = np.lexsort((draws, turn, image))
        place = _place_in_group(image[order])
        kept = place < most
        return candidates[order[kept]], place[kept]


def _place_in_group(*columns: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of rows that are equal in all columns."""
    rows = np.arange(len(columns[0]))
    begins = np.zeros(len(rows), bool)
    begins[:1] = True
    for column in columns:
        begins[1:] |= column[1:] != column[:-1]
    return rows - np.maximum.accumulate(np.where(begins, rows, 0))
