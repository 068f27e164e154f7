"""The data of a task: what is evaluated, and which classes there are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medpclip.data.loading.decode import decode
from medpclip.data.loading.geometry import Window
from medpclip.data.pictures import PictureError
from medpclip.data.schema import Region, Sample
from medpclip.data.shards import MANIFEST, ShardFolder
from medpclip.errors import MedpclipError
from medpclip.evaluation.task import Task
from medpclip.files import file_sha256


@dataclass
class Item:
    """One image."""

    folder: ShardFolder
    index: int
    sample: Sample

    def image(self) -> np.ndarray:
        """The decoded picture, uint8 (height, width, 3).

        Raises:
            MedpclipError: an unreadable picture, or one of another size than its JSON says, so that no box would fit.
        """
        extension = self.folder.rows[self.index].extension
        try:
            return decode(
                self.folder.image_bytes(self.index), extension, self.sample.width, self.sample.height, factor=1
            )[0]
        except PictureError as error:
            raise MedpclipError(
                f"{self.folder.where(self.index)}: {error.detail}; run 'medpclip data check {self.folder.folder}'"
            ) from None


@dataclass
class Source:
    """The images of one source, whatever folder they lie in.

    Attributes:
        items: the evaluated split's images.
        by_split: all images of the splits that the task needs: the evaluated one, and train and val where it has a probe.
        classes: region categories of all splits, sorted.
        train_boxes: unit boxes (x1, y1, x2, y2) of the train split's regions and their categories.
        pairs: kind of difference -> pairs of categories that differ by it alone, as the manifest states them.
    """

    name: str
    items: list[Item] = field(default_factory=list)
    by_split: dict[str, list[Item]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    train_boxes: list[tuple[np.ndarray, str]] = field(default_factory=list)
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


@dataclass
class Corpus:
    """All sources of a task.

    Attributes:
        sources: sorted by name; those without an image in the evaluated split are left out.
        labels: image-level label -> its values in any split, sorted.
        manifests: (folder's name, SHA-256 of its manifest), in the task's order.
    """

    sources: list[Source]
    labels: dict[str, list[str]]
    manifests: list[tuple[str, str]]

    @property
    def items(self) -> list[Item]:
        """The evaluated images of all sources."""
        return [item for source in self.sources for item in source.items]

    def split_items(self, split: str) -> list[Item]:
        """The images of a split of the same sources; none of one that the task doesn't need."""
        return [item for source in self.sources for item in source.by_split.get(split, [])]


def read_corpus(task: Task) -> Corpus:
    """Read the facts (not the images) of all samples of the task's folders.

    Raises:
        MedpclipError: an unreadable folder, one that is named twice, one without the task's split.
    """
    sources: dict[str, Source] = {}
    categories: dict[str, Counter[str]] = {}
    asked = [*(question.label for question in task.image), *(probe.label for probe in task.probe)]
    labels: dict[str, set[str]] = {label: set() for label in asked if label != "region"}
    splits = {task.split} | ({"train", "val"} if task.probe else set())
    manifests: dict[Path, tuple[str, str]] = {}
    for name in task.folders:
        path = Path(name).resolve()
        if path in manifests:
            raise MedpclipError(f"{name}: is named twice in the task's data; name it once")
        ShardFolder(name, task.split)  # refuses a folder without the split
        folder = ShardFolder(name)
        manifests[path] = (path.name, file_sha256(path / MANIFEST))
        for index, sample in enumerate(_samples(folder)):
            source = sources.setdefault(sample.source, Source(sample.source))
            source.pairs.update(_pairs(folder))
            categories.setdefault(sample.source, Counter()).update(r.category for r in sample.regions if not r.iscrowd)
            for label, values in labels.items():
                values.update(values_of(sample, label) or ())
            if sample.split in splits:
                source.by_split.setdefault(sample.split, []).append(Item(folder, index, sample))
            if sample.split == "train":
                source.train_boxes += _boxes(sample)
    for source in sources.values():
        source.classes = sorted(categories[source.name])
        source.items = source.by_split.get(task.split, [])
    evaluated = sorted((s for s in sources.values() if s.items), key=lambda s: s.name)
    return Corpus(evaluated, {k: sorted(v) for k, v in labels.items()}, list(manifests.values()))


def label_of(sample: Sample, label: str) -> str | None:
    """What a sample says to an image-level label, as text; None where it is silent or says none or several things."""
    values = values_of(sample, label)
    return values[0] if values is not None and len(values) == 1 else None


def values_of(sample: Sample, label: str) -> list[str] | None:
    """All that a sample says to an image-level label, as text; None where it is silent, an empty list for nothing."""
    value = sample.modality if label == "modality" else sample.labels.get(label.removeprefix("labels."))
    if value is None:
        return None
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def unit_box(region: Region, width: int, height: int) -> np.ndarray | None:
    """The region's box (else its mask's extent) in unit coordinates of the padded square, x1 y1 x2 y2, or None."""
    bbox = region.bbox
    if bbox is None and region.segmentation is not None:
        from pycocotools import mask as coco_mask

        from medpclip.data.schema import rle_bytes

        bbox = [float(v) for v in coco_mask.toBbox(rle_bytes(region.segmentation))]
    return None if bbox is None else Window.whole(width, height).unit_box(bbox)


def rng_for(seed: int, *names: object) -> np.random.Generator:
    """A generator that depends on the seed and the names only, not on what was drawn before."""
    digest = hashlib.sha256("\n".join(map(str, (seed, *names))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _samples(folder: ShardFolder) -> Iterator[Sample]:
    return (folder.sample(i) for i in range(len(folder)))


def _boxes(sample: Sample) -> list[tuple[np.ndarray, str]]:
    boxes = ((unit_box(r, sample.width, sample.height), r) for r in sample.regions if not r.iscrowd)
    return [(box, region.category) for box, region in boxes if box is not None]


def _pairs(folder: ShardFolder) -> dict[str, list[tuple[str, str]]]:
    given: Any = folder.manifest.get("pairs", {})
    where = f"{folder.folder}/{MANIFEST}: key 'pairs'"
    if not isinstance(given, dict) or not all(isinstance(rows, list) for rows in given.values()):
        raise MedpclipError(f"{where} is not an object of lists of two categories; build the shards again")
    for kind, rows in given.items():
        for row in rows:
            if not (isinstance(row, list) and len(row) == 2 and all(isinstance(c, str) for c in row)):
                raise MedpclipError(f"{where}: {kind!r} holds {row!r}, expected two categories; build the shards again")
    return {kind: [(a, b) for a, b in rows] for kind, rows in given.items()}
