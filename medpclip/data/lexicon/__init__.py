"""The lexicon: medical terms with synonyms, parents and descriptions."""

from medpclip.data.lexicon.lexicon import Lexicon, shipped_files
from medpclip.data.lexicon.terms import Term

__all__ = ["Lexicon", "Term", "shipped_files"]
