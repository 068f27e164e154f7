"""What is trained and measured for each table of docs/results.md: data, no code that does anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

SOURCES = (
    "bccd_blood",
    "brain_mri_tumor",
    "brca_m2c_histology",
    "btcv_ct",
    "chula_rbc12",
    "cxr_lungboxes",
    "cxr_structures",
    "dsb2018_nuclei",
    "isic2017_derm",
    "kvasir_polyp",
    "usgra_nerve_us",
)  # those with enough groups to split: of ham10000_mini, sct_spine_mri and dicom_small a split may stay empty
SPLIT = {"train": 0.6, "val": 0.15, "test": 0.25}
PROMPTS = ("box", "point", "mask")
# What a step of launch/evidence.yaml holds on average, for FLOPs before anything has run.
IMAGES, REGIONS, TEXTS = 32, 70, 62  # texts: unless a run says otherwise

# Several region classes occur in one image; brain_mri_tumor has one tumour in each.
MIXED = (
    "bccd_blood",
    "brca_m2c_histology",
    "btcv_ct",
    "chula_rbc12",
    "cxr_lungboxes",
    "cxr_structures",
    "usgra_nerve_us",
)
REGION_SOURCES = (*MIXED, "brain_mri_tumor")

TASK = "eval/evidence.yaml"
ROBUSTNESS = "eval/evidence-robustness.yaml"

BEST = "best comparator"  # by validation, for each prompt kind

Layout = Literal["regions", "validation", "images", "sources", "terms", "robustness"]


@dataclass(frozen=True)
class Run:
    """One training, of which there is one for each seed.

    Attributes:
        name: its folder's, with the steps behind it.
        overrides: of launch/evidence.yaml.
        without: sources that training doesn't see.
        after: name of the run of the same table that it starts from.
        asked: overrides of the task file by which it is measured.
        texts: unique texts of a typical step, as its log told.
    """

    name: str
    overrides: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    after: str | None = None
    asked: tuple[str, ...] = ()
    texts: int = TEXTS


@dataclass(frozen=True)
class Table:
    """Attributes:
    name, title: of the table.
    runs: its rows, or what they are made of.
    layout: which figures it shows.
    against: what rows are compared with: a run's name, "best comparator" (the best of `COMPARATORS` by validation, for each
        prompt kind), or "" for nothing.
    task: the task file by which its runs are measured.
    equal_compute: scale each run's steps so that it has the FLOPs of the run that --budget names.
    terms: left out of training; layout "terms" only.
    """

    name: str
    title: str
    runs: tuple[Run, ...]
    layout: Layout = "regions"
    against: str = ""
    task: str = TASK
    equal_compute: bool = False
    terms: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """On which its runs are measured: the validation split where something is chosen."""
        if self.layout == "validation":
            return ("val",)
        return ("val", "test") if self.layout == "regions" else ("test",)


# Widths of the prompt encoder at which all models have within 3 % as many parameters.
_PROMPT_DIM = {"conditioned": 32}


def _kind(kind: str) -> Run:
    width = _PROMPT_DIM.get(kind)
    return Run(kind, (f"model.fusion.kind={kind}", *([f"model.fusion.prompt_dim={width}"] if width else [])))


def _tokens(name: str, *overrides: str) -> Run:
    return Run(name, overrides)


# Of a run that only a table of regions shows: the rest of the task isn't looked at.
REGIONS_ALONE = ("image=[]", "retrieval=[]")


def _part(name: str, *overrides: str) -> Run:
    return Run(name, overrides, asked=REGIONS_ALONE)


TOKENS = _kind("region_tokens")
GLIMPSE = _tokens("glimpse_4", "model.fusion.glimpse=4")
GLIMPSE_6 = _tokens("glimpse_6", "model.fusion.glimpse=6")
CONDITIONED = _kind("conditioned")
# Region tokens as they were at first: what being told the place in numbers, as no crop is, adds to them.
NO_PLACE = _tokens("no_place", "model.fusion.parts=[start,keys,values,logits]")
OURS = (TOKENS, GLIMPSE, GLIMPSE_6, CONDITIONED)
COMPARATORS = tuple(
    _kind(kind)
    for kind in (
        "unprompted",
        "crop",
        "context_crop",
        "placed_crop",
        "blurred",
        "greyed",
        "drawn_circle",
        "drawn_box",
        "alpha_channel",
        "mask_pooling",
        "roi_align",
    )
)
# Those that the more costly questions are asked of; choose them by the main table's validation.
FINALISTS = (TOKENS, GLIMPSE, _kind("placed_crop"))


def _plain_bare(run: Run) -> Run:
    """The same taught by plain InfoNCE and bare names, and asked by them."""
    overrides = (*run.overrides, "loss.positives=plain", "data.texts.bare=true")
    asked = (*REGIONS_ALONE, "region.templates=['{name}']")
    return Run(f"{run.name}_plain_bare", overrides, asked=asked, texts=51)


_ABLATIONS = (
    TOKENS,
    _part("no_keys", "model.fusion.parts=[start,place,values,logits]"),
    _part("no_values", "model.fusion.parts=[start,place,keys,logits]"),
    _part("no_keys_no_values", "model.fusion.parts=[start,place,logits]"),
    _part("no_logits", "model.fusion.parts=[start,place,keys,values]"),
    _part("no_start", "model.fusion.parts=[place,keys,values,logits]"),
    NO_PLACE,
    _part("start_and_place_alone", "model.fusion.parts=[start,place]"),
    _part("last_block", "model.fusion.depths=[5]"),
    _part("last_3_blocks", "model.fusion.depths=[3,4,5]"),
    _part("glimpse_2", "model.fusion.glimpse=2"),
    GLIMPSE,
    GLIMPSE_6,
    _part("mean_positives", "loss.positives=mean"),
    replace(_part("plain_infonce", "loss.positives=plain"), texts=92),
    # Asked by what it was taught: a template would be news to it.
    replace(
        _part("bare_names", "data.texts.bare=true"),
        asked=(*REGIONS_ALONE, "region.templates=['{name}']"),
        texts=51,
    ),
    # What wins, together.
    replace(_part("glimpse_6_plain", *GLIMPSE_6.overrides, "loss.positives=plain"), texts=92),
    _plain_bare(GLIMPSE_6),
)

IMAGE_ONLY = _tokens("image_only", "loss.region_weight=0")
_ANCHORING = (
    IMAGE_ONLY,
    # As many steps again of the same, so that what regions do isn't mixed with what more steps do.
    replace(_tokens("then_images", "loss.region_weight=0"), after="image_only"),
    replace(_tokens("then_regions"), after="image_only"),
    replace(_tokens("then_regions_anchored", "loss.anchor_weight=0.5"), after="image_only"),
)

# As much of the loss for images as for regions; launch/evidence.yaml has three tenths.
_EQUAL = tuple(
    replace(run, name=f"{run.name}_equal_weights", overrides=(*run.overrides, "loss.image_weight=1"))
    for run in (TOKENS, GLIMPSE)
)

RATES = (3.0e-4, 1.2e-3)  # beside that of launch/evidence.yaml


_RATE = "-lr"


def _at_rate(run: Run, rate: float) -> Run:
    return replace(run, name=f"{run.name}{_RATE}{rate:g}", overrides=(*run.overrides, f"optimizer.lr={rate}"))


def is_comparator(name: str) -> bool:
    """Whether a run is one of `COMPARATORS`, at whatever rate."""
    return name.split(_RATE)[0] in {run.name for run in COMPARATORS}


def is_ours(name: str) -> bool:
    """Whether a run is one of `OURS`, at whatever rate."""
    return name.split(_RATE)[0] in {run.name for run in OURS}


# The best at equal compute, of ours and of comparators.
_POOLED = (_kind("mask_pooling"), _kind("roi_align"))
_CONTENDERS = (GLIMPSE, GLIMPSE_6, *_POOLED)


# What a training doesn't see, and is tested on: lungs from one source or the other, red cells likewise. Radiographs and
# smears have no class in common, so one training can go without a source of each. Both lung sources show patients of one
# collection; groups keep them apart.
UNSEEN = (("cxr_lungboxes", "bccd_blood"), ("cxr_structures", "chula_rbc12"))
ELSEWHERE = ("left lung", "right lung", "red blood cell")  # that the other source of each has, or kinds of it
TERMS = ("spleen", "stomach", "lymphocyte", "white blood cell", "nerve", "target cell", "airway")
_WITHOUT_TERMS = f"data.leave_out_terms=[{','.join(TERMS)}]"


_WITHOUT = "-without-"


def _without(run: Run, sources: tuple[str, ...]) -> Run:
    return replace(run, name=f"{run.name}{_WITHOUT}{'-'.join(sources)}", without=sources, asked=REGIONS_ALONE)


def way_of(run: Run) -> str:
    """The name of the run that is the same but for the sources that it doesn't see."""
    return run.name.split(_WITHOUT)[0]


