"""How many texts are too long for the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def truncation_rate(tokenizer: Callable[..., Tensor], texts: Sequence[str], tokens: Tensor | None = None) -> float:
    """Share of texts that the tokenizer had to cut at the model's context.

    Texts whose rows are full are tokenized once more with twice the context: those that then say more were cut.

    Args:
        tokenizer: open_clip's SimpleTokenizer or HFTokenizer, or what wraps one; takes `context_length`.
        texts: as they were given to it.
        tokens: (T, context) that came of it; None to make them.
    """
    if not texts:
        return 0.0
    tokens = tokenizer(list(texts)) if tokens is None else tokens.cpu()
    context = tokens.shape[1]
    padding = tokenizer([""])[0].mode().values  # an empty text is nearly all padding
    # One short of the context is full too: some tokenizers end a text by what they pad with.
    full = [i for i, count in enumerate((tokens != padding).sum(1).tolist()) if count >= context - 1]
    if not full:
        return 0.0
    longer = tokenizer([texts[i] for i in full], context_length=2 * context)
    cut = (longer != padding).sum(1) > (tokens[full] != padding).sum(1)
    return float(cut.sum()) / len(texts)
