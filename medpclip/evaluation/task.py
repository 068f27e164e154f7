"""What is measured: a task file, typed."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from medpclip.config import load
from medpclip.data.loading.prompting import PromptKind

OWN: tuple[str, ...] = (
    "prompted",
    "prompted_crop",
)  # the model's own region embedding; that of a crop with a box around it
BOX_GEOMETRY = "box_geometry"
WRONG_REGION = "of wrong region"  # ends the name of a prompt that points at another region than is asked about
ComparatorName = Literal[
    "prompted",
    "unprompted",
    "crop",
    "context_crop",
    "prompted_crop",
    "blurred",
    "greyed",
    "drawn_circle",
    "drawn_box",
    "mask_pooling",
    "roi_align",
    "box_geometry",
]
COMPARATORS: tuple[ComparatorName, ...] = get_args(ComparatorName)
ImagePrompt = Literal["none", "full_box", "small_box", "irrelevant_box"]
Corruption = Literal["noise", "blur", "jpeg", "brightness", "contrast"]
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
        terms: label value -> the term that says it in words, where that isn't the value itself.
        kind: "multi_class", or "multi_label" where an image may have several of the classes, or none.
        positive: of two classes the one that is looked for: adds AUROC, average precision, sensitivity and specificity.
        negatives: multi_label: texts for "there is no {name}", which each class is weighed against.
        prompts: what answers: "none" is the image embedding; the others are the region embedding of a box around all of
            the image, of a small one at a random place, or of a small one that meets no annotated region.
    """

    label: str
    templates: list[str]
    classes: list[str] | None = None
    terms: dict[str, str] = field(default_factory=dict)
    kind: Literal["multi_class", "multi_label"] = "multi_class"
    positive: str | None = None
    negatives: list[str] = field(default_factory=lambda: ["no {name}"])
    prompts: list[ImagePrompt] = field(default_factory=lambda: ["none"])

    def __post_init__(self) -> None:
        if not _is_image_label(self.label):
            raise ValueError(f"label is {self.label!r}, expected 'modality' or 'labels.KEY'")
        _check_templates(self.templates)
        if self.label == "modality" and any("modality" in fill_ins(t) for t in self.templates):
            raise ValueError("a template uses {modality}, which is what is asked; use {name}")
        _check_classes(self.classes)
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError("prompts must name one or more different ways to ask")
        if self.kind == "multi_label":
            _check_templates(self.negatives)
            if self.positive is not None:
                raise ValueError("'positive' is for two classes that exclude one another; leave it out of multi_label")
        elif self.positive and self.classes and (len(self.classes) != 2 or self.positive not in self.classes):
            raise ValueError(f"'positive' is {self.positive!r}, expected one of two classes")


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
class RetrievalTask:
    """Finding texts by images or regions, and the reverse, within each source.

    Attributes:
        kind: "caption" (images and their captions) or "region" (regions and the texts of their classes).
        k: depths. recall@k is the share of queries with a right candidate among the first k; the other usual definition,
            the share of a query's right candidates that are among them, is reported as found@k.
        prompts: region only: how the regions are pointed at.
        templates: region only: the wording of a class is the mean over them.
    """

    kind: Literal["caption", "region"]
    k: list[int] = field(default_factory=lambda: [1, 5, 10])
    prompts: list[PromptKind] = field(default_factory=lambda: ["box"])
    templates: list[str] = field(default_factory=lambda: ["{name}"])

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise ValueError(f"k is {self.k}, expected different numbers of at least 1")
        if not self.prompts:
            raise ValueError("prompts is empty; name a prompt kind")
        _check_different("prompts", self.prompts)
        _check_templates(self.templates)


@dataclass
class ProbeTask:
    """What simple classifiers make of frozen embeddings: trained on the train split, chosen on val, measured on `split`.

    Attributes:
        label: "modality" or "labels.KEY" (image embeddings), or "region" (region embeddings, each source by itself).
        methods: "linear" (logistic regression, its strength chosen on val) and "knn" (cosine, weighted by similarity).
        neighbours: of knn.
        shots: so many cases of each class to learn from, a seeded choice; null for all.
        prompts: region only.
    """

    label: str
    methods: list[Literal["linear", "knn"]] = field(default_factory=lambda: ["linear", "knn"])
    neighbours: int = 20
    shots: int | None = None
    prompts: list[PromptKind] = field(default_factory=lambda: ["box"])

    def __post_init__(self) -> None:
        if self.label != "region" and not _is_image_label(self.label):
            raise ValueError(f"label is {self.label!r}, expected 'modality', 'labels.KEY' or 'region'")
        if self.neighbours < 1 or (self.shots is not None and self.shots < 1):
            raise ValueError("expected 'neighbours' and 'shots' of at least 1")
        if not self.methods or not self.prompts:
            raise ValueError("methods or prompts is empty; name one")
        _check_different("prompts", self.prompts)


