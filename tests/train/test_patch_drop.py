"""Patches under regions stay, the draw is the image's own."""

import pytest
import torch

from medpclip.models.prompts import Prompts
from medpclip.train.patch_drop import kept_count, kept_patches

GRID = (4, 4)


def prompts() -> Prompts:
    """Three images: a box over the four patches of the upper left, a click in the last patch, nothing."""
    made = Prompts.empty(3, 2, 1, 16)
    made.boxes[0, 0] = torch.tensor([0.1, 0.1, 0.4, 0.4])
    made.box_valid[0, 0] = True
    made.points[1, 1, 0], made.point_labels[1, 1, 0] = torch.tensor([0.9, 0.9]), 1
    return made


def test_patches_under_regions_stay() -> None:
    for seed in range(20):
        keep = kept_patches(prompts(), GRID, 0.7, [(seed, b) for b in range(3)])
        assert keep.shape == (3, 5) and (keep.diff(dim=1) > 0).all()
        assert {0, 1, 4, 5} <= set(keep[0].tolist()) and 15 in keep[1].tolist()


def test_what_covers_more_than_is_kept_loses_some() -> None:
    kept = {tuple(kept_patches(prompts(), GRID, 0.9, [(seed, b) for b in range(3)])[0].tolist()) for seed in range(40)}
    assert all(set(patches) < {0, 1, 4, 5} and len(patches) == 2 for patches in kept) and len(kept) == 6


def test_without_regions_all_patches_are_kept_alike() -> None:
    counts = torch.zeros(16)
    for seed in range(800):
        counts[kept_patches(prompts(), GRID, 0.5, [(seed, b) for b in range(3)])[2]] += 1
    assert (counts / 800 - 0.5).abs().max() < 0.08  # four standard deviations


def test_the_draw_belongs_to_the_image() -> None:
    all_three = kept_patches(prompts(), GRID, 0.5, [(7, b) for b in range(3)])
    last = Prompts(**{name: tensor[2:] for name, tensor in vars(prompts()).items()})
    assert torch.equal(kept_patches(last, GRID, 0.5, [(7, 2)])[0], all_three[2])


@pytest.mark.parametrize(("drop", "count"), [(0.0, 16), (0.5, 8), (0.3, 11), (0.99, 1)])
def test_how_many_stay(drop: float, count: int) -> None:
    assert kept_count(GRID, drop) == count
