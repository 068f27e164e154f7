"""What a model said, before any metric: the hand-over from running tasks to results, reports and comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from medpclip.data.schema import Region
from medpclip.evaluation.corpus import Item

Section = Literal["image", "multi_label", "region", "retrieval", "probe", "robustness"]
SECTIONS: tuple[Section, ...] = ("image", "multi_label", "region", "retrieval", "probe", "robustness")


@dataclass
class Case:
    """What is asked about: an image, or one region of it.

    Attributes:
        item: the image.
        true: index of its class; -1 where there is none (retrieval, several labels).
        region: the region; None for the image.
    """

    item: Item
    true: int
    region: Region | None = None

    @property
    def group(self) -> tuple[str, str]:
        """What is resampled: patient or study of a source."""
        return self.item.sample.source, self.item.sample.group

    @property
    def area(self) -> float | None:
        """A region's share of its image (mask, else box); None for an image or a bare point."""
        if self.region is None:
            return None
        pixels = self.item.sample.width * self.item.sample.height
        if self.region.segmentation is not None:
            from pycocotools import mask as coco_mask

            from medpclip.data.schema import rle_bytes

            return float(coco_mask.area(rle_bytes(self.region.segmentation))) / pixels
        return None if self.region.bbox is None else self.region.bbox[2] * self.region.bbox[3] / pixels


@dataclass
class Scores:
    """Log-probabilities of the candidates for n cases (logarithms, so that the smallest still compare).

    Attributes:
        section: which part of the task asked: image, region, probe, robustness.
        name: the source (regions) or the label (images).
        classes: the candidates, C of them.
        values: (prompt, comparator) -> float32 (n, C); rows of NaN where a case can't be asked so. Embeddings give
            the log-softmax over candidates of cosine times the model's logit scale. -inf for a candidate that doesn't
            exclude the case's class, as `without_related` leaves it. `prompt` is a prompt kind ("box"), "image" for the
            image embedding, or a variant ("box jittered 10%").
        mixed: regions: whether some image holds several classes, so that an image embedding can't answer for all.
        pairs: regions: kind of difference -> pairs of classes.
        positive: a two-class question with a class that is looked for: its index; None otherwise.
    """

    section: Section
    name: str
    classes: list[str]
    cases: list[Case]
    values: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    mixed: bool = False
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    positive: int | None = None

    @property
    def true(self) -> np.ndarray:
        """(n,) class indices."""
        return np.array([case.true for case in self.cases], np.int64)


@dataclass
class MultiLabelScores:
    """For each of n images and C labels how much the model says for it.

    Attributes:
        name: the label's key.
        classes: C labels.
        truth: (n, C) int8: 1 true, 0 false, -1 unknown.
        values: (prompt, comparator) -> float32 (n, C): the log-probability of "there is C" against "there is no C".
    """

    name: str
    classes: list[str]
    cases: list[Case]
    truth: np.ndarray
    values: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


@dataclass
class Ranking:
    """Retrieval: for n queries where the right candidates stand.

    Attributes:
        name: direction and source, as "image to text: cxr_lungboxes".
        cases: the queries' cases (text queries: the case that the text belongs to, the first of them).
        candidates: how many there are to choose from.
        best_rank: (prompt, comparator) -> int64 (n,): 0-based rank of the best-placed right candidate; equals before it
            count half, rounded up; -1 where a case can't be asked so.
        found: (prompt, comparator) -> k -> float32 (n,): share of the right candidates among the first k.
    """

    name: str
    cases: list[Case]
    candidates: int
    best_rank: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    found: dict[tuple[str, str], dict[int, np.ndarray]] = field(default_factory=dict)


@dataclass
class Evaluation:
    """All that was measured of a task, and what was not and why.

    Attributes:
        scores: of the sections image, region, probe and robustness, in the task's order.
        speed: "regions per second: COMPARATOR" and "images per second", where they were measured and not cached; never
            part of result.json's reproducible part.
    """

    scores: list[Scores]
    multi_label: list[MultiLabelScores] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)

    def of(self, section: Section) -> list[Scores]:
        """Those of one section."""
        return [scores for scores in self.scores if scores.section == section]
