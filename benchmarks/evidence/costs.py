"""What a run costs, before it has run: parameters, and FLOPs of a typical step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plan import IMAGES, REGIONS, Run
from shards import ROOT

import medpclip.models  # noqa: F401  (torch starts here, in the order the package needs)
from medpclip.config import load
from medpclip.models.load import build_model
from medpclip.train.config import TrainConfig
from medpclip.train.flops import count_flops


@dataclass(frozen=True)
class Cost:
    """Attributes:
    parameters: of the whole model.
    without_words: of them, those that aren't the table of word embeddings, which is two thirds of so small a model.
    flops: of a step, forward and backward, with so many images, regions and texts as is typical.
    image, region: FLOPs of a forward of an image, and of each region prompt of it.
    """

    parameters: int
    without_words: int
    flops: float
    image: float = 0.0
    region: float = 0.0


def count_costs(runs: Iterable[Run]) -> dict[str, Cost]:
    """Name -> cost. Models with the same overrides are built once."""
    counted: dict[tuple[int, tuple[str, ...]], Cost] = {}
    costs = {}
    for run in runs:
        changes = tuple(text for text in run.overrides if text.startswith(("model.", "loss.")))
        if (run.texts, changes) not in counted:
            counted[run.texts, changes] = _count(changes, run.texts)
        costs[run.name] = counted[run.texts, changes]
    return costs


def _count(overrides: tuple[str, ...], texts: int) -> Cost:
    config = load(TrainConfig, ROOT / "launch" / "evidence.yaml", [o for o in overrides if "anchor" not in o])
    model = build_model(config.model)
    parameters = sum(p.numel() for p in model.parameters())
    words = sum(p.numel() for name, p in model.named_parameters() if name.endswith("token_embedding.weight"))
    anchor = any("anchor_weight" in text for text in overrides)
    regions = REGIONS if config.loss.region_weight else 0
    flops = count_flops(model, anchor=anchor).step(IMAGES, regions, texts)
    forward = count_flops(model, backward=False)
    return Cost(parameters, parameters - words, flops, forward.image, forward.region)
