"""DeepSpeed: the optimizer's state, gradients and parameters sharded over ranks (ZeRO; Rajbhandari et al. 2020)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medpclip.distributed import World
from medpclip.errors import MedpclipError
from medpclip.models import Prompts, RegionCLIP, Windows
from medpclip.train.config import TrainConfig
from medpclip.train.engines.base import Forward, Outputs, StepResult, quick_attention, windows_as
from medpclip.train.engines.deepspeed_settings import settings
from medpclip.train.engines.local import check_same
from medpclip.train.engines.masters import AVERAGE, MOMENTS, MastersAdamW, with_limits
from medpclip.train.optimizer import parameter_groups, set_learning_rate

_SCALER = "loss_scaler"  # of fp16: its entries of `state`, beside those of the parameters
_SCALER_KEYS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngine:
    """The model under ZeRO: stage 0 shards nothing, 1 the optimizer's state, 2 also gradients, 3 also parameters.

    With `precision` pure_bf16 or fp16 the weights are of that type, frozen ones too; the float32 masters that are updated
    live in the optimizer. Stage 0 and 1 exchange gradients in the `last` backward pass only, 2 and 3 in every one, since no
    rank keeps a whole gradient.

    Args:
        model: the model, on any device; it is moved, and under stage 3 taken apart.
        config: of the run.
        world: the ranks.
        device: this rank's.

    Raises:
        MedpclipError: DeepSpeed isn't installed, the precision can't be had here, or DeepSpeed refuses
            `engine.deepspeed_config`.
    """

    def __init__(self, model: RegionCLIP, config: TrainConfig, world: World, device: torch.device) -> None:
        self.model, self.device, self.world = model.train(), device, world
        self.stage = config.engine.zero
        self.clip = config.optimizer.clip_grad
        self.dtype = next(model.parameters()).dtype
        model.set_activation_checkpointing(config.engine.activation_checkpointing)
        self.shapes = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
        self.own_settings = settings(config, device, sum(p.numel() for p in model.parameters()))
        self.has_file = config.engine.deepspeed_config is not None
        groups = with_limits(parameter_groups(model, config.optimizer, config.freeze), model)
        # Where each trainable parameter is; DeepSpeed puts its masters in the same groups, in the same order.
        self.places = {id(p): (g, i) for g, group in enumerate(groups) for i, p in enumerate(group["params"])}
        self.optimizer = MastersAdamW(groups, config.optimizer, config.ema_decay)
        self.precision = config.precision
        self.wrapped = _initialize(_InPrecision(Forward(model), config.precision, device), self)
        if config.engine.compile:
            self.wrapped.compile()
        self._prepare_state()
        self.backwards = 0

    def forward(
        self, pixels: Tensor, text: Tensor, keep: Tensor | None, prompts: Prompts, windows: Windows | None = None
    ) -> Outputs:
        wide = torch.promote_types(self.dtype, torch.float32)
        given = (*windows_as(windows, self.dtype, wide), *vars(prompts).values())
        with quick_attention(self.device, self.precision):
            out = self.wrapped(pixels.to(self.dtype), text, keep, *given)
        return tuple(tensor.to(wide) for tensor in out)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.wrapped.set_gradient_accumulation_boundary(last)
        with quick_attention(self.device, self.precision):
            self.wrapped.backward(loss, scale_wrt_gas=False)
        self.backwards += 1

    def step(self, rate: float, skip: bool = False) -> StepResult:
        if not self.backwards:  # nothing to clear, and DeepSpeed can't step without gradients
            assert skip, "step before backward"
            return StepResult(math.nan, False)
        self.backwards = 0
        set_learning_rate(self.optimizer, rate)
        self.optimizer.held = skip
        norm = None
        if self.stage == 0:  # DeepSpeed clips these by a NaN and goes on; under ZeRO it finds and skips them itself
            norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or math.inf))
            self.optimizer.held |= not math.isfinite(norm)
        self.wrapped.step()
        if norm is None:
            norm = float(self.wrapped.get_global_grad_norm())
        if not self.wrapped.was_step_applied():
            self._forget_gradients()
        return StepResult(norm, self.wrapped.was_step_applied() and not self.optimizer.held)

    def _forget_gradients(self) -> None:
        """DeepSpeed 0.19 skips a step that isn't finite, but under `offload` with half-precision weights keeps its gradients,
        so that no later step would be finite either. This is what it does elsewhere."""
        gradients = getattr(self.wrapped.optimizer, "averaged_gradients", None)
        if self.stage in (1, 2) and gradients:
            gradients.update(dict.fromkeys(gradients))

    def weights(self) -> dict[str, Tensor] | None:
        return self._gather(None)

    def average(self) -> dict[str, Tensor] | None:
        return self._gather(AVERAGE) if self.optimizer.decay is not None else None

    def state(self) -> dict[str, Tensor] | None:
        out: dict[str, Tensor] = {}
        steps = next(iter(self.optimizer.state.values()))["step"]  # all the same
        for name, parameter in self._trainable():
            for key in MOMENTS:
                self._keep(out, f"{name}/{key}", self._whole(parameter, key))
            self._keep(out, f"{name}/step", steps)
        for key, value in self._scaler().items():
            self._keep(out, f"{_SCALER}/{key}", torch.tensor(value, dtype=torch.float64))
        return out if self.world.is_first else None

    def load(self, weights: dict[str, Tensor], average: dict[str, Tensor] | None, state: dict[str, Tensor]) -> None:
        check_same(self.shapes, weights, "the weights")
        if self.optimizer.decay is not None:
            check_same(self.shapes, average or {}, "the moving average")
        if state:
            check_same(
                self._state_shapes(),
                {n: t for n, t in state.items() if not n.startswith(_SCALER)},
                "the optimizer's state",
            )
        for name, tensor in self._named_tensors():
            self._put(tensor, weights[name])
        for name, parameter in self._trainable():
            if average is not None and self.optimizer.decay is not None:
                self._put_state(parameter, AVERAGE, average[name])
            for key in MOMENTS if state else ():
                self._put_state(parameter, key, state[f"{name}/{key}"])
        if state:
            self._load_counts(state)

    # Where things lie.

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What a state dict has: parameters, under stage 3 without their data, and buffers."""
        yield from self.model.state_dict(keep_vars=True).items()

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if id(parameter) in self.places:
                yield name, parameter

    def _prepare_state(self) -> None:
        """Fill the optimizer's state before the first step, so that it can be loaded; DeepSpeed would only then make it."""
        if self.stage == 3:
            self.optimizer.prepare(self.wrapped.optimizer.fp32_partitioned_groups_flat)
            return
        self.optimizer.prepare(p for group in self.optimizer.param_groups for p in group["params"])
        if self.stage:
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            groups: list[list[nn.Parameter]] = [[] for _ in self.optimizer.param_groups]
            for _, parameter in sorted(self._trainable(), key=lambda item: self.places[id(item[1])]):
                groups[self.places[id(parameter)][0]].append(parameter)
            for parameters, group in zip(groups, self.optimizer.param_groups, strict=True):
                lazy_init_hp_params_optimizer_state(parameters, group["params"][0], self.optimizer.state)

    def _gather(self, key: str | None) -> dict[str, Tensor] | None:
        out: dict[str, Tensor] = {}
        for name, tensor in self._named_tensors():
            self._keep(out, name, self._whole(tensor, key))
        return out if self.world.is_first else None

    def _keep(self, out: dict[str, Tensor], name: str, value: Tensor) -> None:
        if self.world.is_first:
            wide = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
            out[name] = value.detach().to("cpu", wide, copy=True).contiguous()

    def _whole(self, tensor: Tensor, key: str | None) -> Tensor:
        """A master or one of its states, whole, on all ranks; what isn't trained is as it is, whatever the key."""
        if id(tensor) not in self.places:
            with _gathered(tensor):
                return tensor.detach().clone()
        if self.stage == 0:
            return tensor if key is None else self.optimizer.state[tensor][key]
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        value = safe_get_full_fp32_param(tensor) if key is None else safe_get_full_optimizer_state(tensor, key)
        assert value is not None
        return value

    @torch.no_grad()
    def _put(self, tensor: Tensor, value: Tensor) -> None:
        """Set a weight, and its master."""
        with _gathered(tensor, changed=True):
            tensor.copy_(value)
        if id(tensor) in self.places and self.stage:
            from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

            if self.stage == 3:
                safe_set_local_fp32_param(tensor, self._own_part(tensor, value))
            else:
                safe_set_full_fp32_param(tensor, value.to(self.device))

    @torch.no_grad()
    def _put_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self.stage == 0:
            self.optimizer.state[parameter][key].copy_(value)
            return
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage == 3:
            safe_set_local_optimizer_state(parameter, self._own_part(parameter, value), key)
        else:
            safe_set_full_optimizer_state(parameter, value.to(self.device), key)

    def _own_part(self, parameter: Tensor, value: Tensor) -> Tensor:
        """What this rank holds of a value under stage 3: its share of the flattened, padded tensor."""
        from deepspeed.utils import safe_get_local_fp32_param

        size = safe_get_local_fp32_param(parameter).numel()
        flat = value.flatten().to(self.device)
        flat = nn.functional.pad(flat, (0, size * self.world.size - flat.numel()))
        return flat[self.world.rank * size :][:size]

    def _state_shapes(self) -> dict[str, Tensor]:
        """As `state` has them, without the loss scaler's."""
        shapes = {f"{name}/{key}": self.shapes[name] for name, _ in self._trainable() for key in MOMENTS}
        return shapes | {f"{name}/step": torch.empty((), device="meta") for name, _ in self._trainable()}

    def _load_counts(self, state: dict[str, Tensor]) -> None:
        counts = {float(state[f"{name}/step"]) for name, _ in self._trainable()}
        if len(counts) > 1:
            raise MedpclipError(
                "the optimizer's state has parameters with different 'step'; resume from another checkpoint"
            )
        for own in self.optimizer.state.values():
            own["step"].fill_(counts.copy().pop())
        for key, value in self._scaler().items():
            if f"{_SCALER}/{key}" in state:
                setattr(self.wrapped.optimizer.loss_scaler, key, type(value)(state[f"{_SCALER}/{key}"]))

    def _scaler(self) -> dict[str, float]:
        """How far fp16's loss scaling is; nothing for other precisions, which have none."""
        scaler = getattr(self.wrapped.optimizer, "loss_scaler", None)
        return {key: getattr(scaler, key) for key in _SCALER_KEYS if getattr(scaler, "dynamic", False)}


