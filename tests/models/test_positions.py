"""Positional embeddings at another resolution are open_clip's and timm's."""

from types import SimpleNamespace

import pytest
import torch
from open_clip.model import resize_pos_embed
from timm.layers import resample_abs_pos_embed

from medpclip.models.positions import resize_positions


@pytest.mark.parametrize("grid", [(24, 24), (7, 7), (20, 9)])
def test_as_open_clip_and_timm_compute_it(grid: tuple[int, int]) -> None:
    given = torch.randn(1 + 14 * 14, 8, generator=torch.Generator().manual_seed(0))
    state = {"visual.positional_embedding": given.clone()}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
    ours = resize_positions(given, grid, 1)
    assert (ours - state["visual.positional_embedding"]).abs().max() <= 1e-6
    assert torch.equal(ours[0], given[0])  # CLS has no place
    timm = resample_abs_pos_embed(given[None], list(grid), num_prefix_tokens=1)
    assert (ours - timm[0]).abs().max() <= 1e-6


def test_half_precision_is_computed_in_float32() -> None:
    given = torch.randn(25, 8, generator=torch.Generator().manual_seed(0)).half()
    ours = resize_positions(given, (9, 9), 0)
    assert ours.dtype == torch.float16 and torch.equal(ours, resize_positions(given.float(), (9, 9), 0).half())


def test_a_plane_stays_a_plane_and_one_grid_is_itself() -> None:
    given = torch.full((17, 3), 2.5)
    assert torch.allclose(resize_positions(given, (11, 11), 1), torch.full((122, 3), 2.5))
    given = torch.randn(17, 3)
    assert torch.allclose(resize_positions(given, (4, 4), 1), given, atol=1e-6)


@pytest.mark.parametrize("count", [1, 12])
def test_no_square_grid(count: int) -> None:
    with pytest.raises(ValueError, match="patch positions are no square grid"):
        resize_positions(torch.zeros(count, 3), (4, 4), 1)
