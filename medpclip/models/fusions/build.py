"""From a run file's `model.fusion` to the module."""

from __future__ import annotations

from medpclip.models.fusions.conditioned import ConditionedFusion
from medpclip.models.fusions.config import FusionConfig
from medpclip.models.fusions.interface import Fusion
from medpclip.models.fusions.region_tokens import RegionTokens
from medpclip.models.trunk.interface import Trunk


def make_fusion(config: FusionConfig, trunk: Trunk) -> Fusion:
    """The fusion that `config` asks for, at its start.

    Raises:
        MedpclipError: the trunk can't have it.
    """
    if config.kind == "region_tokens":
        return RegionTokens(trunk, config.prompt_dim)
    return ConditionedFusion(trunk, config.depths, config.prompt_dim)
