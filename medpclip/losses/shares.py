"""Who encodes which of a step's texts.

Text j of the sorted list belongs to slot j mod (ranks * micro-batches): round-robin, so that each micro-batch of each rank
has the same number of texts, the last ones padding. Our design.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextShares:
    """Attributes:
    count: texts of the step.
    ranks, micros: how many ranks, and micro-batches of each.
    """

    count: int
    ranks: int
    micros: int

    @property
    def per_micro(self) -> int:
        """Texts of a micro-batch, padding included; at least 1."""
        return max(1, -(-self.count // (self.ranks * self.micros)))

    def of(self, rank: int) -> Tensor:
        """(micros * per_micro,) int64: numbers of a rank's texts, micro-batch by micro-batch; -1 is padding."""
        slots = self.ranks * self.micros
        micro = torch.arange(self.micros)[:, None] * self.ranks + rank
        numbers = (micro + torch.arange(self.per_micro) * slots).flatten()
        return torch.where(numbers < self.count, numbers, -1)

    def in_order(self, gathered: Tensor) -> Tensor:
        """Rows as ranks gather them (ranks * micros * per_micro, ...) -> (count, ...), in the list's order."""
        return gathered[self._places().to(gathered.device)]

    def as_gathered(self, ordered: Tensor) -> Tensor:
        """`in_order` backwards; padding gets zeros."""
        out = ordered.new_zeros(self.ranks * self.micros * self.per_micro, *ordered.shape[1:])
        out[self._places().to(ordered.device)] = ordered
        return out

    def _places(self) -> Tensor:
        """(count,): where in the gathered rows each text is."""
        numbers = torch.cat([self.of(rank) for rank in range(self.ranks)])
        there = (numbers >= 0).nonzero()[:, 0]
        places = torch.empty(self.count, dtype=torch.int64)
        places[numbers[there]] = there
        return places
