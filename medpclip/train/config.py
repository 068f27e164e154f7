"""What a training run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medpclip.data.loading.loader import DataConfig
from medpclip.models.region_clip import ModelConfig


@dataclass
class LossConfig:
    """Attributes:
    kind: "infonce" (softmax) or "sigmoid"; the latter needs `model.logit_bias`.
    image_weight, region_weight: of the image-text and the region-text loss.
    """

    kind: Literal["infonce", "sigmoid"] = "infonce"
    image_weight: float = 1.0
    region_weight: float = 1.0


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) with warm-up and cosine decay.

    Attributes:
        lr: peak learning rate.
        fusion_lr_scale: the prompt encoder's and fusion's rate, as a multiple of `lr`: what starts at zero has a long way.
        weight_decay: for matrices; vectors, positions, tokens and temperatures have none.
        betas, eps: of AdamW.
        warmup_steps: linear warm-up.
        final_lr: the cosine's end, as a share of `lr`.
        clip_grad: largest gradient norm; null for no clipping.
    """

    lr: float = 5e-4
    fusion_lr_scale: float = 8.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    warmup_steps: int = 100
    final_lr: float = 0.0
    clip_grad: float | None = 1.0


@dataclass
class CheckpointConfig:
    """Attributes:
    every_steps: steps between checkpoints; the last step is always saved.
    every_minutes: also after so many minutes; null for steps only.
    keep: how many of the newest stay.
    """

    every_steps: int = 500
    every_minutes: float | None = 30.0
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError("expected 'every_steps' and 'keep' of at least 1")


@dataclass
class TrackingConfig:
    """Attributes:
    every_steps: steps between lines of log.jsonl, which is always written.
    wandb: Weights & Biases: "off", "offline" (files only) or "online".
    project, name: for Weights & Biases.
    """

    every_steps: int = 10
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "medpclip"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"'every_steps' is {self.every_steps}, expected at least 1")


@dataclass
class TrainConfig:
    """One run.

    Attributes:
        out: the run's folder: config.yaml, log.jsonl, checkpoints/.
        steps: optimizer steps.
        batch_size: images per step.
        accumulate: micro-batches per step; contrast is within each (batch_size / accumulate images).
        precision: "fp32", or "bf16" autocast.
        seed: of initialisation, order and all draws.
        device: "auto" takes a GPU where there is one.
    """

    out: Path
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    steps: int = 1000
    batch_size: int = 128
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.seed < 0:
            raise ValueError("expected 'steps' and 'batch_size' of at least 1, 'seed' of at least 0")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"'accumulate' is {self.accumulate}, expected a divisor of batch_size ({self.batch_size})")
        if (self.loss.kind == "sigmoid") != (self.model.logit_bias is not None):
            raise ValueError("'loss.kind' sigmoid needs model.logit_bias (as -10), and infonce needs it null")
