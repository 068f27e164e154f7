"""The lexicon: medical terms with synonyms, parents and descriptions."""

from medpclip.data.lexicon.lexicon import Lexicon, Term

__all__ = ["Lexicon", "Term"]
