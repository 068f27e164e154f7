"""What folders of shards hold, as numbers and as plain tables."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from medpclip.data.schema import Region, Sample, run_lengths
from medpclip.data.shards import ShardFolder
from medpclip.progress import Progress

GRID = 24  # cells of the map of region centres, each way
_RESERVOIR = 4096  # values kept of each category: beyond, quantiles are of a random choice


class Reservoir:
    """A uniform random choice of a stream's values, in bounded memory (Vitter 1985, algorithm R)."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.seen = 0
        self._random = random.Random(0)  # the same stream gives the same choice

    def add(self, value: float) -> None:
        self.seen += 1
        if len(self.values) < _RESERVOIR:
            self.values.append(value)
        elif (place := self._random.randrange(self.seen)) < _RESERVOIR:
            self.values[place] = value


@dataclass
class CategoryTally:
    """What was seen of one category.

    Attributes:
        areas: shares of the image that its masks, or else boxes, cover.
        centres: int64 (24, 24): regions by the place of their centre, as a share of the image's height and width.
        splits: split -> regions.
    """

    regions: int = 0
    images: int = 0
    masks: int = 0
    areas: Reservoir = field(default_factory=Reservoir)
    centres: np.ndarray = field(default_factory=lambda: np.zeros((GRID, GRID), np.int64))
    splits: Counter[str] = field(default_factory=Counter)


@dataclass
class FolderTally:
    """One pass over a folder: what tables and plots are made of. Memory grows with groups, volumes and categories only.

    Attributes:
        regions_per_image: regions -> images.
        sizes: (width, height) -> images.
        burned_in: why text is suspected in the pixels -> images.
    """

    source: str
    quarantine: dict[str, dict[str, int]]
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, set[str]] = field(default_factory=dict)
    categories: dict[str, CategoryTally] = field(default_factory=dict)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    regions_per_image: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    burned_in: Counter[str] = field(default_factory=Counter)
    volumes: set[str] = field(default_factory=set)
    slices: int = 0
    captions: int = 0
    captioned: int = 0

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        split = self.splits.setdefault(sample.split, {"samples": 0, "groups": 0, "regions": 0, "modality": Counter()})
        split["samples"] += 1
        split["regions"] += len(sample.regions)
        split["modality"][sample.modality] += 1
        self.groups.setdefault(sample.split, set()).add(sample.group)
        self.regions_per_image[len(sample.regions)] += 1
        self.sizes[sample.width, sample.height] += 1
        self.captions += len(sample.captions)
        self.captioned += bool(sample.captions)
        if sample.volume is not None:
            self.slices += 1
            self.volumes.add(str(sample.volume.get("id")))
        if reason := sample.extra.get("burned_in_text"):
            self.burned_in[str(reason)] += 1
        for name, value in sample.labels.items():
            counts = self.labels.setdefault(name, Counter())
            counts.update(map(str, value) if isinstance(value, list) else [str(value)])
        for term in {region.category for region in sample.regions}:
            self.categories.setdefault(term, CategoryTally()).images += 1
        for region in sample.regions:
            self._add_region(region, sample)

    def _add_region(self, region: Region, sample: Sample) -> None:
        tally = self.categories[region.category]
        tally.regions += 1
        tally.masks += region.segmentation is not None
        tally.splits[sample.split] += 1
        area, (x, y) = _area_and_centre(region, sample)
        tally.areas.add(area)
        row, column = min(int(y * GRID), GRID - 1), min(int(x * GRID), GRID - 1)
        tally.centres[max(row, 0), max(column, 0)] += 1

    def ordered(self) -> list[tuple[str, CategoryTally]]:
        """The categories, the most frequent first."""
        return sorted(self.categories.items(), key=lambda item: (-item[1].regions, item[0]))


def tally_folder(folder: Path, progress: bool = False) -> FolderTally:
    """Count a folder's samples; images are not opened."""
    shards = ShardFolder(folder)
    name = shards.manifest.get("recipe", {}).get("name", folder.name)
    tally = FolderTally(name, shards.manifest.get("quarantine", {}))
    with Progress(folder.name, len(shards), shown=progress) as bar:
        for i in range(len(shards)):
            tally.add(shards.sample(i))
            bar.advance()
    for split, members in tally.groups.items():
        tally.splits[split]["groups"] = len(members)
    return tally


def folder_stats(folder: Path) -> dict[str, Any]:
    """The numbers of one folder, as `stats_json` has them."""
    return stats_json(tally_folder(folder))


