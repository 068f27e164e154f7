"""From a step's sums to the lines of a run's log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

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
    """The steps since the last line of the log.

    Attributes:
        flops: of the model, for utilisation.
        peak: FLOP/s of all devices together.
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
        means = {name: sum(row.means[name] for row in rows) / len(rows) for name in rows[0].means}
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
