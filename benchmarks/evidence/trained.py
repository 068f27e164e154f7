"""What is known of a run that is trained and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from costs import Cost
from figures import BySeed


@dataclass(frozen=True)
class Trained:
    """One run with all its seeds.

    Attributes:
        steps: of each seed's training.
        cost: parameters and FLOPs.
        hashes: seed -> SHA-256 of its weights.
        code: seed -> SHA-256 of the package's code that trained it.
        measured_by: seed -> SHA-256 of the package's code that measured it, on any split.
        val, test: its answers; val is empty where nothing is chosen.
    """

    steps: int
    cost: Cost
    hashes: Mapping[int, str]
    code: Mapping[int, str]
    measured_by: Mapping[int, frozenset[str]]
    val: BySeed
    test: BySeed