TABLES = {
    table.name: table
    for table in (
        Table("main", "Ways to point, at equal steps", (*OURS, NO_PLACE, *COMPARATORS), against=BEST),
        Table(
            "compute",
            "Ways to point, at equal compute",
            (*OURS, *COMPARATORS),
            against=BEST,
            equal_compute=True,
        ),
        Table(
            "rates",
            "Half and twice the learning rate, on validation",
            tuple(
                way
                for run in (*FINALISTS, _kind("mask_pooling"))
                for way in (run, *(_at_rate(run, rate) for rate in RATES))
            ),
            layout="validation",
        ),
        Table(
            "compute_rates",
            "Half the learning rate, at equal compute",
            (*_CONTENDERS, *(_at_rate(run, RATES[0]) for run in (GLIMPSE, *_POOLED)), _kind("greyed")),
            against=BEST,
            equal_compute=True,
        ),
        Table("ablations", "Parts of region tokens", _ABLATIONS, against="region_tokens"),
        Table(
            "again",
            "What wins together, beside the best comparator that is taught alike",
            (_plain_bare(GLIMPSE_6), _plain_bare(_kind("placed_crop"))),
            against="placed_crop_plain_bare",
        ),
        Table("anchoring", "Anchoring to the image-only stage", _ANCHORING, layout="images", against="then_images"),
        Table(
            "image_level",
            "Image level, beside the twin without regions",
            (IMAGE_ONLY, TOKENS, GLIMPSE, CONDITIONED, *_EQUAL),
            layout="images",
            against="image_only",
        ),
        Table(
            "unseen_sources",
            "Sources that training didn't see",
            (*FINALISTS, *(_without(run, sources) for sources in UNSEEN for run in FINALISTS)),
            layout="sources",
        ),
        Table(
            "unseen_terms",
            "Terms that training didn't see",
            (
                TOKENS,
                _part("left_out", _WITHOUT_TERMS),
                replace(
                    _part("left_out_descriptions", _WITHOUT_TERMS, "data.texts.descriptions=0.5"),
                    asked=(*REGIONS_ALONE, "region.templates=['{name}: {description}', '{name}']"),
                ),
            ),
            layout="terms",
            terms=TERMS,
        ),
        Table("robustness", "Worse prompts and worse images", FINALISTS, layout="robustness", task=ROBUSTNESS),
    )
}
