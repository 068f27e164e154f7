"""What a prompt points at, against loops over cells."""

import math

import pytest
import torch

from medpclip.models import Prompts
from medpclip.models.fusions.regions import extents, mask_extents, shares, visibility


def one_of_each() -> Prompts:
    """Rows: mask, box, clicks, mask and box, an empty mask and a box, a click off the region alone, nothing."""
    prompts = Prompts.empty(1, 7, 3, 16)
    for row in (0, 3):
        prompts.masks[0, row, 4:8, 2:12] = torch.rand(4, 10, generator=torch.Generator().manual_seed(0)) + 0.01
        prompts.mask_valid[0, row] = True
    for row in (1, 3, 4):
        prompts.boxes[0, row] = torch.tensor([0.30, 0.42, 0.37, 0.91])
        prompts.box_valid[0, row] = True
    prompts.mask_valid[0, 4] = True
    prompts.points[0, 2] = torch.tensor([[0.2, 0.4], [0.4, 0.5], [0.9, 0.1]])
    prompts.point_labels[0, 2] = torch.tensor([1, 1, 0])
    prompts.points[0, 5, 0], prompts.point_labels[0, 5, 0] = 0.25, 0
    return prompts


def test_extents_by_rank() -> None:
    mask, box = [2 / 16, 4 / 16, 12 / 16, 8 / 16], [0.30, 0.42, 0.37, 0.91]
    click, whole = [0.3 - 0.125, 0.45 - 0.125, 0.3 + 0.125, 0.45 + 0.125], [0.0, 0.0, 1.0, 1.0]
    expected = torch.tensor([mask, box, click, mask, box, whole, whole])
    assert torch.allclose(extents(one_of_each())[0], expected, atol=1e-6)


def test_extents_stay_within_the_image() -> None:
    prompts = Prompts.empty(1, 1, 1, 16)
    prompts.points[0, 0, 0], prompts.point_labels[0, 0, 0] = torch.tensor([0.05, 0.95]), 1
    assert torch.allclose(extents(prompts, 0.2)[0, 0], torch.tensor([0.0, 0.85, 0.15, 1.0]))


def test_extents_of_masks_are_those_of_what_is_covered_at_all() -> None:
    masks = torch.zeros(1, 3, 8, 4)
    masks[0, 0, 2:4, 1:2] = 0.1
    masks[0, 1, 7, 3] = 1
    assert mask_extents(masks)[0].tolist() == [[0.25, 0.25, 0.5, 0.5], [0.75, 0.875, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("cells", [4, 16, 48])
def test_shares_equal_a_loop(cells: int) -> None:
    """Fewer cells than the mask has, as many, and more."""
    prompts, radius = one_of_each(), 0.1
    found = shares(prompts, cells, cells, radius)[0]
    fine = 48  # which all of these divide
    for y in range(cells):
        for x in range(cells):
            mask = 0.0
            for fine_y in range(y * fine // cells, (y + 1) * fine // cells):
                for fine_x in range(x * fine // cells, (x + 1) * fine // cells):
                    mask += float(prompts.masks[0, 0, fine_y * 16 // fine, fine_x * 16 // fine])
            mask /= (fine / cells) ** 2
            across = max(0.0, min(0.37, (x + 1) / cells) - max(0.30, x / cells))
            box = across * max(0.0, min(0.91, (y + 1) / cells) - max(0.42, y / cells)) * cells**2
            middle = ((x + 0.5) / cells, (y + 0.5) / cells)
            click = max(math.exp(-0.5 * (math.dist(middle, at) / radius) ** 2) for at in ((0.2, 0.4), (0.4, 0.5)))
            expected = torch.tensor([mask, box, click, mask, box, 1.0, 1.0])
            assert torch.allclose(found[:, y, x], expected, atol=1e-5)


def test_a_region_smaller_than_a_cell_is_as_visible_as_any() -> None:
    """Else what washes out the surroundings would wash out small organs too, whose masks cover no cell."""
    prompts = Prompts.empty(1, 3, 1, 16)
    prompts.masks[0, 0, 4, 5:7], prompts.masks[0, 1, 2:4, 3] = torch.tensor([0.1, 0.05]), 1
    prompts.mask_valid[0, :2] = True
    found = visibility(prompts, 32, 32, 0.1)[0]
    assert torch.allclose(found[0, 8:10, 10:14], torch.tensor([1.0, 1.0, 0.5, 0.5]).expand(2, 4))
    assert found[0].sum() == 6
    assert torch.equal(found[1:], shares(prompts, 32, 32, 0.1)[0, 1:])
