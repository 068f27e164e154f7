"""Positional embeddings of an image tower, at another resolution than they were trained for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.errors import MedpclipError


def resize_positions(positions: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    """Positions of a square grid, interpolated to another one.

    Bicubic with antialiasing, in float32, rows and columns spread over the same square (`align_corners=False`): how ViTs
    are fine-tuned at a higher resolution (Dosovitskiy et al. 2021, section 3.2), as open_clip and timm compute it.

    Args:
        positions: (prefix + n * n, width): first those of CLS and register tokens, which stay, then the patches', row by
            row.
        grid: (rows, columns) to have.
        prefix: how many come before the patches.

    Returns:
        (prefix + rows * columns, width), of the same dtype.

    Raises:
        ValueError: the patches' count is no square.
    """
    kept, cells = positions[:prefix], positions[prefix:]
    side = math.isqrt(len(cells))
    if side < 1 or side * side != len(cells):
        raise ValueError(f"{len(cells)} patch positions are no square grid")
    planes = cells.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([kept, planes.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1).to(positions.dtype)])


def fit_positions(tensors: dict[str, Tensor], visual: nn.Module, prefix: str, source: str) -> None:
    """Have the positional embeddings among `tensors` fit the image tower's grid; others stay as they are.

    Args:
        tensors: weights by name; changed in place.
        visual: the tower, open_clip's own or a timm ViT in open_clip's wrapper.
        prefix: of the tower's names among the tensors, as "visual.".
        source: what messages call the tensors.

    Raises:
        MedpclipError: the positions given are of no square grid.
    """
    trunk = getattr(visual, "trunk", None)
    name = prefix + ("positional_embedding" if trunk is None else "trunk.pos_embed")
    own = visual.positional_embedding if trunk is None else trunk.pos_embed
    given = tensors.get(name)
    if given is None or own is None or given.ndim != own.ndim or given.shape == own.shape:
        return
    assert isinstance(own, Tensor)
    grid = visual.grid_size if trunk is None else trunk.patch_embed.grid_size
    rows, columns = grid  # type: ignore[misc]
    flat = given if trunk is None else given[0]
    try:
        resized = resize_positions(flat, (rows, columns), own.shape[-2] - rows * columns)
    except ValueError as error:
        raise MedpclipError(f"{source}: tensor {name!r}: {error}; leave model.image_size at null") from None
    tensors[name] = resized if trunk is None else resized[None]
