"""Ways to get a region's embedding from a CLIP: ours, and those that it is compared with."""

from medpclip.models.fusions.build import TRAINING_FREE, make_fusion, prompted_crop
from medpclip.models.fusions.config import FUSION_KINDS, FusionConfig, FusionKind
from medpclip.models.fusions.interface import Fusion

__all__ = ["FUSION_KINDS", "TRAINING_FREE", "Fusion", "FusionConfig", "FusionKind", "make_fusion", "prompted_crop"]
