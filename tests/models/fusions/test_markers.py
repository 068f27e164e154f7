"""What is done to pixels, pixel by pixel."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.fusions.markers import Marked
from medpclip.models.fusions.regions import visibility
from medpclip.models.load import build_model

SIZE = 64
BOX = (0.25, 0.5, 0.5, 0.9375)  # pixels 16 to 32, and 32 to 60
MARKERS = ("blurred", "greyed", "drawn_circle", "drawn_box")


def build(trunk: Path, kind: str) -> RegionCLIP:
    torch.manual_seed(0)
    return build_model(ModelConfig(str(trunk), fusion=FusionConfig(kind))).eval()  # type: ignore[arg-type]


def pictures() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def prompts_of(model: RegionCLIP) -> Prompts:
    """Rows: a box, a click, a mask, nothing."""
    prompts = Prompts.empty(2, 4, 1, model.mask_grid)
    prompts.boxes[:, 0], prompts.box_valid[:, 0] = torch.tensor(BOX), True
    prompts.points[:, 1, 0], prompts.point_labels[:, 1, 0] = torch.tensor([0.3, 0.6]), 1
    prompts.masks[:, 2, 3:7, 8:16], prompts.mask_valid[:, 2] = 1, True
    return prompts


def marked(model: RegionCLIP) -> Tensor:
    assert isinstance(model.fusion, Marked)
    return model.fusion.mark(model.trunk, pictures(), prompts_of(model))


@torch.no_grad()
@pytest.mark.parametrize("kind", MARKERS)
def test_a_region_is_the_marked_image_as_an_image(micro_trunk: Path, kind: str) -> None:
    model = build(micro_trunk, kind)
    region = model.encode_regions(pictures(), prompts_of(model))[1]
    expected = torch.stack([model.encode_image(copies) for copies in marked(model)])
    assert torch.allclose(region, expected, atol=1e-5)
    keep = torch.tensor([[0, 3, 9], [1, 2, 15]])
    few = model.encode_regions(pictures(), prompts_of(model), keep=keep)[1]
    for r in range(4):
        assert torch.allclose(few[:, r], model.encode_image(marked(model)[:, r], keep=keep), atol=1e-5)


@pytest.mark.parametrize("kind", ["blurred", "greyed"])
def test_the_surroundings_give_way(micro_trunk: Path, kind: str) -> None:
    model, images = build(micro_trunk, kind), pictures()
    found = marked(model)
    instead = torch.zeros_like(images)
    if kind == "blurred":
        sigma = SIZE / 16
        for place in ((0, 0), (5, 40), (63, 30)):  # at a corner, an edge and within
            total, weights = torch.zeros(2, 3), 0.0
            for y in range(SIZE):
                for x in range(SIZE):
                    weight = math.exp(-0.5 * ((y - place[0]) ** 2 + (x - place[1]) ** 2) / sigma**2)
                    total, weights = total + weight * images[:, :, y, x], weights + weight
            assert torch.allclose(found[:, 0, :, place[0], place[1]], total / weights, atol=1e-5)
            instead[:, :, place[0], place[1]] = total / weights
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[32:60, 16:32] = True
    assert torch.allclose(found[:, 0][:, :, inside], images[:, :, inside])
    if kind == "greyed":
        assert not found[:, 0][:, :, ~inside].any()
    else:  # outside it is smooth, inside it is not
        assert found[:, 0][:, :, ~inside].std() < 0.3 < images.std()
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[12:28, 32:64] = True  # a cell of the mask is 4 pixels
    assert torch.allclose(found[:, 2][:, :, inside], images[:, :, inside])
    assert not torch.allclose(found[:, 2][:, :, ~inside], images[:, :, ~inside], atol=0.1)
    assert torch.allclose(found[:, 3], images)  # nothing is pointed at: the image as it is
    soft = visibility(prompts_of(model), SIZE, SIZE, 1 / 4)[0, 1]
    y, x = 38, 19  # the click
    assert soft[y, x] > 0.99 and soft[y, x + 16] == pytest.approx(math.exp(-0.5), abs=0.02)  # a patch away
    if kind == "greyed":
        assert torch.allclose(found[:, 1], images * soft, atol=1e-6)


@pytest.mark.parametrize("kind", ["drawn_circle", "drawn_box"])
def test_a_red_line_just_outside(micro_trunk: Path, kind: str) -> None:
    model, images = build(micro_trunk, kind), pictures()
    mean, std = model.preprocess.mean, model.preprocess.std
    red = torch.tensor([(1 - mean[0]) / std[0], -mean[1] / std[1], -mean[2] / std[2]])
    found = marked(model)
    line = 1 / 64
    x1, y1, x2, y2 = BOX
    halves, middle = ((x2 - x1) / 2, (y2 - y1) / 2), ((x1 + x2) / 2, (y1 + y2) / 2)
    drawn = 0
    for y in range(SIZE):
        for x in range(SIZE):
            off = abs((x + 0.5) / SIZE - middle[0]), abs((y + 0.5) / SIZE - middle[1])
            if kind == "drawn_box":
                within = all(o <= h for o, h in zip(off, halves, strict=True))
                beyond = any(o > h + line for o, h in zip(off, halves, strict=True))
            else:
                within = math.hypot(off[0] / halves[0], off[1] / halves[1]) <= 1
                beyond = math.hypot(off[0] / (halves[0] + line), off[1] / (halves[1] + line)) > 1
            on = not within and not beyond
            drawn += on
            expected = red.expand(2, 3) if on else images[:, :, y, x]
            assert torch.allclose(found[:, 0, :, y, x], expected, atol=1e-5), (y, x)
    if kind == "drawn_box":
        assert drawn == 18 * 30 - 16 * 28  # a pixel wide
    else:
        assert 60 < drawn < 18 * 30 - 16 * 28


def test_a_line_around_all_of_the_image_stays_within_it(micro_trunk: Path) -> None:
    model = build(micro_trunk, "drawn_box")
    changed = (marked(model)[:, 3] != pictures()).any(1)
    frame = torch.ones(SIZE, SIZE, dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    assert torch.equal(changed, frame.expand(2, -1, -1))
