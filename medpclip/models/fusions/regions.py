"""Where a prompt points, for the ways that look at nothing but the place: an extent, or a share of each cell.

A prompt's mask counts before its box, and that before its positive clicks; a mask that covers nothing counts as none. A
prompt that says nothing of all this means the whole image. Negative clicks don't count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medpclip.data.loading.windows import WindowSpec
from medpclip.models.prompt_encoder import covered_span, overlap
from medpclip.models.prompts import POSITIVE, Prompts


def extents(prompts: Prompts, click_side: float = WindowSpec.click_side) -> Tensor:
    """(B, R, 4): x1 y1 x2 y2 of what each prompt points at, in unit coordinates, within the image.

    Args:
        prompts: (B, R).
        click_side: clicks have no extent, so theirs is a square of this side around their mean.
    """
    positive = (prompts.point_labels == POSITIVE)[..., None]
    middle = (prompts.points * positive).sum(2) / positive.sum(2).clamp(min=1)
    click = torch.cat([middle - click_side / 2, middle + click_side / 2], dim=-1)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=click.device, dtype=click.dtype).expand_as(click)
    return _first_given(prompts, mask_extents(prompts.masks).to(click.dtype), prompts.boxes, click, whole).clamp(0, 1)


def shares(prompts: Prompts, rows: int, columns: int, click_radius: float) -> Tensor:
    """(B, R, rows, columns) in [0, 1]: the share of each cell of the image that each prompt points at.

    Args:
        prompts: (B, R).
        rows: into which the image is divided.
        columns: likewise.
        click_radius: clicks are soft: a Gaussian of this standard deviation around each, in unit coordinates.
    """
    mask = F.interpolate(prompts.masks, (rows, columns), mode="area")
    x1, y1, x2, y2 = prompts.boxes.unbind(-1)
    box = overlap(y1, y2, rows)[..., :, None] * overlap(x1, x2, columns)[..., None, :]
    clicks = _clicks(prompts, rows, columns, click_radius)
    return _first_given(prompts, mask, box, clicks, torch.ones_like(mask))


def visibility(prompts: Prompts, rows: int, columns: int, click_radius: float) -> Tensor:
    """`shares`, divided by each prompt's largest: a region smaller than a cell of its mask's grid isn't faded out with its
    surroundings (as `mask_normalised` of `prompt_encoder.CHANNELS`)."""
    share = shares(prompts, rows, columns, click_radius)
    return share / share.amax((-2, -1), keepdim=True).clamp(min=1e-6)


def mask_extents(masks: Tensor) -> Tensor:
    """Masks (B, R, h, w) -> (B, R, 4): x1 y1 x2 y2 of the cells that are covered at all; zeros for an empty mask."""
    height, width = masks.shape[-2:]
    x1, x2 = covered_span((masks > 0).any(-2))
    y1, y2 = covered_span((masks > 0).any(-1))
    return torch.stack([x1 / width, y1 / height, x2 / width, y2 / height], dim=-1)


def _first_given(prompts: Prompts, mask: Tensor, box: Tensor, click: Tensor, whole: Tensor) -> Tensor:
    """Of four answers (B, R, ...), the one that each prompt gives."""
    given = (
        prompts.mask_valid & (prompts.masks > 0).flatten(2).any(-1),
        prompts.box_valid,
        (prompts.point_labels == POSITIVE).any(-1),
    )
    out = whole
    for said, answer in zip(reversed(given), (click, box, mask), strict=True):
        out = torch.where(said.unflatten(1, (-1, *[1] * (answer.ndim - 2))), answer, out)
    return out


def _clicks(prompts: Prompts, rows: int, columns: int, radius: float) -> Tensor:
    x, y = ((torch.arange(n, device=prompts.points.device) + 0.5) / n for n in (columns, rows))
    out = prompts.points.new_zeros(*prompts.box_valid.shape, rows, columns)
    # Point by point: all of them over all pixels at once would be the largest tensor of a step.
    for point, label in zip(prompts.points.unbind(2), prompts.point_labels.unbind(2), strict=True):
        near_x = ((point[..., :1] - x) / radius).square().mul(-0.5).exp()
        near_y = ((point[..., 1:] - y) / radius).square().mul(-0.5).exp()
        near = near_y[..., :, None] * near_x[..., None, :]
        out = torch.maximum(out, near * (label == POSITIVE)[..., None, None])
    return out
