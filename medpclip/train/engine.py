"""Engines run a model: precision, backward, clipping, the optimizer's step. One so far, for a single process."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medpclip.errors import MedpclipError
from medpclip.models import RegionCLIP
from medpclip.models.device import pick_device
from medpclip.train.config import TrainConfig
from medpclip.train.optimizer import make_optimizer, set_learning_rate

_STATE = "optimizer.safetensors"
_MAX_LOGIT_SCALE = math.log(100)  # as CLIP clips it (Radford et al. 2021, section 2.5)


class Engine(Protocol):
    """What the loop needs of an engine."""

    model: RegionCLIP
    device: torch.device

    def autocast(self) -> contextlib.AbstractContextManager[Any]: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, rate: float) -> float: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class LocalEngine:
    """One process, one device.

    Args:
        model: the model, on any device; it is moved.
        config: of the run.
    """

    def __init__(self, model: RegionCLIP, config: TrainConfig) -> None:
        self.device = pick_device(config.device)
        self.model = model.to(self.device).train()
        self.precision, self.clip = config.precision, config.optimizer.clip_grad
        self.optimizer = make_optimizer(model, config.optimizer)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The forward pass's precision."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients."""
        loss.backward()

    def step(self, rate: float) -> float:
        """Clip, update at `rate`, clear the gradients; returns the gradients' norm before clipping.

        Raises:
            MedpclipError: the norm is not finite; the weights are left as they were.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or math.inf)
        if not torch.isfinite(norm):  # before the step: no checkpoint may hold what it would leave
            raise MedpclipError("a gradient is not finite; lower 'optimizer.lr', or use precision fp32")
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for scale in (self.model.clip.logit_scale, self.model.region_logit_scale):
                scale.clamp_(0, _MAX_LOGIT_SCALE)
        return float(norm)

    def save(self, folder: Path) -> None:
        """Write the optimizer's state and torch's generator, one tensor file without pickle."""
        tensors = {"rng": torch.get_rng_state()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = torch.as_tensor(value).contiguous()
        save_file(tensors, folder / _STATE)

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote."""
        path = folder / _STATE
        try:
            tensors = load_file(path)
        except Exception as error:
            raise MedpclipError(f"{path}: unreadable ({error}); resume from another checkpoint") from None
        torch.set_rng_state(tensors.pop("rng"))
        parameters = dict(self.model.named_parameters())
        for name, value in tensors.items():
            parameter_name, _, key = name.rpartition("/")
            if parameter_name not in parameters:
                raise MedpclipError(f"{path}: key {name!r} is of another model; resume with the run's own config")
            self.optimizer.state[parameters[parameter_name]][key] = value.to(self.device)
