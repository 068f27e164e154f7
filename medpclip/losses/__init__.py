"""Contrastive losses over images, regions and texts."""

from medpclip.losses.contrastive import info_nce, sigmoid

__all__ = ["info_nce", "sigmoid"]
