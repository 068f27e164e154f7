"""Cut texts, against what can be counted by hand."""

import open_clip
import pytest
import torch

from medpclip.models.tokenizer import Tokenizer, make_tokenizer
from medpclip.train.truncation import truncation_rate


@pytest.fixture(scope="module", params=["clip", "bert"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A context of 8."""
    if request.param == "clip":
        return open_clip.SimpleTokenizer(context_length=8)
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "liver"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return make_tokenizer({"hf_tokenizer_name": str(folder), "context_length": 8}, None, "test")


@pytest.mark.parametrize(
    ("lengths", "rate"), [([1, 5, 6], 0), ([7], 1), ([5, 6, 7, 8], 0.5), ([30, 2, 2, 2], 0.25), ([], 0)]
)
def test_a_text_is_cut_beyond_the_context_less_its_two_ends(
    tokenizer: Tokenizer, lengths: list[int], rate: float
) -> None:
    texts = [" ".join(["a"] * n) for n in lengths]
    assert truncation_rate(tokenizer, texts) == rate
    if texts:
        assert truncation_rate(tokenizer, texts, tokenizer(texts)) == rate


def test_only_full_rows_are_looked_at_again() -> None:
    clip = open_clip.SimpleTokenizer(context_length=8)
    asked: list[int] = []

    def tokenizer(texts: list[str], context_length: int | None = None) -> torch.Tensor:
        asked.append(len(texts))
        return clip(texts, context_length)

    texts = ["liver"] * 50 + ["a " * 20] * 2
    tokens = clip(texts)
    assert truncation_rate(tokenizer, texts, tokens) == 2 / 52
    assert asked == [1, 2]
