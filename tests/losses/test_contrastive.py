"""The losses against double loops over the three-valued targets, and against open_clip's own."""

import math

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import SigLipLoss

from medpclip.losses import info_nce, sigmoid


def brute_info_nce(s: np.ndarray, t: np.ndarray) -> float:
    items, texts = s.shape
    rows = [i for i in range(items) if (t[i] == 1).any()]
    columns = [j for j in range(texts) if (t[:, j] == 1).any()]
    to_text = 0.0
    for i in rows:
        true = sum(math.exp(s[i, j]) for j in range(texts) if t[i, j] == 1)
        allowed = sum(math.exp(s[i, j]) for j in range(texts) if t[i, j] != 0)
        to_text -= math.log(true / allowed)
    to_item = 0.0
    for j in columns:
        allowed = sum(math.exp(s[i, j]) for i in range(items) if t[i, j] != 0)
        positives = [i for i in range(items) if t[i, j] == 1]
        to_item -= sum(math.log(math.exp(s[i, j]) / allowed) for i in positives) / len(positives)
    return (to_text + to_item * len(rows) / len(columns)) / 2 if rows else 0.0


def brute_sigmoid(s: np.ndarray, t: np.ndarray) -> float:
    return sum(
        math.log1p(math.exp(-int(t[i, j]) * s[i, j]))
        for i in range(s.shape[0])
        for j in range(s.shape[1])
        if t[i, j] != 0
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 10_000))
def test_losses_equal_a_double_loop(items: int, texts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    s, t = rng.normal(size=(items, texts)) * 3, rng.integers(-1, 2, size=(items, texts)).astype(np.int8)
    logits, targets = torch.tensor(s, dtype=torch.float32), torch.from_numpy(t)
    assert info_nce(logits, targets).item() == pytest.approx(brute_info_nce(s, t), rel=1e-4, abs=1e-5)
    assert sigmoid(logits, targets).item() == pytest.approx(brute_sigmoid(s, t), rel=1e-4, abs=1e-5)


def test_one_true_text_each_is_open_clips_loss() -> None:
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    targets = (2 * torch.eye(6) - 1).to(torch.int8)
    ours = info_nce(10.0 * image @ text.T, targets) / 6
    assert torch.allclose(ours, open_clip.ClipLoss()(image, text, torch.tensor(10.0)), atol=1e-6)
    theirs = SigLipLoss()(image, text, torch.tensor(10.0), torch.tensor(-3.0))
    assert torch.allclose(sigmoid(10.0 * image @ text.T - 3.0, targets) / 6, theirs, atol=1e-5)


@pytest.mark.parametrize("loss", [info_nce, sigmoid])
def test_gradients_are_finite_where_nothing_is_known(loss) -> None:  # type: ignore[no-untyped-def]
    logits = torch.randn(4, 3, requires_grad=True)
    targets = torch.tensor([[0, 0, 0], [-1, -1, -1], [1, 0, -1], [0, 1, 0]], dtype=torch.int8)
    loss(logits, targets).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert (logits.grad[0] == 0).all()  # nothing is known of item 0, so nothing is learned from it
    for empty in (torch.zeros(0, 3), torch.zeros(3, 0)):
        assert loss(empty, torch.zeros(empty.shape, dtype=torch.int8)).item() == 0.0
