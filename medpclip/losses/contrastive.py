"""Contrastive losses between items (images or regions) and unique texts, over all ranks, with three-valued targets.

`targets[i, j]` says whether text j is true of item i (1), false (-1), or neither is known (0: the pair takes no part).
With one true text per item and nothing ignored, `info_nce` is CLIP's loss (Radford et al. 2021, section 2.3) and `sigmoid`
SigLIP's (Zhai et al. 2023, section 3.2); several positives and ignored pairs are our design. With `positives` "plain",
`info_nce` is CLIP's loss also where items have equal texts, each copy a negative of the others' items.

Each rank has its own items and its own share of the texts. Losses are means over the items of all ranks. Gradients are
worked out here, in closed form, a few rows at a time: no graph and no whole matrix of logits is kept, so that the memory of
an effective batch is that of its embeddings. What comes back is the gradient of the *whole* loss with respect to what this
rank holds; the sum over ranks is that of a single process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medpclip.distributed import World
from medpclip.distributed.exchange import gather_rows, largest, pass_on, sum_own_rows, total
from medpclip.losses.shares import TextShares

Positives = Literal["sum", "mean", "plain"]

_LOGITS = 1 << 22  # that are worked on at once: 16 MiB of them


@dataclass
class Side:
    """One of the two losses, as this rank sees it: items of a kind and the texts they are contrasted with.

    Attributes:
        items: (n, D) L2-normalised; n may be 0 and differ between ranks.
        targets: (n, T) int8: of the texts of this side, in their order.
        first: number of this side's first text in the list of all.
        log_scale, bias: scalars; the latter is the sigmoid loss's.
        weight: of this loss.
    """

    items: Tensor
    targets: Tensor
    first: int
    log_scale: Tensor
    bias: Tensor
    weight: float = 1.0


@dataclass
class SideResult:
    """Attributes:
    loss: scalar: the mean over all ranks' items that have a true text, without the weight; the same on all ranks.
    items: (n, D), log_scale, bias: gradients of weight * loss with respect to what this rank holds.
    hits: this rank's items whose likeliest text is a true one.
    """

    loss: Tensor
    items: Tensor
    log_scale: Tensor
    bias: Tensor
    hits: int = 0


@dataclass
class Contrast:
    """Attributes:
    sides: in the order they were given.
    texts: (m, D): gradient with respect to this rank's texts.
    """

    sides: list[SideResult] = field(default_factory=list)
    texts: Tensor = field(default_factory=lambda: torch.zeros(0))


def info_nce(
    sides: list[Side], own: Tensor, shares: TextShares, world: World, positives: Positives = "sum"
) -> Contrast:
    """Softmax losses, both directions averaged.

    Item to text: -log(sum over positives of e^s / sum over not-ignored of e^s), for items with a positive; or, with
    `positives` "mean", the mean over positives of -log(e^s / sum over not-ignored).
    Text to item: the mean over a text's positives of -log(e^s / sum over not-ignored items of e^s), for texts with a
    positive, rescaled from texts to items so that both directions weigh the same however many texts there are.
    `positives` "plain", where each item has one positive and nothing is ignored: a text stands there once for each item
    that it is true of. That is the loss of the square matrix with each item's text in a column of its own and the diagonal
    true, although equal texts are one here: n copies add log n to a text's logit among an item's texts, and have n rows
    in the other direction.

    All texts are gathered on all ranks, once for both sides. Items stay where they are: of the direction from text to item,
    ranks exchange four numbers per text.

    Args:
        own: (m, D) this rank's texts, L2-normalised, as `shares.of(world.rank)` lists them.
        shares: who has which text.
    """
    texts = shares.in_order(gather_rows(own, world))
    gradient = torch.zeros_like(texts)
    results = [_info_nce_side(side, texts, gradient, world, positives) for side in sides]
    return Contrast(results, sum_own_rows(shares.as_gathered(gradient), world))


def _info_nce_side(side: Side, all_texts: Tensor, gradient: Tensor, world: World, positives: Positives) -> SideResult:
    items, targets = side.items, side.targets
    part = slice(side.first, side.first + targets.shape[1])
    texts, scale = all_texts[part], side.log_scale.exp()
    count = texts.shape[0]
    lowest = torch.finfo(items.dtype).min
    copies = _log_copies(targets, items, world) if positives == "plain" else items.new_zeros(count)
    chunks = list(_chunks(len(items), count))
    kept = scale * items @ texts.T if len(chunks) == 1 else None  # else they are computed a second time

    def logits(rows: slice) -> Tensor:
        return scale * items[rows] @ texts.T if kept is None else kept

    # Both directions' normalisers. `lowest` stands for -inf, which would make NaN of a text that nothing is known of.
    row_sum, row_true = items.new_zeros(len(items)), items.new_zeros(len(items))
    top, spread = items.new_full((count,), lowest), items.new_zeros(count)
    true_sum, true_count = items.new_zeros(count), items.new_zeros(count)
    hits = 0
    for rows in chunks:
        s, positive, ignored = logits(rows), targets[rows] == 1, targets[rows] == 0
        allowed = s.masked_fill(ignored, -torch.inf)
        row_sum[rows] = (allowed + copies).logsumexp(1)
        row_true[rows] = (
            s.masked_fill(~positive, -torch.inf).logsumexp(1)
            if positives == "sum"
            else (s * positive).sum(1) / positive.sum(1)
        )
        higher = torch.maximum(top, allowed.amax(0))
        spread = spread * (top - higher).exp() + (allowed - higher).exp().sum(0)
        top = higher
        true_sum += (s * positive).sum(0)
        true_count += positive.sum(0)
        hits += int(positive.gather(1, allowed.argmax(1, keepdim=True)).sum())
    has_true = (targets == 1).any(1)
    row_loss = torch.where(has_true, row_sum - row_true, row_sum.new_zeros(())).sum()

    common = largest(top.clone(), world)
    sums = torch.cat(
        [spread * (top - common).exp(), true_sum, true_count, row_loss[None], has_true.sum()[None].to(top)]
    )
    sums = total(sums, world)
    spread, true_sum, true_count = sums[: 3 * count].view(3, count).unbind()
    row_loss, rows_count = sums[3 * count], sums[3 * count + 1].clamp(min=1)
    has_item = true_count > 0
    weight = true_count if positives == "plain" else has_item.to(true_count)
    column_sum = torch.where(has_item, common + spread.log(), torch.inf)  # e^(s - inf) = 0: takes no part
    weight = weight * (rows_count / weight.sum().clamp(min=1))
    true_share = has_item / true_count.clamp(min=1)
    column_loss = torch.where(has_item, weight * (column_sum - true_sum * true_share), top.new_zeros(())).sum()
    loss = (row_loss + column_loss) / (2 * rows_count)

    by_items, by_scale = torch.zeros_like(items), items.new_zeros(())
    factor = side.weight / (2 * rows_count)
    for rows in chunks:
        s, positive = logits(rows), targets[rows] == 1
        allowed = s.masked_fill(targets[rows] == 0, -torch.inf)  # masked before exp, which overflows elsewhere
        true = s.masked_fill(~positive, -torch.inf) - row_true[rows, None]
        row_share = true.exp() if positives == "sum" else positive.to(s) / positive.sum(1, keepdim=True)
        share = (allowed + copies - row_sum[rows, None]).exp()
        by_row = torch.where(has_true[rows, None], share - row_share, s.new_zeros(()))
        by_column = (allowed - column_sum).exp() - positive * true_share
        by_logit = factor * (by_row + weight * by_column)
        by_items[rows] = scale * by_logit @ texts
        gradient[part] += scale * by_logit.T @ items[rows]
        by_scale += (by_logit * s).sum()
    return SideResult(loss, by_items, by_scale, torch.zeros_like(by_scale), hits)


def _log_copies(targets: Tensor, items: Tensor, world: World) -> Tensor:
    """(T,): log of how many items of all ranks have each text; that of a text of none doesn't count."""
    return total((targets == 1).sum(0).to(items), world).log()


