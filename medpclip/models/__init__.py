"""The model: trunk, prompts, fusion, RegionCLIP."""

from medpclip.models.fusions import FusionConfig
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.region_clip import Embeddings, ModelConfig, RegionCLIP

__all__ = ["Embeddings", "FusionConfig", "ModelConfig", "Prompts", "RegionCLIP", "Windows"]
