"""Phantoms: procedural "medical" images with exact annotations, the data that come with medpclip.

Made hard on purpose (our design). Every image holds several categories, so an embedding of the whole image can't say what
one region is. Some pairs of categories differ only by place, by fine texture, or by shape (`PAIRS`), with all else
distributed alike by construction. Held-out images come from ranges outside the training ranges (`ranges.py`).
"""

from medpclip.data.phantom.kinds import CATEGORIES, LOOKS, PAIRS
from medpclip.data.phantom.ranges import HELD_OUT_RANGES, TRAIN_RANGES
from medpclip.data.phantom.write import write_phantoms

__all__ = ["CATEGORIES", "HELD_OUT_RANGES", "LOOKS", "PAIRS", "TRAIN_RANGES", "write_phantoms"]
