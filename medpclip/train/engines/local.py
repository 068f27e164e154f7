"""Plain torch, on one rank or several."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medpclip.distributed import World
from medpclip.distributed.exchange import total
from medpclip.errors import MedpclipError
from medpclip.models import Prompts, RegionCLIP, Windows
from medpclip.train.config import TrainConfig
from medpclip.train.engines.base import MAX_LOGIT_SCALE, Forward, Outputs, StepResult, quick_attention, windows_as
from medpclip.train.engines.masters import MOMENTS
from medpclip.train.optimizer import make_optimizer, set_learning_rate

_LARGE = 1 << 17  # elements of a gradient that is exchanged by itself; an exchange costs what copying so many does


class LocalEngine:
    """Every rank has the whole model; gradients are averaged once a step, after the last backward pass.

    Args:
        model: the model, on any device; it is moved.
        config: of the run.
        world: the ranks.
        device: this rank's.
    """

    def __init__(self, model: RegionCLIP, config: TrainConfig, world: World, device: torch.device) -> None:
        self.device, self.world = device, world
        self.model = model.to(device).train()
        self.precision, self.clip = config.precision, config.optimizer.clip_grad
        model.set_activation_checkpointing(config.engine.activation_checkpointing)
        self.optimizer = make_optimizer(model, config.optimizer, config.freeze)
        self.module = Forward(model)
        if config.engine.compile:
            self.module.compile()
        self.parameters = dict(model.named_parameters())
        self._prepare_state()
        self.dtype = next(model.parameters()).dtype
        self.decay = config.ema_decay
        self.averages = (
            {n: t.detach().clone() for n, t in model.state_dict().items()} if self.decay is not None else None
        )

    def _prepare_state(self) -> None:
        """As AdamW makes it at a parameter's first gradient: what never has one is in checkpoints too, and not missed."""
        for parameter in self.parameters.values():
            if parameter.requires_grad:
                steps = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = {key: torch.zeros_like(parameter) for key in MOMENTS}
                self.optimizer.state[parameter] = {"step": steps} | moments

    def forward(
        self, pixels: Tensor, text: Tensor, keep: Tensor | None, prompts: Prompts, windows: Windows | None = None
    ) -> Outputs:
        wide = torch.promote_types(self.dtype, torch.float32)
        given = (tensor.to(wide) if tensor.is_floating_point() else tensor for tensor in vars(prompts).values())
        with self._autocast(), quick_attention(self.device, self.precision):
            out = self.module(pixels.to(self.dtype), text, keep, *windows_as(windows, self.dtype, wide), *given)
        return tuple(tensor.to(wide) for tensor in out)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def backward(self, loss: Tensor, last: bool) -> None:
        with quick_attention(self.device, self.precision):
            loss.backward()
        if last and self.world.size > 1:
            self._average_gradients()

    def _average_gradients(self) -> None:
        """Large gradients one by one where they are, small ones together."""
        small: list[Tensor] = []
        for parameter in self.parameters.values():
            gradient = parameter.grad
            if gradient is None:  # on all ranks alike
                continue
            if gradient.numel() >= _LARGE and gradient.is_contiguous():
                total(gradient, self.world).div_(self.world.size)
            else:
                small.append(gradient)
        if small:
            flat = total(torch.cat([gradient.flatten() for gradient in small]), self.world).div_(self.world.size)
            for gradient, mean in zip(small, flat.split([g.numel() for g in small]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def step(self, rate: float, skip: bool = False) -> StepResult:
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip or math.inf))
        stepped = math.isfinite(norm) and not skip
        if stepped:
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
            self._after_step()
        self.optimizer.zero_grad()
        return StepResult(norm, stepped)

    @torch.no_grad()
    def _after_step(self) -> None:
        for scale in (self.model.clip.logit_scale, self.model.region_logit_scale):
            scale.clamp_(0, MAX_LOGIT_SCALE)
        if self.averages is not None:
            assert self.decay is not None
            for name, tensor in self.model.state_dict().items():
                if tensor.is_floating_point():
                    self.averages[name].lerp_(tensor, 1 - self.decay)

    def weights(self) -> dict[str, Tensor] | None:
        return _on_cpu(self.model.state_dict()) if self.world.is_first else None

    def average(self) -> dict[str, Tensor] | None:
        return _on_cpu(self.averages) if self.world.is_first and self.averages is not None else None

    def state(self) -> dict[str, Tensor] | None:
        if not self.world.is_first:
            return None
        return _on_cpu(self._state())

    def load(self, weights: dict[str, Tensor], average: dict[str, Tensor] | None, state: dict[str, Tensor]) -> None:
        check_same(self.model.state_dict(), weights, "the weights")
        if state:
            check_same(self._state(), state, "the optimizer's state")
        self.model.load_state_dict(weights)
        if self.averages is not None:
            check_same(self.averages, average or {}, "the moving average")
            for name, tensor in (average or {}).items():
                self.averages[name].copy_(tensor)
        for name, tensor in self._state().items() if state else ():
            tensor.copy_(state[name])

    def _state(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()  # frozen ones have none
        }


def check_same(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Raises:
    MedpclipError: a tensor is missing, unknown, or of another shape.
    """
    for name in sorted(own.keys() | given.keys()):
        if name not in given or name not in own:
            raise MedpclipError(
                f"{what}: {name!r} is {'missing' if name in own else 'unknown'}; resume with the run's own config"
            )
        if own[name].shape != given[name].shape:
            raise MedpclipError(
                f"{what}: {name!r} is {tuple(given[name].shape)}, the model's {tuple(own[name].shape)}; "
                "resume with the run's own config"
            )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that the next step leaves alone."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
