"""Contrastive losses between items (images or regions) and unique texts, with three-valued targets.

`logits[i, j]` is the scaled similarity of item i and text j; `targets[i, j]` says whether text j is true of item i
(1), false (-1), or neither is known (0: the pair takes no part). With one true text per item and nothing ignored, the
first loss is CLIP's (Radford et al. 2021, section 2.3) and the second SigLIP's (Zhai et al. 2023, section 3.2); several
positives and ignored pairs are our design.

Both return sums over items; the caller divides by the number of items in the *global* batch, which no rank can know by
itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax loss, both directions averaged; a scalar, in units of items.

    Item to text: -log(sum over positives of e^s / sum over not-ignored of e^s), for items with a positive.
    Text to item: the mean over a text's positives of -log(e^s / sum over not-ignored items of e^s), for texts with a
    positive, rescaled from texts to items so that both directions weigh the same however many texts there are.

    Args:
        logits: (items, texts) float32.
        targets: (items, texts) int8 of 1, -1, 0.
    """
    if logits.numel() == 0:
        return logits.sum()
    logits = logits.float()
    positive, ignored = targets == 1, targets == 0
    allowed = logits.masked_fill(ignored, -torch.inf)
    true = logits.masked_fill(~positive, -torch.inf)
    rows, columns = positive.any(1), positive.any(0)
    if not bool(rows.any()):
        return logits.sum() * 0.0
    to_text = (allowed[rows].logsumexp(1) - true[rows].logsumexp(1)).sum()
    shares = positive[:, columns].float() / positive[:, columns].sum(0)
    # log-probability of each pair; ignored pairs have share 0 and must not meet -inf.
    log_p = logits[:, columns] - allowed[:, columns].logsumexp(0)
    to_item = -(shares * log_p).sum() * (rows.sum() / columns.sum())
    return (to_text + to_item) / 2


def sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid loss: -log sigmoid(+-s) summed over all pairs that are not ignored; a scalar, in units of items.

    Args:
        logits: (items, texts) float32, the bias included.
        targets: (items, texts) int8 of 1, -1, 0.
    """
    return -(F.logsigmoid(logits.float() * targets) * (targets != 0)).sum()
