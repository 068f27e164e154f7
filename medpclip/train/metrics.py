"""From a step's sums to the lines of a run's log."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from medpclip.train.flops import Flops

KEYS = 1 << 40  # what the sum of the samples' numbers is taken modulo; see `step.StepInputs`


@dataclass
class Row:
    """One step, over all ranks.

    Attributes:
        means: what lines give the mean of: losses, gradient norm, scales, texts.
        images, regions, texts: how many.
        region_hits: regions whose likeliest text is a true one.
        sensitivity: sum over regions of 1 - cosine between a region's embedding and its image's.
        truncated: texts that the tokenizer cut.
        skipped: samples that could not be used.
        waited: seconds that a rank waited for data, on average.
        keys: which samples these were, as a number.
        stepped: whether the weights were changed.
    """

    means: dict[str, float]
    images: int
    regions: float
    texts: int
    region_hits: float
    sensitivity: float
    truncated: float
    skipped: float
    waited: float
    keys: float
    stepped: bool


@dataclass
class Interval:
    """The steps since the last line of the log. It is part of a checkpoint, so that a run's cuts don't show in its log.

    Attributes:
        flops: of the model, for utilisation.
        peak: FLOP/s of all devices together.
        rows: one for each step.
        started: when; what isn't training is left out by moving it.
    """

    flops: Flops
    peak: float
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def summary(self) -> dict[str, float]:
        """Means of losses and norms; rates per second; shares; what was skipped; which samples there were."""
        seconds = time.monotonic() - self.started
        rows = self.rows
        images, regions, texts = (sum(getattr(row, name) for row in rows) for name in ("images", "regions", "texts"))
        # Of steps that were skipped the loss or the norm isn't finite, and would hide the others'.
        finite = {name: [row.means[name] for row in rows if math.isfinite(row.means[name])] for name in rows[0].means}
        means = {name: sum(values) / len(values) if values else math.nan for name, values in finite.items()}
        return means | {
            "texts": texts / len(rows),
            "region_hit_rate": sum(row.region_hits for row in rows) / max(1, regions),
            "prompt_sensitivity": sum(row.sensitivity for row in rows) / max(1, regions),
            "truncation_rate": sum(row.truncated for row in rows) / max(1, texts),
            "images_per_second": images / seconds,
            "regions_per_second": regions / seconds,
            "mfu": self.flops.step(images, regions, texts) / seconds / self.peak,
            "data_wait_share": sum(row.waited for row in rows) / seconds,
            "skipped": sum(row.skipped for row in rows),
            "skipped_steps": sum(not row.stepped for row in rows),
            "keys": sum(row.keys for row in rows) % KEYS,
        }

    def state(self) -> dict[str, Any]:
        """As JSON, for a checkpoint; null stands for what isn't finite."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            row["means"] = {name: value if math.isfinite(value) else None for name, value in row["means"].items()}
        return {"seconds": time.monotonic() - self.started, "rows": rows}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.started = time.monotonic() - state["seconds"]
        for row in state["rows"]:
            means = {name: math.nan if value is None else value for name, value in row["means"].items()}
            self.rows.append(Row(**(row | {"means": means})))
