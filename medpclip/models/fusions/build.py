"""From a run file's `model.fusion` to the module."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from medpclip.data.loading.windows import WindowSpec
from medpclip.models.fusions.alpha_channel import AlphaChannel
from medpclip.models.fusions.conditioned import ConditionedFusion
from medpclip.models.fusions.config import FusionConfig, FusionKind
from medpclip.models.fusions.crops import Crop, PlacedCrop, PromptedCrop
from medpclip.models.fusions.interface import Fusion
from medpclip.models.fusions.markers import Blurred, DrawnBox, DrawnCircle, Greyed
from medpclip.models.fusions.pooling import MaskPooling, RoIAlign
from medpclip.models.fusions.region_tokens import RegionTokens
from medpclip.models.fusions.unprompted import Unprompted
from medpclip.models.preprocess import Preprocess
from medpclip.models.trunk.interface import Trunk

CONTEXT, MORE_CONTEXT = WindowSpec.context, 2.5  # sides of crops, as multiples of the prompt's extent
_FREE: Mapping[FusionKind, Callable[[Preprocess], Fusion]] = {
    "unprompted": lambda _: Unprompted(),
    "crop": lambda preprocess: Crop(preprocess.image_size, CONTEXT),
    "context_crop": lambda preprocess: Crop(preprocess.image_size, MORE_CONTEXT),
    "blurred": lambda _: Blurred(),
    "greyed": lambda _: Greyed(),
    "drawn_circle": DrawnCircle,
    "drawn_box": DrawnBox,
    "mask_pooling": lambda _: MaskPooling(),
    "roi_align": lambda _: RoIAlign(),
}
# Kinds without parameters of their own, which any trunk can answer by, trained that way or not.
TRAINING_FREE: tuple[FusionKind, ...] = tuple(_FREE)


def make_fusion(config: FusionConfig, trunk: Trunk, preprocess: Preprocess) -> Fusion:
    """The fusion that `config` asks for, at its start.

    Args:
        config: which, and how.
        trunk: only its sizes are read.
        preprocess: how the trunk's pixels are made.

    Raises:
        MedpclipError: the trunk can't have it.
    """
    if config.kind in _FREE:
        return _FREE[config.kind](preprocess)
    if config.kind == "placed_crop":
        return PlacedCrop(trunk, preprocess.image_size, CONTEXT)
    if config.kind == "alpha_channel":
        return AlphaChannel(trunk)
    if config.kind == "conditioned":
        return ConditionedFusion(trunk, config.depths, config.prompt_dim)
    return RegionTokens(trunk, config)


def prompted_crop(fusion: Fusion, preprocess: Preprocess) -> Fusion:
    """A model's own fusion, asked about crops instead of regions."""
    return PromptedCrop(fusion, preprocess.image_size, CONTEXT)
