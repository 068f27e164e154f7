"""What is measured: a task file, typed."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medpclip.config import load
from medpclip.data.loading.prompting import PromptKind

ComparatorName = Literal["prompted", "unprompted", "crop", "prompted_crop", "mask_pooling", "box_geometry"]
COMPARATORS: tuple[ComparatorName, ...] = (
    "prompted",
    "unprompted",
    "crop",
    "prompted_crop",
    "mask_pooling",
    "box_geometry",
)
_FILL_INS = ("name", "description", "modality")


@dataclass
class Bootstrap:
    """Resampling of groups for the intervals.

    Attributes:
        draws: how many resamples.
        seed: of the resampling.
        level: coverage of the interval, in (0, 1).
    """

    draws: int = 1000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.draws < 1 or not 0 < self.level < 1:
            raise ValueError("draws must be at least 1 and level between 0 and 1")


@dataclass
class ImageTask:
    """Classification of whole images by the texts of the classes.

    Attributes:
        label: what is asked: "modality", or "labels.KEY" for a fact in the samples' labels.
        templates: texts with the fill-ins {name}, {description} and {modality}.
        classes: the candidates; null for all values found in the data, in any split.
    """

    label: str
    templates: list[str]
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        if self.label != "modality" and not (self.label.startswith("labels.") and len(self.label) > len("labels.")):
            raise ValueError(f"label is {self.label!r}, expected 'modality' or 'labels.KEY'")
        _check_templates(self.templates)
        if self.label == "modality" and any("modality" in fill_ins(t) for t in self.templates):
            raise ValueError("a template uses {modality}, which is what is asked; use {name}")
        _check_classes(self.classes)


@dataclass
class RegionTask:
    """Classification of regions by texts, each against the classes of its own source.

    Attributes:
        templates: texts with the fill-ins {name}, {description} and {modality}.
        prompts: how the regions are pointed at.
        classes: the candidates; null for the region classes that the source has in any split.
        max_regions_per_image: take a seeded choice of so many regions of an image; null for all.
    """

    templates: list[str]
    prompts: list[PromptKind] = field(default_factory=lambda: ["box", "point", "mask"])
    classes: list[str] | None = None
    max_regions_per_image: int | None = None

    def __post_init__(self) -> None:
        _check_templates(self.templates)
        _check_classes(self.classes)
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError("prompts must name one or more different prompt kinds")
        if self.max_regions_per_image is not None and self.max_regions_per_image < 1:
            raise ValueError("max_regions_per_image must be at least 1, or null for all")


@dataclass
class Task:
    """A task file.

    Attributes:
        name: heads the tables.
        data: a folder of shards, or several.
        split: which split is evaluated; the others serve for class lists and for the box-geometry classifier only.
        image: image-level questions.
        region: the region-level question; null for none.
        comparators: the ways to embed a region that are put side by side.
        seed: of the clicks, of the choice of regions and of the box-geometry classifier.
        batch_size: images in a forward.
        prompts_per_pass: prompts of one image in a forward; more are split. Neither changes results beyond rounding.
    """

    name: str
    data: str | list[str]
    split: Literal["train", "val", "test"] = "test"
    image: list[ImageTask] = field(default_factory=list)
    region: RegionTask | None = None
    comparators: list[ComparatorName] = field(default_factory=lambda: list(COMPARATORS))
    seed: int = 0
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    batch_size: int = 16
    prompts_per_pass: int = 64

    def __post_init__(self) -> None:
        if not self.folders:
            raise ValueError("data is empty; name a folder of shards")
        if not self.image and self.region is None:
            raise ValueError("there is neither an image nor a region section; add one")
        if not self.comparators or len(set(self.comparators)) < len(self.comparators):
            raise ValueError("comparators must name one or more different comparators")
        if self.batch_size < 1 or self.prompts_per_pass < 1 or self.seed < 0:
            raise ValueError("batch_size and prompts_per_pass must be at least 1, seed at least 0")

    @property
    def folders(self) -> list[str]:
        """The data folders, as a list."""
        return [self.data] if isinstance(self.data, str) else self.data


def load_task(path: Path, overrides: Sequence[str] = ()) -> Task:
    """A task from its YAML file and overrides as "region.prompts=[box]".

    Raises:
        MedpclipError: no such file, unknown key, value of another type.
    """
    return load(Task, path, overrides)


def fill_ins(template: str) -> set[str]:
    """The names in a template's braces."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def _check_templates(templates: list[str]) -> None:
    if not templates:
        raise ValueError("templates is empty; give at least one text such as '{name}'")
    for template in templates:
        try:
            names = fill_ins(template)
        except ValueError as error:
            raise ValueError(f"template {template!r} is malformed ({error})") from None
        if unknown := names - set(_FILL_INS):
            raise ValueError(
                f"template {template!r} has the unknown fill-in {min(unknown)!r}; known: {', '.join(_FILL_INS)}"
            )
        if not names & {"name", "description"}:
            raise ValueError(
                f"template {template!r} has neither {{name}} nor {{description}}: all classes would read alike"
            )


def _check_classes(classes: list[str] | None) -> None:
    if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes) or "" in classes):
        raise ValueError(f"classes are {classes}, expected two or more different terms, or null")
