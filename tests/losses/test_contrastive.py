"""The losses against double loops over the three-valued targets, against autograd, and against open_clip's own."""

import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from torch import Tensor
from whole_losses import whole_loss

from medpclip.distributed import World
from medpclip.losses import Contrast, Side, TextShares, contrastive, info_nce, sigmoid

ALONE = World()


def brute_info_nce(s: np.ndarray, t: np.ndarray, positives: str) -> float:
    items, texts = s.shape
    rows = [i for i in range(items) if (t[i] == 1).any()]
    columns = [j for j in range(texts) if (t[:, j] == 1).any()]
    to_text = 0.0
    for i in rows:
        true = [math.exp(s[i, j]) for j in range(texts) if t[i, j] == 1]
        allowed = sum(math.exp(s[i, j]) for j in range(texts) if t[i, j] != 0)
        if positives == "sum":
            to_text -= math.log(sum(true) / allowed)
        else:
            to_text -= sum(math.log(e / allowed) for e in true) / len(true)
    to_item = 0.0
    for j in columns:
        allowed = sum(math.exp(s[i, j]) for i in range(items) if t[i, j] != 0)
        positive = [i for i in range(items) if t[i, j] == 1]
        to_item -= sum(math.log(math.exp(s[i, j]) / allowed) for i in positive) / len(positive)
    return (to_text / len(rows) + to_item / len(columns)) / 2 if rows else 0.0


def brute_sigmoid(s: np.ndarray, t: np.ndarray) -> float:
    pairs = sum(
        math.log1p(math.exp(-int(t[i, j]) * s[i, j]))
        for i in range(s.shape[0])
        for j in range(s.shape[1])
        if t[i, j] != 0
    )
    return pairs / max(1, int((t == 1).any(1).sum()))


def drawn_plain(items: int, texts: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same where each item has one text, which it may share, and all others are false of it."""
    x, y, _ = drawn(items, texts, seed)
    own = torch.randint(0, texts, (items,))
    return x, y, (2 * torch.nn.functional.one_hot(own, texts) - 1).to(torch.int8)


def drawn(items: int, texts: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items, texts, targets."""
    torch.manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(items + texts, 6, dtype=torch.float64), dim=-1)
    return vectors[:items], vectors[items:], torch.randint(-1, 2, (items, texts), dtype=torch.int8)


def side(items: Tensor, targets: Tensor, scale: float = 1.2, bias: float = -0.7, first: int = 0) -> Side:
    return Side(items, targets, first, items.new_tensor(scale), items.new_tensor(bias), weight=0.6)


def contrast(kind: str, sides: list[Side], texts: Tensor) -> Contrast:
    shares = TextShares(len(texts), 1, 1)
    padded = torch.cat([texts, texts.new_zeros(shares.per_micro - len(texts), texts.shape[1])])
    if kind == "sigmoid":
        return sigmoid(sides, padded, shares, ALONE)
    return info_nce(sides, padded, shares, ALONE, kind)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 10_000))
