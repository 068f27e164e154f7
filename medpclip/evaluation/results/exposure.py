"""Whether training saw what is measured. Only an unseen source and an unseen term are called zero-shot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from medpclip.config import from_mapping
from medpclip.errors import MedpclipError

Exposure = Literal["unknown", "seen source", "unseen source", "unseen term"]
# From what proves least about new data to what proves most.
EXPOSURES: tuple[Exposure, ...] = ("unknown", "seen source", "unseen source", "unseen term")


@dataclass
class TrainedOn:
    """What a checkpoint's training saw, and that of the checkpoints it began with. What weights of others saw is not in it.

    Attributes:
        splits: of the manifests.
        sources: names of the samples' sources.
        terms: categories of the regions.
        manifests: SHA-256 of each folder's manifest.
    """

    splits: list[str]
    sources: list[str]
    terms: list[str]
    manifests: list[str]


def read_trained_on(meta: dict[str, Any], where: str) -> TrainedOn | None:
    """The block `trained_on` of a checkpoint's meta.json; None where there is none.

    Args:
        meta: the parsed file; keys of the block that this version doesn't know are passed over.
        where: the file, for messages.

    Raises:
        MedpclipError: a block of another form.
    """
    block = meta.get("trained_on")
    if block is None:
        return None
    if not isinstance(block, dict):
        raise MedpclipError(f"{where}: key 'trained_on' is no object; take another checkpoint")
    known = {f.name for f in fields(TrainedOn)}
    return from_mapping(TrainedOn, {k: v for k, v in block.items() if k in known}, f"{where}: key 'trained_on'")


def exposure_of(trained: TrainedOn | None, sources: Iterable[str], terms: Iterable[str] | None) -> Exposure:
    """What training saw of some cases.

    Args:
        trained: None for a model of which it isn't known.
        sources: where the cases come from; one that was seen counts for all.
        terms: the regions' classes, of which the model has seen none for an "unseen term"; None for whole images,
            whose classes are no region terms.
    """
    if trained is None:
        return "unknown"
    if terms is not None and not set(terms) & set(trained.terms):
        return "unseen term"
    return "seen source" if set(sources) & set(trained.sources) else "unseen source"


def least(exposures: Iterable[Exposure]) -> Exposure:
    """What can be said of several together."""
    return min(exposures, key=EXPOSURES.index)


def trained_on_warnings(trained: TrainedOn | None, split: str, manifests: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each folder (name, SHA-256 of its manifest) whose evaluated split the model was trained on."""
    if trained is None or split not in trained.splits:
        return []
    return [
        f"the model was trained on the {split} split of {name} (the same manifest): these figures show what it "
        "learned by heart, not what it makes of new images"
        for name, digest in manifests
        if digest in trained.manifests
    ]