def _prompted() -> list[ComparatorName] | None:
    return ["prompted"]


@dataclass
class RobustnessTask:
    """The region question again, with worse prompts and worse images; for the model's own embedding and the comparators.

    Attributes:
        prompts: which prompt kinds are disturbed.
        jitter: each side of a box (a mask's extent, a click by the same) moves by up to so much of the box's size.
        wrong: with the prompt of a region of another class of the same image.
        missing: with a prompt that says nothing.
        empty_mask: with a mask that covers nothing.
        tiny: also apart for regions of less than this share of the image; null for not.
        corruptions: changes to the picture, each at every severity.
        severities: from 1 (hardly seen) to 5.
        comparators: null for the task's.
    """

    prompts: list[PromptKind] = field(default_factory=lambda: ["box"])
    jitter: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.3])
    wrong: bool = True
    missing: bool = True
    empty_mask: bool = True
    tiny: float | None = 0.002
    corruptions: list[Corruption] = field(default_factory=list)
    severities: list[int] = field(default_factory=lambda: [1, 3, 5])
    comparators: list[ComparatorName] | None = field(default_factory=_prompted)

    def __post_init__(self) -> None:
        if any(not 0 < share <= 1 for share in self.jitter) or any(not 1 <= s <= 5 for s in self.severities):
            raise ValueError("expected 'jitter' of more than 0 and at most 1, 'severities' from 1 to 5")
        for key in ("prompts", "jitter", "corruptions", "severities"):
            _check_different(key, getattr(self, key))


@dataclass
class Published:
    """A figure that others have published for this task.

    Attributes:
        model: which model.
        metric: as its source names it.
        value: in percent.
        source: where it stands: paper and table, or address.
        note: what differs from this task, or isn't known.
    """

    model: str
    metric: str
    value: float
    source: str
    note: str = ""


@dataclass
class Task:
    """A task file.

    Attributes:
        name: heads the tables.
        data: a folder of shards, or several.
        split: which split is evaluated; the others serve for class lists and for the box-geometry classifier only.
        image: image-level questions.
        region: the region-level question; null for none.
        retrieval, probe, robustness: more questions.
        calibration_bins: of the reliability curves.
        published: figures to compare with.
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
    retrieval: list[RetrievalTask] = field(default_factory=list)
    probe: list[ProbeTask] = field(default_factory=list)
    robustness: RobustnessTask | None = None
    calibration_bins: int = 15
    published: list[Published] = field(default_factory=list)
    comparators: list[ComparatorName] = field(default_factory=lambda: list(COMPARATORS))
    seed: int = 0
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    batch_size: int = 16
    prompts_per_pass: int = 64

    def __post_init__(self) -> None:
        if not self.folders:
            raise ValueError("data is empty; name a folder of shards")
        if not (self.image or self.region or self.retrieval or self.probe):
            raise ValueError("there is nothing to measure; add a section image, region, retrieval or probe")
        for what in sorted(asked := _questions(self)):
            if asked[what] > 1:
                raise ValueError(f"{what} is asked {asked[what]} times, under one name in results; split the task")
        if self.robustness is not None and self.region is None:
            raise ValueError("robustness disturbs the region question; add a section region")
        if self.calibration_bins < 2:
            raise ValueError(f"calibration_bins is {self.calibration_bins}, expected at least 2")
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


def _questions(task: Task) -> Counter[str]:
    """How often each question is asked, in the words by which results tell questions apart."""
    found = Counter(f"image label {q.label!r} ({q.kind})" for q in task.image)
    found.update(f"retrieval of kind {r.kind!r}" for r in task.retrieval)
    for p in task.probe:
        shots = "" if p.shots is None else f", {p.shots} shots"
        found.update(f"probe of {p.label!r} ({method}{shots})" for method in p.methods)
    return found


def _is_image_label(label: str) -> bool:
    return label == "modality" or (label.startswith("labels.") and label != "labels.")


def _check_different(key: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{key} is {list(values)}, where one is named twice")


def _check_templates(templates: list[str]) -> None:
    if not templates:
        raise ValueError("templates is empty; give at least one text such as '{name}'")
    for template in templates:
        try:
            names = fill_ins(template)
            if not names - set(_FILL_INS):
                template.format(**dict.fromkeys(_FILL_INS, "x"))
        except (ValueError, IndexError, AttributeError, KeyError, TypeError) as error:
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
