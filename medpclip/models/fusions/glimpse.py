"""A glimpse: g x g patches of the picture at its own resolution around a prompt, for that prompt's region token alone (our
design).

At the image's resolution a small region is a fraction of a patch. Its window, cut from the picture as it was decoded, goes
through the trunk's own patch embedding and blocks as a small picture beside the image. Two zero-initialised terms tell
its patches from the image's: a vector that says "glimpse", and where in the image the window lies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.models.fusions.place import Place, corner_and_side
from medpclip.models.prompt_encoder import Coverage
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Trunk

_CELLS = 4  # each way, in which a patch's share of a mask is measured


class Glimpse(nn.Module):
    """Windows as tokens, and how much of each of them the prompt covers.

    Args:
        width: of the trunk's tokens.
        side: g, patches each way.
        covered: whether coverage is wanted.
    """

    def __init__(self, width: int, side: int, covered: bool) -> None:
        super().__init__()
        self.side = side
        self.kind = nn.Parameter(torch.zeros(width))
        self.place = Place(width)
        self.coverage = Coverage((side, side)) if covered else None

    def forward(self, trunk: Trunk, prompts: Prompts, windows: Windows) -> tuple[Tensor, Tensor | None]:
        """R windows of B images -> tokens (B * R, g * g, width) that enter the first block, and the prompts' coverage of
        them (B * R, 1, channels, g * g)."""
        tokens = trunk.embed_patches(windows.pixels.flatten(0, 1))
        place = self.place(windows.rects).flatten(0, 1).unsqueeze(1)
        tokens = tokens + (place + self.kind).to(tokens.dtype)
        if self.coverage is None:
            return tokens, None
        cover = self.coverage(prompts_in(prompts, windows.rects, _CELLS * self.side))
        return tokens, cover.flatten(0, 1).unsqueeze(1).to(tokens.dtype)


def prompts_in(prompts: Prompts, rects: Tensor, cells: int) -> Prompts:
    """The same prompts in the unit coordinates of windows; they may reach beyond 0 to 1.

    Args:
        prompts: R for each of B images.
        rects: (B, R, 4) the windows' x1 y1 x2 y2 in the image's unit coordinates; empty ones are taken as of side 1.
        cells: side of the masks' grid in a window, onto which they are interpolated bilinearly; 0 outside the image.
    """
    corner, side = corner_and_side(rects)
    steps = (torch.arange(cells, device=rects.device, dtype=rects.dtype) + 0.5) / cells
    x, y = ((corner.unsqueeze(-1) + side.unsqueeze(-1) * steps) * 2 - 1).unbind(2)  # (B, R, cells) each
    x, y = x.unsqueeze(2), y.unsqueeze(3)
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1).flatten(0, 1).to(prompts.masks.dtype)
    masks = F.grid_sample(prompts.masks.flatten(0, 1).unsqueeze(1), grid, align_corners=False)
    return Prompts(
        points=(prompts.points - corner.unsqueeze(2)) / side.unsqueeze(2),
        point_labels=prompts.point_labels,
        boxes=(prompts.boxes - corner.repeat(1, 1, 2)) / side.repeat(1, 1, 2),
        box_valid=prompts.box_valid,
        masks=masks.squeeze(1).unflatten(0, rects.shape[:2]),
        mask_valid=prompts.mask_valid,
    )
