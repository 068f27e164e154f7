"""Engines run a model: precision, backward, clipping, the optimizer's step, its state; locally or by DeepSpeed."""

from medpclip.train.engines.base import Engine, Forward, Outputs, StepResult

__all__ = ["Engine", "Forward", "Outputs", "StepResult"]
