"""Coverage of patches, against counting."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.models import Prompts
from medpclip.models.prompt_encoder import CHANNELS, Coverage, PromptEncoder, mask_outline

GRID = 4


def cover(prompts: Prompts) -> dict[str, torch.Tensor]:
    """Channel -> (GRID, GRID) of the only region."""
    out = Coverage((GRID, GRID))(prompts)[0, 0].detach()
    return {name: out[i].reshape(GRID, GRID) for i, name in enumerate(CHANNELS)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=4, max_size=4))
def test_box_overlap_is_exact(corners: list[int]) -> None:
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    picture = np.zeros((400, 400))
    picture[y1:y2, x1:x2] = 1
    expected = picture.reshape(GRID, 100, GRID, 100).mean((1, 3))
    prompts = Prompts.empty(1, 1, 1, 16)
    prompts.boxes[0, 0] = torch.tensor([x1, y1, x2, y2]) / 400
    prompts.box_valid[:] = True
    assert np.allclose(cover(prompts)["box"], expected, atol=1e-5)


def test_a_mask_smaller_than_a_patch_keeps_its_share_and_stands_out() -> None:
    prompts = Prompts.empty(1, 1, 1, 16)
    prompts.masks[0, 0, 5, 9] = 0.5  # half a cell, of the 16 in the patch at row 1, column 2
    prompts.mask_valid[:] = True
    out = cover(prompts)
    assert out["mask"][1, 2] == 0.5 / 16 and out["mask"].sum() == 0.5 / 16
    assert out["mask_normalised"][1, 2] == 1.0 and out["mask_normalised"].sum() == 1.0


def test_clicks_fall_off_with_distance_and_keep_their_signs_apart() -> None:
    prompts = Prompts.empty(1, 1, 2, 16)
    prompts.points[0, 0] = torch.tensor([[2.5, 1.5], [0.5, 0.5]]) / GRID
    prompts.point_labels[0, 0] = torch.tensor([1, 0])
    out = cover(prompts)
    assert out["positive"][1, 2] == 1.0 and torch.isclose(out["positive"][1, 3], torch.tensor(-0.5).exp())
    assert out["negative"][0, 0] == 1.0 and out["negative"].argmax() == 0


def test_what_is_not_given_covers_nothing() -> None:
    prompts = Prompts.empty(1, 1, 2, 16)
    prompts.masks[:], prompts.boxes[:] = 1.0, torch.tensor([0.0, 0.0, 1.0, 1.0])  # invalid, so never to be seen
    assert all(channel.abs().max() == 0 for channel in cover(prompts).values())


def test_padding_does_not_change_the_pooled_prompt() -> None:
    torch.manual_seed(0)
    encoder = PromptEncoder(32)
    short, long = Prompts.empty(1, 1, 1, 8), Prompts.empty(1, 1, 4, 8)
    for prompts in (short, long):
        prompts.points[0, 0, 0] = torch.tensor([0.3, 0.7])
        prompts.point_labels[0, 0, 0] = 1
    long.points[0, 0, 2] = 0.9  # padding with numbers in it
    assert torch.allclose(encoder(short).pooled, encoder(long).pooled, atol=1e-6)
    long.point_labels[0, 0, 2] = 0
    assert not torch.allclose(encoder(short).pooled, encoder(long).pooled, atol=1e-3)


def test_the_outline_forgets_place_and_size() -> None:
    masks = torch.zeros(1, 3, 32, 32)
    masks[0, 0, 4:12, 4:8] = 1.0  # an L in its box, three times
    masks[0, 0, 8:12, 8:12] = 1.0
    masks[0, 1, 8:24, 0:8] = 1.0
    masks[0, 1, 16:24, 8:16] = 1.0
    masks[0, 2, 31, 31] = 0.25
    out = mask_outline(masks, 4)[0]
    expected = torch.ones(4, 4)
    expected[:2, 2:] = 0.0
    assert torch.allclose(out[0].round(), expected) and torch.allclose(out[1].round(), expected)
    assert (out[2] > 0).all()
    assert torch.isfinite(mask_outline(torch.zeros(1, 1, 8, 8), 4)).all()
