"""Prompts: how regions are pointed at, as padded tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

POSITIVE, NEGATIVE, PAD = 1, 0, -1


@dataclass
class Prompts:
    """R prompts for each of B images; a prompt may combine points, a box and a mask.

    Coordinates are in [0, 1] over the (padded, square) image that the trunk sees, x to the right, y down. What isn't
    given is padding: every prompt kind is always computed, so that no rank of a sharded run skips a branch.

    Attributes:
        points: (B, R, P, 2) float, as xy; P >= 1.
        point_labels: (B, R, P) int64: 1 on the region, 0 off it, -1 padding.
        boxes: (B, R, 4) float, as x1 y1 x2 y2.
        box_valid: (B, R) bool.
        masks: (B, R, h, w) float in [0, 1], the covered share of each cell; h and w are multiples of the patch grid.
        mask_valid: (B, R) bool.
    """

    points: Tensor
    point_labels: Tensor
    boxes: Tensor
    box_valid: Tensor
    masks: Tensor
    mask_valid: Tensor

    def __post_init__(self) -> None:
        batch, regions = self.box_valid.shape
        points = self.points.shape[2]
        expected = {
            "points": (batch, regions, points, 2),
            "point_labels": (batch, regions, points),
            "boxes": (batch, regions, 4),
            "mask_valid": (batch, regions),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"prompts.{name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")
        if self.masks.ndim != 4 or tuple(self.masks.shape[:2]) != (batch, regions):
            raise ValueError(f"prompts.masks has shape {tuple(self.masks.shape)}, expected ({batch}, {regions}, h, w)")

    @classmethod
    def empty(cls, batch: int, regions: int, points: int, grid: int) -> Prompts:
        """Padding only: to be filled in."""
        return cls(
            points=torch.zeros(batch, regions, points, 2),
            point_labels=torch.full((batch, regions, points), PAD, dtype=torch.int64),
            boxes=torch.zeros(batch, regions, 4),
            box_valid=torch.zeros(batch, regions, dtype=torch.bool),
            masks=torch.zeros(batch, regions, grid, grid),
            mask_valid=torch.zeros(batch, regions, dtype=torch.bool),
        )

    @property
    def batch_size(self) -> int:
        return self.box_valid.shape[0]

    @property
    def regions(self) -> int:
        return self.box_valid.shape[1]

    @property
    def valid(self) -> Tensor:
        """(B, R) bool: whether anything is given for this region."""
        return self.box_valid | self.mask_valid | (self.point_labels != PAD).any(-1)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Prompts:
        """What `medpclip.data.loading.prompting.stack` returns, as tensors."""
        return cls(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Prompts:
        """The same on another device."""
        return Prompts(**{f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)})

    def regions_slice(self, index: Tensor | slice) -> Prompts:
        """Some of each image's regions."""
        return Prompts(**{f.name: getattr(self, f.name)[:, index] for f in fields(self)})


@dataclass
class Windows:
    """What the regions look like at the picture's own resolution; see `medpclip.data.loading.windows`.

    Attributes:
        pixels: (B, R, 3, s, s), normalised as images are; padding's mean nothing.
        rects: (B, R, 4) float: x1 y1 x2 y2 of each square in the image's unit coordinates, which may lie beyond 0 to 1;
            before any turning or mirroring of the image, the prompt's middle is the square's middle.
    """

    pixels: Tensor
    rects: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Windows:
        return Windows(
            self.pixels.to(device, non_blocking=non_blocking), self.rects.to(device, non_blocking=non_blocking)
        )
