"""What folders of shards hold, as numbers and as plain tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from medpclip.data.schema import Region, Sample
from medpclip.data.shards import ShardFolder


def folder_stats(folder: Path) -> dict[str, Any]:
    """The numbers of one folder.

    Returns:
        {"source", "samples", "regions", "groups",
        "splits": {split: {"samples", "groups", "regions", "modality": {term: samples}}},
        "categories": {term: {"regions", "images", "masks", "median_area"}}, "labels": {name: {value: images}},
        "quarantine": {reason: {...}}}; `median_area` is the share of the image that the mask covers, or else the box.
    """
    shards = ShardFolder(folder)
    splits: dict[str, dict[str, Any]] = {}
    groups: dict[str, set[str]] = {}
    areas: dict[str, list[float]] = {}
    images, masks = Counter[str](), Counter[str]()
    labels: dict[str, Counter[str]] = {}
    for i in range(len(shards)):
        sample = shards.sample(i)
        split = splits.setdefault(sample.split, {"samples": 0, "groups": 0, "regions": 0, "modality": Counter()})
        split["samples"] += 1
        split["regions"] += len(sample.regions)
        split["modality"][sample.modality] += 1
        groups.setdefault(sample.split, set()).add(sample.group)
        for name, value in sample.labels.items():
            labels.setdefault(name, Counter())[str(value)] += 1
        images.update({region.category for region in sample.regions})
        for region in sample.regions:
            masks[region.category] += region.segmentation is not None
            areas.setdefault(region.category, []).append(_relative_area(region, sample))
    for name, members in groups.items():
        splits[name]["groups"] = len(members)
    return {
        "source": shards.manifest.get("recipe", {}).get("name", folder.name),
        "samples": len(shards),
        "regions": sum(split["regions"] for split in splits.values()),
        "groups": len(set().union(*groups.values())),
        "splits": splits,
        "categories": {
            term: {
                "regions": len(values),
                "images": images[term],
                "masks": masks[term],
                "median_area": round(median(values), 6),
            }
            for term, values in sorted(areas.items(), key=lambda item: (-len(item[1]), item[0]))
        },
        "labels": {name: dict(counts.most_common()) for name, counts in labels.items()},
        "quarantine": shards.manifest.get("quarantine", {}),
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
        table(["category", "regions", "images", "masks", "median area"], categories),
        table(["label", "value", "images"], labels),
        table(["quarantined because", "images", "regions", "faults"], lost),
    ]
    return "\n\n".join([head, *filter(None, parts)])


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


def _relative_area(region: Region, sample: Sample) -> float:
    mask = region.mask()
    if mask is not None:
        return float(mask.mean())
    if region.bbox is None:
        return 0.0
    return region.bbox[2] * region.bbox[3] / (sample.width * sample.height)
