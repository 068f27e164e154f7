"""DeepSpeed's settings: what follows from the run's configuration, and what the user's JSON file adds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medpclip.errors import MedpclipError
from medpclip.train.config import TrainConfig

# Each of DeepSpeed's settings that the run's configuration decides, and by which key.
_OWNED = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "managed_gradient_accumulation": "micro_batch_size",
    "optimizer": "optimizer",
    "scheduler": "optimizer",
    "gradient_clipping": "optimizer.clip_grad",
    "fp16.enabled": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "zero_optimization.stage": "engine.zero",
    "zero_optimization.offload_optimizer.device": "engine.offload",
    "zero_allow_untested_optimizer": "optimizer",
    "zero_force_ds_cpu_optimizer": "optimizer",
    "activation_checkpointing": "engine.activation_checkpointing",
    "compile": "engine.compile",
    "checkpoint": "checkpoint",
    "steps_per_print": "tracking.every_steps",
    "tensorboard": "tracking.tensorboard",
    "wandb": "tracking.wandb",
    "csv_monitor": "tracking",
    "comet": "tracking",
}
_BUCKET = 100_000_000  # elements; DeepSpeed's own is five times this, more than the model


def settings(config: TrainConfig, device: torch.device, parameters: int) -> dict[str, Any]:
    """What DeepSpeed is started with.

    Args:
        config: of the run.
        device: this rank's.
        parameters: how many numbers the model has.

    Raises:
        MedpclipError: precision or compiling can't be had on this device or stage, or the JSON file can't be read or sets
            what the run's configuration decides.
    """
    stage, half = config.engine.zero, config.precision in ("pure_bf16", "fp16")
    if config.precision == "fp16" and device.type != "cuda":
        raise MedpclipError(f"'precision' fp16 needs a GPU, the device is {device.type}; set precision: bf16")
    if half and stage == 0:
        raise MedpclipError(
            f"'precision' {config.precision} needs engine.zero of 1, 2 or 3, whose optimizer keeps float32 masters"
        )
    if config.engine.compile and stage == 3:
        raise MedpclipError(
            "'engine.compile' can't be had with engine.zero 3, where weights come and go; set zero: 2, or compile: false"
        )
    own: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # a batch's share is ours to cut; so is accumulation
        "gradient_accumulation_steps": 1,
        "gradient_clipping": (config.optimizer.clip_grad or 0.0) if stage else 0.0,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": min(_BUCKET, parameters)},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},
    }
    if config.engine.offload:
        own["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
        # PyTorch's fused AdamW is as fast on the CPU as DeepSpeed's (20 million weights on one core: 11 ms both).
        own["zero_force_ds_cpu_optimizer"] = False
    if half:
        own["bf16" if config.precision == "pure_bf16" else "fp16"] = {"enabled": True}
        own["data_types"] = {"grad_accum_dtype": "fp32"}
    return own if config.engine.deepspeed_config is None else _merge(own, _read(config.engine.deepspeed_config))


def _read(path: Path) -> dict[str, Any]:
    try:
        extra = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no JSON, or no UTF-8
        raise MedpclipError(f"{path.name}: can't be read ({error}); correct engine.deepspeed_config") from None
    if not isinstance(extra, dict):
        raise MedpclipError(
            f"{path.name}: expected a JSON object of DeepSpeed's settings; correct engine.deepspeed_config"
        )
    for key, ours in _OWNED.items():
        if _has(extra, key):
            raise MedpclipError(
                f"{path.name}: key '{key}' follows from the run's '{ours}'; set that, and remove it here"
            )
    return extra


def _has(mapping: Any, key: str) -> bool:
    head, _, rest = key.partition(".")
    return isinstance(mapping, dict) and head in mapping and (not rest or _has(mapping[head], rest))


def _merge(own: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; where both say something, the user's file counts."""
    out = dict(own)
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out
