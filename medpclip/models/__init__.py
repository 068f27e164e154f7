"""The model: trunk, prompts, fusion, RegionCLIP."""

from medpclip.models.prompts import Prompts
from medpclip.models.region_clip import Embeddings, FusionConfig, ModelConfig, RegionCLIP

__all__ = ["Embeddings", "FusionConfig", "ModelConfig", "Prompts", "RegionCLIP"]
