"""What a training run is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medpclip.config import to_mapping
from medpclip.data.loading.loader import DataConfig
from medpclip.losses import Positives
from medpclip.models.region_clip import ModelConfig


@dataclass
class LossConfig:
    """Attributes:
    kind: "infonce" (softmax) or "sigmoid"; the latter needs `model.logit_bias`.
    positives: infonce only: several true texts of an item count by the "sum" of their probabilities, or the "mean" of
        their log-probabilities. "plain" is CLIP's own loss, to compare with: each image and region has one text drawn for
        it, and all other images' and regions' texts count as false, equal and fitting ones too.
    image_weight, region_weight: of the image-text and the region-text loss.
    anchor_weight: of 1 - cosine between an image's unprompted embedding and that of the model as it was initialised; 0
        for none. It keeps a copy of the initial image tower.
    """

    kind: Literal["infonce", "sigmoid"] = "infonce"
    positives: Positives = "sum"
    image_weight: float = 1.0
    region_weight: float = 1.0
    anchor_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.image_weight, self.region_weight, self.anchor_weight)
        if not (all(0 <= weight < math.inf for weight in weights) and any(weights)):
            raise ValueError(
                "expected 'image_weight', 'region_weight' and 'anchor_weight' of at least 0, one of them more than 0"
            )
        if self.positives == "plain" and self.kind != "infonce":
            raise ValueError(f"'positives' plain needs kind infonce, which is {self.kind}")


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) with warm-up and cosine decay.

    Attributes:
        lr: peak learning rate.
        fusion_lr_scale: the prompt encoder's and fusion's rate, as a multiple of `lr`: what starts at zero has a long way.
        gain_lr_scale: the rate of what prompts' coverage and the glimpse are multiplied by, as a multiple of the fusion's:
            single numbers have further to go than matrices.
        layer_decay: each block's rate is this times that of the block above it, in both towers; 1 for the same everywhere.
        weight_decay: for matrices; vectors, positions, tokens and temperatures have none.
        betas, eps: of AdamW.
        warmup_steps: linear warm-up.
        final_lr: the cosine's end, as a share of `lr`.
        clip_grad: largest gradient norm; null for no clipping.
    """

    lr: float = 5e-4
    fusion_lr_scale: float = 8.0
    gain_lr_scale: float = 10.0
    layer_decay: float = 1.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    warmup_steps: int = 100
    final_lr: float = 0.0
    clip_grad: float | None = 1.0

    def __post_init__(self) -> None:
        for key in ("lr", "fusion_lr_scale", "gain_lr_scale", "eps"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"'{key}' is {getattr(self, key)}, expected more than 0")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"'clip_grad' is {self.clip_grad}, expected more than 0, or null for no clipping")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"'weight_decay' is {self.weight_decay}, expected at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"'betas' is {list(self.betas)}, expected two numbers of at least 0 and less than 1")
        if self.warmup_steps < 0:
            raise ValueError(f"'warmup_steps' is {self.warmup_steps}, expected at least 0")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"'final_lr' is {self.final_lr}, expected 0 to 1: it is a share of 'lr'")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"'layer_decay' is {self.layer_decay}, expected more than 0 and at most 1")


@dataclass
class EngineConfig:
    """What runs the model.

    Attributes:
        kind: "local" is plain torch, on one rank or several (gradients are averaged once a step); "deepspeed" shards.
        zero: DeepSpeed's ZeRO stage: 0 shards nothing, 1 the optimizer's state, 2 also gradients, 3 also parameters.
        offload: DeepSpeed keeps and updates the optimizer's state in the CPU's memory.
        deepspeed_config: a JSON file with more of DeepSpeed's settings; null for none.
        activation_checkpointing: keep no activations inside blocks, compute them again: less memory, a third more time.
        compile: `torch.compile` the model; minutes at the start, faster steps on a GPU.
    """

    kind: Literal["local", "deepspeed"] = "local"
    zero: Literal[0, 1, 2, 3] = 1
    offload: bool = False
    deepspeed_config: Path | None = None
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.kind == "local" and (self.offload or self.deepspeed_config is not None):
            raise ValueError("'offload' and 'deepspeed_config' need kind deepspeed")
        if self.offload and self.zero == 0:
            raise ValueError("'offload' needs zero of 1, 2 or 3")


@dataclass
class CheckpointConfig:
    """Attributes:
    every_steps: steps between checkpoints; the last step is always saved.
    every_minutes: also after so many minutes; null for steps only.
    keep: how many of the newest stay.
    keep_every_steps: those at multiples of so many steps stay for ever; null for none.
    """

    every_steps: int = 500
    every_minutes: float | None = 30.0
    keep: int = 2
    keep_every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1 or (self.keep_every_steps or 1) < 1:
            raise ValueError("expected 'every_steps', 'keep' and 'keep_every_steps' of at least 1")
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ValueError(f"'every_minutes' is {self.every_minutes}, expected more than 0, or null")