def stats_json(tally: FolderTally) -> dict[str, Any]:
    """The numbers of one folder.

    Returns:
        {"source", "samples", "regions", "groups",
        "splits": {split: {"samples", "groups", "regions", "modality": {term: samples}}},
        "categories": {term: {"regions", "images", "masks", "median_area"}}, "labels": {name: {value: images}},
        "captions": {"images", "texts"}, "volumes": {"volumes", "slices"}, "burned_in_text": {why: images},
        "quarantine": {reason: {...}}}; `median_area` is the share of the image that the mask covers, or else the box.
    """
    return {
        "source": tally.source,
        "samples": sum(split["samples"] for split in tally.splits.values()),
        "regions": sum(split["regions"] for split in tally.splits.values()),
        "groups": len(set().union(*tally.groups.values())),
        "splits": tally.splits,
        "categories": {
            term: {
                "regions": c.regions,
                "images": c.images,
                "masks": c.masks,
                "median_area": round(median(c.areas.values), 6),
            }
            for term, c in tally.ordered()
        },
        "labels": {name: dict(counts.most_common()) for name, counts in tally.labels.items()},
        "captions": {"images": tally.captioned, "texts": tally.captions},
        "volumes": {"volumes": len(tally.volumes), "slices": tally.slices},
        "burned_in_text": dict(sorted(tally.burned_in.items())),
        "quarantine": tally.quarantine,
    }


def format_stats(stats: dict[str, Any]) -> str:
    """The numbers of `folder_stats` as plain tables."""
    head = f"{stats['source']}: {stats['samples']} images, {stats['regions']} regions, {stats['groups']} groups"
    splits = [
        [
            name,
            split["samples"],
            split["groups"],
            split["regions"],
            ", ".join(f"{modality} {count}" for modality, count in sorted(split["modality"].items())),
        ]
        for name, split in stats["splits"].items()
    ]
    categories = [
        [term, c["regions"], c["images"], c["masks"], f"{100 * c['median_area']:.2f} %"]
        for term, c in stats["categories"].items()
    ]
    labels = [[name, value, n] for name, counts in stats["labels"].items() for value, n in counts.items()]
    lost = [[reason, c["images"], c["regions"], c["faults"]] for reason, c in stats["quarantine"].items()]
    parts = [
        table(["split", "images", "groups", "regions", "modalities"], splits),
        table(["also there", "count"], _extras(stats)),
        table(["category", "regions", "images", "masks", "median area"], categories),
        table(["label", "value", "images"], labels),
        table(["quarantined because", "images", "regions", "faults"], lost),
    ]
    return "\n\n".join([head, *filter(None, parts)])


def _extras(stats: dict[str, Any]) -> list[list[Any]]:
    rows = [
        ["images with captions", stats["captions"]["images"]],
        ["captions", stats["captions"]["texts"]],
        ["volumes", stats["volumes"]["volumes"]],
        ["slices of volumes", stats["volumes"]["slices"]],
    ]
    suspicion = {"declared": "their own header says so or leaves it open", "modality": "usual for their modality"}
    rows += [
        [f"images with text suspected: {suspicion.get(why, why)}", n] for why, n in stats["burned_in_text"].items()
    ]
    return [row for row in rows if row[1]]


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows below their headings, numbers to the right; empty without rows."""
    if not rows:
        return ""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    right = [all(c[i].removesuffix(" %").replace(".", "").isdecimal() for c in cells) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        fields = zip(row, widths, right, strict=True)
        return "  ".join(text.rjust(width) if r else text.ljust(width) for text, width, r in fields).rstrip()

    return "\n".join([line(columns), "  ".join("-" * width for width in widths), *map(line, cells)])


def _area_and_centre(region: Region, sample: Sample) -> tuple[float, tuple[float, float]]:
    """The share of the image that a region covers, and its centre (x, y) as shares of width and height.

    Areas come from the run lengths; the centre is the box's, or else the mean of the mask or of the points.
    """
    width, height = sample.width, sample.height
    area = 0.0
    centre: tuple[float, float] | None = None
    if region.segmentation is not None:
        runs = run_lengths(region.segmentation["counts"], width * height)
        area = float(runs[1::2].sum()) / (width * height)
        if region.bbox is None:  # rare: builds give each mask its box
            mask = region.mask()
            assert mask is not None
            y, x = np.argwhere(mask).mean(axis=0) + 0.5
            centre = (float(x) / width, float(y) / height)
    if region.bbox is not None:
        x, y, w, h = region.bbox
        centre = ((x + w / 2) / width, (y + h / 2) / height)
        if region.segmentation is None:
            area = w * h / (width * height)
    if centre is None:
        x, y = np.mean(np.asarray(region.points, float), axis=0)
        centre = (float(x) / width, float(y) / height)
    return area, centre
