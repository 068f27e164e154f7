"""What is trained and how fast: freezing, AdamW's parameter groups, and the learning rate's course."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from medpclip.errors import MedpclipError
from medpclip.train.config import OptimizerConfig

# Matrices that are not weights of a linear map: positions, tokens, type embeddings, gains. In open_clip's towers, in
# timm's, in BERT's, and in ours.
_NO_DECAY = (
    *("positional_embedding", "class_embedding", "cls_emb"),
    *("pos_embed", "cls_token", "reg_token", "attn_pool.latent"),
    *("position_embeddings.weight", "token_type_embeddings.weight"),
    *("point_type", "corner_type", "mask_type", "_gain"),
)
# Single numbers per head or channel that features are multiplied by, all zero at first.
_GAINS = ("_gain", "gate")
# The number of a block, in open_clip's towers (resblocks), timm's (blocks), BERT's (layer) and T5's (block).
_BLOCK = re.compile(r"\.(?:resblocks|blocks|layer|layers|block)\.(\d+)\.")
# What comes before the first block; whatever has neither a number nor such a name comes after the last.
_EMBEDDINGS = re.compile(
    r"\.(?:conv1|class_embedding|positional_embedding|ln_pre|token_embedding|cls_emb"
    r"|patch_embed|pos_embed|cls_token|reg_token|norm_pre|embeddings|embed_tokens|shared)(?:\.|$)"
)

Part = Literal["image", "text", "fusion"]


def make_optimizer(model: nn.Module, config: OptimizerConfig, freeze: Sequence[Part] = ()) -> torch.optim.AdamW:
    """AdamW over the groups of `parameter_groups`; each has its "scale" of the rate that `set_learning_rate` gives.

    Raises:
        MedpclipError: `freeze` leaves nothing to train.
    """
    return torch.optim.AdamW(
        parameter_groups(model, config, freeze),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,  # one pass over memory, on the CPU too
    )


def parameter_groups(model: nn.Module, config: OptimizerConfig, freeze: Sequence[Part] = ()) -> list[dict[str, Any]]:
    """Freeze parts of a model, and group the parameters of the others.

    Layer-wise decay (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT): a tower's last block trains at `layer_decay` of
    the rate, each block below at `layer_decay` of the one above, embeddings lowest; what comes after the blocks trains at
    the full rate, as do temperatures. Fusion has `fusion_lr_scale`, and in it gains and gates `gain_lr_scale` on top.

    Args:
        model: a RegionCLIP; frozen parts lose `requires_grad` and are put in eval mode.
        config: rates and decays.
        freeze: as `freeze_parts` takes it.

    Returns:
        Dicts of "params", "weight_decay" and "scale" (of the learning rate), as optimizers of torch and DeepSpeed take
        them; the same groups in the same order for the same model, config and freeze.

    Raises:
        MedpclipError: nothing is left to train.
    """
    freeze_parts(model, freeze)
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    depths = _depths(name for name, _ in model.named_parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        decays = parameter.ndim >= 2 and not name.endswith(_NO_DECAY)
        part = _part(name)
        scale = 1.0
        if part == "fusion":
            scale = config.fusion_lr_scale * (config.gain_lr_scale if name.endswith(_GAINS) else 1.0)
        elif part is not None:
            scale = config.layer_decay ** (depths[part] + 1 - _layer(name, depths[part]))
        groups.setdefault((scale, config.weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": members, "weight_decay": weight_decay, "scale": scale}
        for (scale, weight_decay), members in groups.items()
    ]


def freeze_parts(model: nn.Module, freeze: Sequence[Part]) -> None:
    """Keep parts of a RegionCLIP as they are: no gradients, and no dropout either.

    `model.train()` turns dropout on again; call this after it.

    Args:
        model: a RegionCLIP in training mode.
        freeze: "image" (the trunk), "text" (the text tower), "fusion" (the prompts'); not all of them.

    Raises:
        MedpclipError: all three, so that only temperatures would be left.
    """
    if {"image", "text", "fusion"} <= set(freeze):
        raise MedpclipError(
            f"freeze is [{', '.join(freeze)}], which leaves nothing to train but temperatures; leave one part out"
        )
    for name, parameter in model.named_parameters():
        if _part(name) in freeze:
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        # A plain CLIP's text tower is several modules of `clip`, which itself is no part.
        if _part(name) in freeze:
            module.eval()


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


def _part(name: str) -> Part | None:
    """Which part a module or parameter of a RegionCLIP belongs to; None for temperatures and for the whole."""
    if name.startswith("fusion"):
        return "fusion"
    if name.startswith("clip.visual"):
        return "image"
    if name.startswith("clip.") and not name.startswith("clip.logit_"):
        return "text"
    return None


def _depths(names: Iterable[str]) -> dict[Part, int]:
    """How many blocks each tower has."""
    depths: dict[Part, int] = {"image": 0, "text": 0}
    for name in names:
        part, found = _part(name), _BLOCK.search(name)
        if found and part in depths:
            depths[part] = max(depths[part], int(found[1]) + 1)
    return depths


def _layer(name: str, depth: int) -> int:
    """0 for embeddings, 1 to `depth` for blocks, `depth` + 1 for what follows."""
    found = _BLOCK.search(name)
    if found:
        return int(found[1]) + 1
    return 0 if _EMBEDDINGS.search(name) else depth + 1