@dataclass
class SupervisionConfig:
    """When a run counts as broken.

    Attributes:
        nonfinite: what a loss or gradient that isn't finite does: "stop" the run, or "skip" the step, on all ranks.
        max_skipped: stop all the same after so many skipped steps in a row.
        start_seconds, step_seconds, save_seconds, evaluate_seconds: how long a stage may take without a sign of life: from
            the start to the end of the first step (compiling belongs to it), a later step, a checkpoint, an evaluation.
            A rank that takes longer ends the job; null for no limit.
    """

    nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = 10
    start_seconds: float | None = 1800.0
    step_seconds: float | None = 55.0
    save_seconds: float | None = 1800.0
    evaluate_seconds: float | None = 7200.0

    def __post_init__(self) -> None:
        limits = (self.start_seconds, self.step_seconds, self.save_seconds, self.evaluate_seconds)
        if self.max_skipped < 1 or any(limit is not None and limit <= 0 for limit in limits):
            raise ValueError("expected 'max_skipped' of at least 1, and seconds of more than 0")


@dataclass
class EvaluationConfig:
    """Evaluation during the run, by rank 0, of a copy of the weights.

    Attributes:
        tasks: task files, as `medpclip eval` takes them.
        every_steps: steps between evaluations; the last step is always evaluated. Null: at the end only.
    """

    tasks: list[Path] = field(default_factory=list)
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"'every_steps' is {self.every_steps}, expected at least 1, or null")


@dataclass
class TrackingConfig:
    """Attributes:
    every_steps: steps between lines of log.jsonl, which is always written.
    tensorboard: also write event files for TensorBoard.
    wandb: Weights & Biases: "off", "offline" (files only) or "online".
    project, name: for Weights & Biases.
    peak_tflops: what one device can do at this precision, for the share of it that is used (MFU); null for a GPU's data
        sheet where it is known, else a matrix product measured at the start.
    """

    every_steps: int = 10
    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "medpclip"
    name: str | None = None
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"'every_steps' is {self.every_steps}, expected at least 1")
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ValueError(f"'peak_tflops' is {self.peak_tflops}, expected more than 0, or null")


@dataclass
class TrainConfig:
    """One run.

    Attributes:
        out: the run's folder: config.yaml, log.jsonl, checkpoints/.
        steps: optimizer steps.
        batch_size: images per step, all ranks together: every image and region is contrasted with all texts of them.
        micro_batch_size: images that a rank passes through the model at once; null for all of its share. The contrast is
            the same whatever it is.
        precision: "fp32"; "bf16": autocast over float32 weights; "pure_bf16": bfloat16 weights with float32 masters;
            "fp16": float16 weights with float32 masters and loss scaling. The last two need engine deepspeed.
        freeze: parts that stay as they are: "image" (the trunk), "text" (the text tower), "fusion" (prompts).
        patch_drop: share of each image's patches that training leaves out; those under regions stay.
        ema_decay: per step, of a moving average of the weights, kept beside them; null for none.
        seed: of initialisation, order and all draws.
        device: "auto" takes a GPU where there is one.
    """

    out: Path
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    steps: int = 1000
    batch_size: int = 128
    micro_batch_size: int | None = None
    precision: Literal["fp32", "bf16", "pure_bf16", "fp16"] = "fp32"
    freeze: list[Literal["image", "text", "fusion"]] = field(default_factory=list)
    patch_drop: float = 0.0
    ema_decay: float | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.seed < 0:
            raise ValueError("expected 'steps' and 'batch_size' of at least 1, 'seed' of at least 0")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"'micro_batch_size' is {self.micro_batch_size}, expected at least 1, or null")
        if not 0 <= self.patch_drop < 1:
            raise ValueError(f"'patch_drop' is {self.patch_drop}, expected 0 to less than 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"'ema_decay' is {self.ema_decay}, expected more than 0 and less than 1, or null")
        if self.precision in ("pure_bf16", "fp16") and self.engine.kind != "deepspeed":
            raise ValueError(f"'precision' {self.precision} needs engine.kind deepspeed; bf16 is for both engines")
        if self.loss.anchor_weight and self.model.pretrained is None:
            raise ValueError("'loss.anchor_weight' needs model.pretrained: random weights are nothing to hold on to")
        if (self.loss.kind == "sigmoid") != (self.model.logit_bias is not None):
            raise ValueError("'loss.kind' sigmoid needs model.logit_bias (as -10), and infonce needs it null")


def public_config(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain data that may be shared: files and folders by their last names, no addresses."""
    data = to_mapping(config)

    def last(path: str | None) -> str | None:
        return Path(path).name if path else path

    data["out"] = last(data["out"])
    data["data"]["shards"] = [last(path) for path in data["data"]["shards"]]
    data["data"]["urls"] = sorted(data["data"]["urls"])
    data["model"] |= {key: last(data["model"][key]) for key in ("trunk", "pretrained")}
    data["engine"]["deepspeed_config"] = last(data["engine"]["deepspeed_config"])
    data["evaluation"]["tasks"] = [last(path) for path in data["evaluation"]["tasks"]]
    return data
