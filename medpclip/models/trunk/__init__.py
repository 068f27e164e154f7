"""The image towers that region prompts can be fused into, one adapter per family; anything else is refused by name.

Only public attributes of open_clip's and timm's modules are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from medpclip.errors import MedpclipError
from medpclip.models.trunk.interface import Block, Pool, Trunk, saved_or_repeated
from medpclip.models.trunk.plain import PlainTrunk, problem_of_plain
from medpclip.models.trunk.timm_vit import TimmTrunk, problem_of_timm

if TYPE_CHECKING:  # fusions build on this package and need torch alone
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

__all__ = ["Block", "Pool", "Trunk", "adapt", "check_plain", "check_supported", "saved_or_repeated"]


def adapt(visual: nn.Module) -> Trunk:
    """The pieces of a supported image tower."""
    return TimmTrunk(visual) if hasattr(visual, "trunk") else PlainTrunk(visual)


def check_supported(visual: nn.Module, name: str) -> VisionTransformer | TimmModel:
    """The image tower of an open_clip model, if region prompts can be fused into it.

    Supported are open_clip's plain ViTs with a CLS token, and timm's ViTs with a CLS token or an attention pool.

    Raises:
        MedpclipError: naming what is not supported, in one line.
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        problem = problem_of_plain(visual)
    elif isinstance(visual, TimmModel):
        problem = problem_of_timm(visual)
    else:
        problem = f"is a {type(visual).__name__}; region prompts need a ViT"
    if problem:
        raise MedpclipError(f"model {name!r}: its image tower {problem}; choose a plain ViT such as ViT-B-16")
    return visual


def check_plain(visual: nn.Module, name: str) -> VisionTransformer:
    """As `check_supported`, of open_clip's own ViTs only.

    Raises:
        MedpclipError: another tower, in one line.
    """
    from open_clip.transformer import VisionTransformer

    check_supported(visual, name)
    if not isinstance(visual, VisionTransformer):
        raise MedpclipError(
            f"model {name!r}: its image tower is a {type(visual).__name__}; only open_clip's own VisionTransformer will do"
        )
    return visual