def sigmoid(sides: list[Side], own: Tensor, shares: TextShares, world: World) -> Contrast:
    """Sigmoid losses: -log sigmoid(+-(s + bias)) summed over all pairs that are not ignored, per item that has a true text.

    No rank ever holds all texts: each rank's share goes around the ring, and its gradient travels with it (the chunked
    exchange of Zhai et al. 2023, section 3.3). Memory doesn't depend on the number of ranks.

    Args: as `info_nce`.
    """
    counts = own.new_tensor([(side.targets == 1).any(1).sum() for side in sides])
    counts = total(counts, world).clamp(min=1)
    results = [
        SideResult(own.new_zeros(()), torch.zeros_like(side.items), own.new_zeros(()), own.new_zeros(()))
        for side in sides
    ]
    best = [
        (side.items.new_full((len(side.items),), -torch.inf), side.targets.new_zeros(len(side.items))) for side in sides
    ]
    chunk, gradient = own, torch.zeros_like(own)
    for hop in range(world.size):
        numbers = shares.of((world.rank - hop) % world.size).to(own.device)
        for place, side in enumerate(sides):
            here = (numbers >= side.first) & (numbers < side.first + side.targets.shape[1])
            texts, targets = chunk[here], side.targets[:, numbers[here] - side.first]
            gradient[here] += _sigmoid_pairs(side, texts, targets, counts[place], results[place], best[place])
        if hop + 1 < world.size:
            chunk, gradient = pass_on([chunk, gradient], world)
    if world.size > 1:
        [gradient] = pass_on([gradient], world)  # home
    losses = total(torch.stack([result.loss for result in results]), world)
    for result, (_, true), loss in zip(results, best, losses, strict=True):
        result.loss, result.hits = loss, int((true == 1).sum())
    return Contrast(results, gradient)


def _sigmoid_pairs(
    side: Side, texts: Tensor, targets: Tensor, count: Tensor, result: SideResult, best: tuple[Tensor, Tensor]
) -> Tensor:
    """Add what items and some texts give to `result`, and to `best` each item's likeliest text so far and its target;
    returns the gradient with respect to the texts."""
    by_texts = torch.zeros_like(texts)
    scale = side.log_scale.exp()
    for rows in _chunks(len(side.items), len(texts)):
        items, sign = side.items[rows], targets[rows].to(side.items)
        s = scale * items @ texts.T
        z = s + side.bias
        result.loss += -(F.logsigmoid(z * sign) * sign.abs()).sum() / count
        by_logit = (-side.weight / count) * sign * torch.sigmoid(-z * sign)
        result.items[rows] += scale * by_logit @ texts
        by_texts += scale * by_logit.T @ items
        result.log_scale += (by_logit * s).sum()
        result.bias += by_logit.sum()
        top, column = s.masked_fill(sign == 0, -torch.inf).max(1)
        higher = top > best[0][rows]
        best[0][rows] = torch.where(higher, top, best[0][rows])
        best[1][rows] = torch.where(higher, targets[rows].gather(1, column[:, None])[:, 0], best[1][rows])
    return by_texts


def _chunks(rows: int, columns: int) -> list[slice]:
    """Rows in parts of at most `_LOGITS` pairs; none where there are no pairs."""
    size = max(1, _LOGITS // max(1, columns))
    return [slice(start, start + size) for start in range(0, rows if columns else 0, size)]
