"""The contrastive losses on whole matrices, for autograd: what closed forms, caches and ranks are held to."""

import torch
from torch import Tensor


def whole_loss(kind: str, items: Tensor, texts: Tensor, targets: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """The same loss on a whole matrix, for autograd."""
    s = log_scale.exp() * items @ texts.T
    positive, known = targets == 1, targets != 0
    rows, columns = positive.any(1), positive.any(0)
    if kind == "sigmoid":
        pairs = -torch.nn.functional.logsigmoid((s + bias) * targets)
        return pairs[known].sum() / max(1, int(rows.sum()))
    if not rows.any():
        return s.sum() * 0
    if kind == "plain":  # each item's text in a column of its own
        own = targets.argmax(1)
        labels = torch.arange(len(own))
        return (
            torch.nn.functional.cross_entropy(s[:, own], labels)
            + torch.nn.functional.cross_entropy(s[:, own].T, labels)
        ) / 2
    masked = torch.where(known, s, torch.tensor(-1e9, dtype=s.dtype))
    if kind == "sum":
        true = torch.where(positive, s, torch.tensor(-1e9, dtype=s.dtype)).logsumexp(1)[rows]
    else:
        true = ((s * positive).sum(1)[rows]) / positive.sum(1)[rows]
    to_text = (masked.logsumexp(1)[rows] - true).mean()
    to_item = masked.logsumexp(0)[columns] - (s * positive).sum(0)[columns] / positive.sum(0)[columns]
    return (to_text + to_item.mean()) / 2
