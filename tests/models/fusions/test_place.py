"""Places and sizes as vectors: against the formula, one feature at a time, and what they do to a region token."""

import math
from pathlib import Path

import pytest
import torch

from medpclip.models import FusionConfig, ModelConfig, Prompts
from medpclip.models.fusions.place import Place
from medpclip.models.load import build_model


def expected(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    w, h = (x2 - x1) or 1.0, (y2 - y1) or 1.0
    middle = x1 + w / 2, y1 + h / 2
    angles = [m * math.pi * 2**k for m in middle for k in range(6)]
    waves = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return [*(2 * m - 1 for m in middle), *waves, math.log(max(w, 1e-3)) / 2, math.log(max(h, 1e-3)) / 2]


def test_features_are_those_of_the_formula() -> None:
    place = Place(28).double()
    rects = [[0.1, 0.2, 0.3, 0.9], [-0.5, 0.0, 1.5, 1.0], [0.5, 0.5, 0.5001, 0.75], [0.0, 0.0, 0.0, 0.0]]
    given = torch.tensor([rects], dtype=torch.float64)
    assert not place(given).any()  # zero at first
    with torch.no_grad():
        place.linear.weight.copy_(torch.eye(28))
    torch.testing.assert_close(place(given)[0], torch.tensor([expected(*r) for r in rects], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["box", "point", "mask"])
def test_one_step_moves_tokens_of_two_places_apart(kind: str, micro_trunk: Path) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(str(micro_trunk), fusion=FusionConfig(parts=["place"])))
    grid = model.mask_grid
    prompts = Prompts.empty(1, 2, 1, grid)
    if kind == "box":
        prompts.boxes = torch.tensor([[[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.9, 0.8]]])
        prompts.box_valid[:] = True
    elif kind == "point":
        prompts.points, prompts.point_labels[:] = torch.tensor([[[[0.2, 0.2]], [[0.7, 0.7]]]]), 1
    else:
        prompts.masks[0, 0, : grid // 4, : grid // 4] = prompts.masks[0, 1, grid // 2 :, grid // 2 :] = 1
        prompts.mask_valid[:] = True
    images, target = torch.randn(1, 3, 64, 64), torch.randn(model.output_dim)
    region = model(images, prompts).region[0]
    assert torch.equal(region[0], region[1])
    ((region[0] - region[1]) @ target + region[0] @ target).backward()
    with torch.no_grad():
        model.fusion.place.linear.weight -= 0.1 * model.fusion.place.linear.weight.grad
        moved = model(images, prompts).region[0]
    assert (moved[0] - moved[1]).norm() > 1e-3
