"""Contrastive losses over images, regions and texts of all ranks."""

from medpclip.losses.contrastive import Contrast, Positives, Side, info_nce, sigmoid
from medpclip.losses.shares import TextShares

__all__ = ["Contrast", "Positives", "Side", "TextShares", "info_nce", "sigmoid"]
