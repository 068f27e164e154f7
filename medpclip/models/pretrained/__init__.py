"""Where a model's first weights come from: open_clip's tags and files, and folders as others publish them."""

from medpclip.models.pretrained.find import check_agreement, find_pretrained
from medpclip.models.pretrained.source import Pretrained

__all__ = ["Pretrained", "check_agreement", "find_pretrained"]
