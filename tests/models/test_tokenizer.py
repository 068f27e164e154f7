"""A tokenizer and a text tower that don't belong together are refused before anything is embedded."""

import pytest

from medpclip.errors import MedpclipError
from medpclip.models.tokenizer import make_tokenizer


def test_more_tokens_than_the_tower_has_words_for() -> None:
    with pytest.raises(
        MedpclipError, match=r"here: text_cfg.vocab_size is 1000, and CLIP's tokenizer has 49408 tokens"
    ):
        make_tokenizer({"vocab_size": 1000, "context_length": 8}, None, "here")
    for fits in ({"vocab_size": 49408}, {"vocab_size": 50000}, {}):
        assert make_tokenizer(fits | {"context_length": 8}, None, "here")(["a lung"]).shape == (1, 8)