def test_losses_equal_a_double_loop(items: int, texts: int, seed: int) -> None:
    x, y, t = drawn(items, texts, seed)
    s = math.exp(1.2) * (x @ y.T).numpy()
    for kind in ("sum", "mean"):
        loss = contrast(kind, [side(x, t)], y).sides[0].loss
        assert loss.item() == pytest.approx(brute_info_nce(s, t.numpy(), kind), rel=1e-9, abs=1e-12)
    loss = contrast("sigmoid", [side(x, t)], y).sides[0].loss
    assert loss.item() == pytest.approx(brute_sigmoid(s - 0.7, t.numpy()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("logits", [1, 1 << 22])  # a row at a time, and all at once
@pytest.mark.parametrize("kind", ["sum", "mean", "plain", "sigmoid"])
@settings(max_examples=15, deadline=None)
@given(counts=st.tuples(st.integers(0, 6), st.integers(0, 6)), texts=st.tuples(st.integers(0, 5), st.integers(1, 5)))
def test_gradients_are_those_of_autograd(
    kind: str, logits: int, counts: tuple[int, int], texts: tuple[int, int]
) -> None:
    """Two sides over one list of texts, each on its own part of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, "_LOGITS", logits)
        _, all_texts, _ = drawn(1, sum(texts), 5)
        sides = []
        for place, (n, m) in enumerate(zip(counts, texts, strict=True)):
            x, _, t = drawn_plain(n, m, place) if kind == "plain" and m else drawn(n, m, place)
            sides.append(side(x, t, scale=0.5 + place, first=texts[0] * place))
        ours = contrast(kind, sides, all_texts)
    y = all_texts.clone().requires_grad_()
    for place, (one, result) in enumerate(zip(sides, ours.sides, strict=True)):
        part = y[: texts[0]] if place == 0 else y[texts[0] :]
        variables = [v.clone().requires_grad_() for v in (one.items, one.log_scale, one.bias)]
        loss = whole_loss(kind, variables[0], part, one.targets, *variables[1:])
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-9, abs=1e-12)
        (0.6 * loss).backward()
        for name, variable in zip(("items", "log_scale", "bias"), variables, strict=True):
            expected = torch.zeros_like(variable) if variable.grad is None else variable.grad
            assert torch.allclose(getattr(result, name), expected, rtol=1e-10, atol=1e-12), name
    expected = torch.zeros_like(all_texts) if y.grad is None else y.grad
    assert torch.allclose(ours.texts[: len(all_texts)], expected, rtol=1e-10, atol=1e-12)


def test_one_true_text_each_is_open_clips_loss() -> None:
    from open_clip.loss import ClipLoss, SigLipLoss  # here, since the ranks read this file too

    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    targets = (2 * torch.eye(6) - 1).to(torch.int8)
    one = side(image, targets, math.log(10.0), -3.0)
    expected = ClipLoss()(image, text, torch.tensor(10.0))
    assert torch.allclose(contrast("sum", [one], text).sides[0].loss, expected, atol=1e-6)
    assert torch.allclose(contrast("plain", [one], text).sides[0].loss, expected, atol=1e-6)
    theirs = SigLipLoss()(image, text, torch.tensor(10.0), torch.tensor(-3.0))
    assert torch.allclose(contrast("sigmoid", [one], text).sides[0].loss, theirs, atol=1e-5)


@pytest.mark.parametrize("logits", [1, 1 << 22])
def test_plain_is_open_clips_loss_with_a_text_of_its_own_for_each_item(
    logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its value and gradients, where equal texts stand in several columns there, and in one here."""
    from open_clip.loss import ClipLoss

    monkeypatch.setattr(contrastive, "_LOGITS", logits)
    sides, losses = [], []
    _, all_texts, _ = drawn(1, 3 + 5, 2)
    texts = all_texts.clone().requires_grad_()
    for first, count, items in ((0, 3, 8), (3, 5, 17)):
        x, _, targets = drawn_plain(items, count, first)
        assert len(set(targets.argmax(1).tolist())) < items  # some share theirs
        one = side(x, targets, first=first)
        one.items = x.clone().requires_grad_()
        one.log_scale.requires_grad_()
        own = texts[first : first + count][targets.argmax(1)]
        losses.append(ClipLoss()(one.items, own, one.log_scale.exp()))
        (one.weight * losses[-1]).backward()
        sides.append(one)
    with torch.no_grad():
        ours = contrast("plain", sides, all_texts)
    for one, result, loss in zip(sides, ours.sides, losses, strict=True):
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        assert torch.allclose(result.items, one.items.grad, rtol=1e-10, atol=1e-14)
        assert torch.allclose(result.log_scale, one.log_scale.grad, rtol=1e-10, atol=1e-14)
    assert torch.allclose(ours.texts, texts.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["sum", "mean", "sigmoid"])
def test_large_scales_and_what_nothing_is_known_of(kind: str) -> None:
    """float32 at CLIP's largest scale, where e^s of a pair that is ignored would overflow."""
    x, y, _ = drawn(4, 3, 1)
    x[1], x[2] = y[0], -y[0]
    targets = torch.tensor([[0, 0, 0], [0, -1, 1], [1, 0, -1], [0, 1, 0]], dtype=torch.int8)
    one = side(x.float(), targets, math.log(100))
    result = contrast(kind, [one], y.float())
    for tensor in (result.sides[0].loss, result.sides[0].items, result.texts, result.sides[0].log_scale):
        assert torch.isfinite(tensor).all()
    assert (result.sides[0].items[0] == 0).all()  # nothing is known of item 0, so nothing is learned from it


def test_hits_are_items_whose_likeliest_known_text_is_true() -> None:
    x = torch.eye(3, 6, dtype=torch.float64)
    targets = torch.tensor([[1, -1, -1], [-1, -1, 1], [1, -1, 0]], dtype=torch.int8)
    texts = torch.eye(3, 6, dtype=torch.float64)
    for kind in ("sum", "sigmoid"):
        # 0: likeliest is text 0, true. 1: text 1, false. 2: text 2 is not known, and of the others the first is drawn.
        assert contrast(kind, [side(x, targets)], texts + 0.01 * texts[0]).sides[0].hits == 2


def test_round_robin_gives_every_text_one_owner() -> None:
    for count in range(20):
        shares = TextShares(count, 3, 2)
        owned = torch.cat([shares.of(rank) for rank in range(3)])
        assert sorted(owned[owned >= 0].tolist()) == list(range(count))
        assert len(owned) == 6 * shares.per_micro
        rows = owned[:, None].float()
        assert shares.in_order(rows)[:, 0].tolist() == list(range(count))
        assert torch.equal(shares.as_gathered(shares.in_order(rows)).clamp(min=0), rows.clamp(min=0))


def ranks_script() -> None:
    """As a rank: its part of the items and texts; prints the largest difference from the whole."""
    from medpclip.distributed import join

    world = join("cpu")
    items, texts = (3, 0, 5, 2)[: world.size], (4, 6)
    worst = 0.0
    for kind in ("sum", "mean", "plain", "sigmoid"):
        whole, parts = [], []
        for place, m in enumerate(texts):
            x, _, t = (drawn_plain if kind == "plain" else drawn)(sum(items), m, 10 + place)
            start = sum(items[: world.rank])
            part = slice(start, start + items[world.rank])
            first = texts[0] * place
            whole.append(side(x, t, 1.0 + place, first=first))
            parts.append(side(x[part], t[part], 1.0 + place, first=first))
        _, all_texts, _ = drawn(1, sum(texts), 3)
        expected = contrast(kind, whole, all_texts)
        shares = TextShares(sum(texts), world.size, 2)
        numbers = shares.of(world.rank)
        own = torch.where(numbers[:, None] >= 0, all_texts[numbers], 0.0)
        ours = sigmoid if kind == "sigmoid" else partial(info_nce, positives=kind)
        got = ours(parts, own, shares, world)
        pairs = [(got.texts[numbers >= 0], expected.texts[numbers[numbers >= 0]])]
        assert (got.texts[numbers < 0] == 0).all()
        scalars: list[float] = []
        for a, b in zip(got.sides, expected.sides, strict=True):
            pairs += [(a.loss, b.loss), (a.items, b.items[part])]
            scalars += [a.log_scale.item(), a.bias.item(), a.hits]
        sums = world.total(scalars)
        wanted = [v for b in expected.sides for v in (b.log_scale.item(), b.bias.item(), b.hits)]
        pairs.append((torch.tensor(sums), torch.tensor(wanted)))
        worst = max([worst, *((a - b).abs().max().item() for a, b in pairs if a.numel())])
    print(worst)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_with_their_parts_have_the_gradients_of_the_whole(world: int) -> None:
    for output in run_ranks(Path(__file__), world):
        assert float(output.splitlines()[-1]) < 1e-10


if __name__ == "__main__":
    sys.exit(ranks_script())