class _InPrecision(nn.Module):
    """A module under autocast. In here and not around DeepSpeed's engine, which switches an outer one off.

    Half-precision weights need it as well: prompts' coordinates stay float32, and what needs range is done in float32.
    """

    def __init__(self, module: nn.Module, precision: str, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.kind = device.type
        self.low = {"fp32": None, "fp16": torch.float16}.get(precision, torch.bfloat16)

    def forward(self, *tensors: Tensor | None) -> Outputs:
        with torch.autocast(self.kind, self.low, enabled=self.low is not None):
            return self.module(*tensors)


def _initialize(module: nn.Module, engine: DeepSpeedEngine) -> Any:
    """DeepSpeed's own engine around a module."""
    _check_installed()
    # These are how DeepSpeed is told; it reads them when it is first imported, and when it starts.
    os.environ["DS_ACCELERATOR"] = engine.device.type
    os.environ.setdefault("LOCAL_RANK", str(engine.world.local_rank))
    import deepspeed

    deepspeed.utils.logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())  # ours is AdamW
    # PyTorch's note to DeepSpeed that two collectives have new names, once for each of many calls.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if engine.device.type == "cpu":
        # The one compiled extension that DeepSpeed looks for here: gloo does without it, and the compiler may be missing.
        deepspeed.ops.__compatible_ops__ = {}
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if engine.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how much memory it uses; warnings go another way
            return deepspeed.initialize(
                model=module, optimizer=engine.optimizer, config=engine.own_settings, dist_init_required=False
            )[0]
    except (ValueError, AssertionError) as error:  # how DeepSpeed refuses a setting
        if not engine.has_file:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MedpclipError(f"DeepSpeed refuses the settings ({reason}); correct engine.deepspeed_config") from error


def _check_installed() -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise MedpclipError(
            "key 'engine.kind' is deepspeed, which isn't installed; pip install 'medpclip[train]', or take local"
        )


@contextlib.contextmanager
def _gathered(tensor: Tensor, changed: bool = False) -> Iterator[None]:
    """A stage 3 parameter is whole within; others always are."""
    if not hasattr(tensor, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0 if changed else None):
        yield
