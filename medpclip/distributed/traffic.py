"""How many bytes a rank exchanges in a training step, predicted from the step's shape. `docs/explanation/communication.md`
has the formulas in words; counts of what ranks really hand over are held to this.

Not in it: a few scalars by which DeepSpeed agrees on the gradient's norm, and its padding of shards to equal lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]

_LOOP_SUMS = 11  # float64 that the loop adds up over ranks: what it logs, and who wants to stop


@dataclass(frozen=True)
class Exchange:
    """One kind of exchange of a step.

    Attributes:
        part: what it is for: "text wordings", "text embeddings", "columns", "scalars", "gradients", "weights".
        operation: which collective, or "send" to the next rank of the ring.
        handed: bytes that each rank hands over in a step, all calls together.
    """

    part: str
    operation: Operation
    handed: int

    def sent(self, ranks: int) -> float:
        """Bytes that leave a rank when the operation goes around a ring, which moves the fewest (Patarasuk and Yuan 2009,
        section 3); others may send more, never less."""
        others = ranks - 1
        factor = {"all_reduce": 2 * others / ranks, "all_gather": others, "reduce_scatter": others / ranks, "send": 1}
        return self.handed * factor[self.operation]


@dataclass(frozen=True)
class StepShape:
    """What a step's exchanges depend on.

    Attributes:
        ranks, micros: ranks, and micro-batches of each.
        texts: unique texts of the step, padding left out.
        width: of the shared space.
        wordings: bytes of compressed JSON of the rank that has most.
        parameters, trained: numbers of the model, and those that aren't frozen.
        loss: the training loss's kind.
        anchor: whether there is an anchor loss.
        zero: DeepSpeed's stage; 0 for the local engine too, which exchanges the same.
        persistent: stage 3 only: numbers in parameters of fewer than 100,000, which DeepSpeed keeps whole between steps.
        weight_bytes: of a weight and its gradient as they are exchanged: 4, or 2 with half-precision weights.
    """

    ranks: int
    micros: int
    texts: int
    width: int
    wordings: int
    parameters: int
    trained: int
    loss: Literal["infonce", "sigmoid"] = "infonce"
    anchor: bool = False
    zero: Literal[0, 1, 2, 3] = 0
    persistent: int = 0
    weight_bytes: int = 4

    @property
    def texts_per_rank(self) -> int:
        """Padding included, as `TextShares` deals them out."""
        return self.micros * max(1, -(-self.texts // (self.ranks * self.micros)))


def step_traffic(shape: StepShape) -> list[Exchange]:
    """What each rank exchanges in a step; nothing where there is one rank."""
    if shape.ranks == 1:
        return []
    return [Exchange("text wordings", "all_gather", 8 + shape.wordings), *_contrast(shape), *_engine(shape)]


def _contrast(shape: StepShape) -> list[Exchange]:
    rows = 4 * shape.width * shape.texts_per_rank  # float32
    scalars = Exchange("scalars", "all_reduce", 8 * (_LOOP_SUMS + shape.anchor))
    if shape.loss == "sigmoid":
        # Texts make size - 1 hops, their gradients one more, home. Counts and losses of both sides.
        ring = Exchange("text embeddings", "send", (2 * shape.ranks - 1) * rows)
        return [ring, scalars, Exchange("scalars", "all_reduce", 4 * 2 * 2)]
    return [
        Exchange("text embeddings", "all_gather", rows),
        Exchange("text embeddings", "reduce_scatter", shape.ranks * rows),
        # The largest logit, then three sums for each text, and two sums for each side.
        Exchange("columns", "all_reduce", 4 * (shape.texts + 3 * shape.texts + 2 * 2)),
        scalars,
    ]


def _engine(shape: StepShape) -> list[Exchange]:
    gradients, weights = shape.weight_bytes * shape.trained, shape.weight_bytes * shape.parameters
    if shape.zero == 0:
        return [Exchange("gradients", "all_reduce", gradients)]
    if shape.zero < 3:
        # DeepSpeed sums whole buckets on all ranks, and each rank keeps its part; stage 2 in every backward pass.
        times = shape.micros if shape.zero == 2 else 1
        return [
            Exchange("gradients", "all_reduce", times * gradients),
            Exchange("weights", "all_gather", gradients // shape.ranks),  # those that were trained
        ]
    kept = shape.weight_bytes * shape.persistent
    # A step of one micro-batch keeps what the forward pass gathered for the backward pass. With several, whose passes
    # without gradient come first, DeepSpeed gathers anew for each of the three kinds of pass.
    passes = 1 if shape.micros == 1 else 3 * shape.micros
    return [
        Exchange("gradients", "reduce_scatter", shape.micros * gradients),
        Exchange("weights", "all_gather", (passes * (weights - kept) + kept) // shape.ranks),
    ]
