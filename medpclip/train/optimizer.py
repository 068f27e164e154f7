"""AdamW's parameter groups, and the learning rate's course."""

from __future__ import annotations

import math

import torch
from torch import nn

from medpclip.train.config import OptimizerConfig

# Matrices that are not weights of a linear map: positions, tokens, type embeddings, gains.
_NO_DECAY = ("positional_embedding", "class_embedding", "point_type", "corner_type", "mask_type", "_gain")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that need a gradient, in groups with their own decay and rate ("scale")."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and not name.endswith(_NO_DECAY)
            groups.setdefault((name.startswith("fusion."), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decays else 0.0,
                "scale": config.fusion_lr_scale if is_fusion else 1.0,
            }
            for (is_fusion, decays), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,  # one pass over memory, on the CPU too
    )


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of step 0 ... steps - 1: linear warm-up, then half a cosine down to `final_lr` of the peak."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    share = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * share


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Each group's rate: the course's times the group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
