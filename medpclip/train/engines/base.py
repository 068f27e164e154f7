"""What the training step and the loop need of an engine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from medpclip.models import Prompts, RegionCLIP, Windows

MAX_LOGIT_SCALE = math.log(100)  # as CLIP clips it (Radford et al. 2021, section 2.5)

Outputs = tuple[Tensor, ...]
"""Of `Forward`: image (b, D), region (b, R, D), text (t, D) embeddings, then `scalars`."""


class Forward(nn.Module):
    """A model's training forward as a module that takes tensors and returns tensors, as wrappers that shard want it.

    Everything that has parameters runs in every call, so no rank of a sharded run can skip a branch; logit scales and
    biases come out as outputs, since only inside a forward can their shards be had.
    """

    def __init__(self, model: RegionCLIP) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixels: Tensor,
        text: Tensor,
        keep: Tensor | None,
        window_pixels: Tensor | None,
        window_rects: Tensor | None,
        *prompts: Tensor,
    ) -> Outputs:
        """Pixels (b, 3, S, S), token ids (t, context), kept patches (b, K) int64 or None, the fields of `Windows` or two
        Nones, and the fields of `Prompts`.

        Returns:
            Image (b, D), region (b, R, D) and text (t, D) embeddings, L2-normalised, and (4,): the image loss's scale and
            bias, the region loss's scale and bias; scales as logarithms, biases 0 where the model has none.
        """
        windows = None
        if window_pixels is not None and window_rects is not None:
            windows = Windows(window_pixels, window_rects)
        out = self.model(pixels, Prompts(*prompts), text, keep, windows)
        assert out.region is not None and out.text is not None
        return out.image, out.region, out.text, self.model.logit_parameters()


@contextlib.contextmanager
def quick_attention(device: torch.device, precision: str) -> Iterator[None]:
    """On CPUs in bfloat16, attention by plain matrix products; around forward and backward, which may repeat the forward.

    torch's fused kernel is slow there: its backward pass for 65 tokens takes three times as long as all of the plain way,
    in all a third of a small model's step.
    """
    if device.type != "cpu" or "bf16" not in precision:
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # in spite of its name, the CPU's too
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def windows_as(windows: Windows | None, dtype: torch.dtype, wide: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """The fields of `Windows`: pixels in the model's type, coordinates in one with room for them; or two Nones."""
    return (None, None) if windows is None else (windows.pixels.to(dtype), windows.rects.to(wide))


@dataclass
class StepResult:
    """Attributes:
    grad_norm: the gradient's norm over all ranks, before clipping.
    stepped: whether the weights were changed.
    """

    grad_norm: float
    stepped: bool


class Engine(Protocol):
    """Runs a model on this rank, together with the other ranks.

    One step is: any number of `forward`s without gradient; then, for each micro-batch, `forward` with gradient and
    `backward`, the last one marked; then `step`. All ranks make the same calls in the same order.
    """

    model: RegionCLIP
    device: torch.device

    def forward(
        self, pixels: Tensor, text: Tensor, keep: Tensor | None, prompts: Prompts, windows: Windows | None = None
    ) -> Outputs:
        """`Forward` in the run's precision; embeddings come out in float32 (float64 for a float64 model)."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of this rank's loss. They are averaged over ranks by the time of `step`; where the engine can,
        ranks exchange them in the call that is marked `last` only."""
        ...

    def step(self, rate: float, skip: bool = False) -> StepResult:
        """Clip, update at learning rate `rate`, clear the gradients; all ranks alike.

        If the gradient isn't finite, or with `skip`, the weights and the optimizer's state stay as they are, and the
        gradients are cleared all the same.
        """
        ...

    def weights(self) -> dict[str, Tensor] | None:
        """The whole model's state dict, float32, in CPU memory, on rank 0 (None elsewhere); all ranks must call it."""
        ...

    def average(self) -> dict[str, Tensor] | None:
        """The moving average, as `weights`; None also without `ema_decay`."""
        ...

    def state(self) -> dict[str, Tensor] | None:
        """The optimizer's state as "PARAMETER/KEY" -> whole tensors in CPU memory, on rank 0 (None elsewhere); all ranks
        must call it. It is the same for every engine, stage and number of ranks."""
        ...

    def load(self, weights: dict[str, Tensor], average: dict[str, Tensor] | None, state: dict[str, Tensor]) -> None:
        """Put back what `weights`, `average` and `state` gave; every rank hands over the whole.

        Raises:
            MedpclipError: a tensor is missing, unknown, or of another shape.
        """
        ...
