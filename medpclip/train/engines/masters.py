"""AdamW over float32 masters that may be shards: what has to happen between an update and its copy into the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from medpclip.models import RegionCLIP
from medpclip.train.config import OptimizerConfig
from medpclip.train.engines.base import MAX_LOGIT_SCALE

MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"


class MastersAdamW(torch.optim.AdamW):
    """AdamW whose updates can be held, keep to limits, and take a moving average along.

    A shard is a flat piece of several parameters, which only the sharding knows; what is done here is done element by
    element, so it needn't know. The average is one more state of the optimizer, so it is sharded and gathered as those are.

    Args:
        groups: of parameters, with "scale", perhaps "limits" (lowest and largest value).
        config: betas and so on.
        decay: of the moving average, per update; None for none.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimizerConfig, decay: float | None) -> None:
        super().__init__(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        self.decay = decay
        self.held = False  # while it is, `step` does nothing

    def prepare(self, masters: Iterable[Tensor]) -> None:
        """Make the state of the tensors that will be updated, as before the first step."""
        for master in masters:
            state = self.state[master]
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            for key in MOMENTS:
                state[key] = torch.zeros_like(master)
            if self.decay is not None:
                state[AVERAGE] = master.detach().clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update, limit, average."""
        if self.held:
            return
        super().step(closure)
        for group in self.param_groups:
            for master in group["params"]:
                if "limits" in group:
                    master.clamp_(*group["limits"])
                if self.decay is not None:
                    self.state[master][AVERAGE].lerp_(master, 1 - self.decay)


def with_limits(groups: list[dict[str, Any]], model: RegionCLIP) -> list[dict[str, Any]]:
    """The groups, with the logit scales in groups of their own that say how far they may go."""
    scales = {id(model.clip.logit_scale), id(model.region_logit_scale)}
    out = []
    for group in groups:
        rest = [p for p in group["params"] if id(p) not in scales]
        limited = [p for p in group["params"] if id(p) in scales]
        out += [group | {"params": rest}] if rest else []
        out += [group | {"params": limited, "limits": (0.0, MAX_LOGIT_SCALE)}] if limited else []
    return out
