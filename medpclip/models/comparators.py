"""Ways to get a region's embedding from a CLIP, behind one call, so that tables compare like with like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medpclip.data.loading.geometry import Window
from medpclip.models.prompt_encoder import CHANNELS, Coverage, covered_span
from medpclip.models.prompts import POSITIVE, Prompts
from medpclip.models.region_clip import RegionCLIP


class RegionEmbedder(Protocol):
    """Embeds the prompted regions of some images.

    Attributes:
        name: as task files spell it.
    """

    name: str

    def embed(self, images: Sequence[np.ndarray], pixels: Tensor, prompts: Prompts) -> Tensor:
        """(B, R, D), L2-normalised; rows of padding are finite and mean nothing.

        Args:
            images: the B pictures at their own resolution, uint8 (height, width, 3).
            pixels: the same as the trunk sees them, (B, 3, S, S), padded to square and normalised.
            prompts: (B, R), on the device of `pixels`, in unit coordinates of the padded square.
        """


class Prompted:
    """The model's own answer: `RegionCLIP.encode_regions`."""

    name = "prompted"

    def __init__(self, model: RegionCLIP) -> None:
        self.model = model

    def embed(self, images: Sequence[np.ndarray], pixels: Tensor, prompts: Prompts) -> Tensor:
        return self.model.encode_regions(pixels, prompts)[1]


class Unprompted:
    """The image's embedding for each of its regions: what can be had without looking at the prompt."""

    name = "unprompted"

    def __init__(self, model: RegionCLIP) -> None:
        self.model = model

    def embed(self, images: Sequence[np.ndarray], pixels: Tensor, prompts: Prompts) -> Tensor:
        image = self.model.encode_image(pixels)
        return image[:, None].expand(-1, prompts.regions, -1)


class Crop:
    """Each region's surroundings as an image of their own, cut from the picture's full resolution.

    The crop is a square around the middle of the region's extent, its side `context` times the extent's longer one; it
    is resized like any image, and filled like padding where it reaches beyond the picture. The extent is that of the
    mask, else of the box. A click has none: there the crop is a fixed square around the mean of the positive clicks,
    with a quarter of the (padded) image's side.

    Args:
        model: encodes the crops by `encode_image`.
        context: side of the crop as a multiple of the extent's longer side.
        batch_size: crops in a forward.
    """

    name = "crop"
    click_side = 0.25

    def __init__(self, model: RegionCLIP, context: float = 1.25, batch_size: int = 64) -> None:
        self.model, self.context, self.batch_size = model, context, batch_size

    def embed(self, images: Sequence[np.ndarray], pixels: Tensor, prompts: Prompts) -> Tensor:
        windows = self.windows(images, prompts)
        # A box and a mask often ask for the same crop: encode it once.
        unique = {key: i for i, key in enumerate(dict.fromkeys(windows.values()))}
        crops = [self._cut(images[b], window) for b, window in unique]
        width = self.model.output_dim
        encoded = pixels.new_zeros(len(crops), width)
        for start in range(0, len(crops), self.batch_size):
            part = torch.from_numpy(np.stack(crops[start : start + self.batch_size])).to(pixels.device)
            encoded[start : start + len(part)] = self._encode(self.model.preprocess.to_pixels(part)).float()
        out = pixels.new_zeros(prompts.batch_size, prompts.regions, width)
        for (b, r), key in windows.items():
            out[b, r] = encoded[unique[key]]
        return out

    def _encode(self, crops: Tensor) -> Tensor:
        """(n, 3, S, S) pixels -> (n, D)."""
        return self.model.encode_image(crops)

    def windows(self, images: Sequence[np.ndarray], prompts: Prompts) -> dict[tuple[int, int], tuple[int, Window]]:
        """For each valid (b, r): the image's index and the crop in its pixels."""
        squares = self._unit_squares(prompts).cpu().numpy()
        out = {}
        for b, r in prompts.valid.nonzero().tolist():
            height, width = images[b].shape[:2]
            whole = Window.whole(width, height)
            x, y, side = squares[b, r] * whole.side
            pixels = max(1, round(float(side)))
            left, top = round(float(x) - pixels / 2) + whole.left, round(float(y) - pixels / 2) + whole.top
            out[b, r] = (b, Window(left, top, pixels))
        return out

    def _unit_squares(self, prompts: Prompts) -> Tensor:
        """(B, R, 3): middle x, middle y and side, in unit coordinates."""
        boxes = torch.where(prompts.mask_valid[..., None], mask_extents(prompts.masks), prompts.boxes)
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        side = (boxes[..., 2:] - boxes[..., :2]).amax(-1, keepdim=True) * self.context
        positive = (prompts.point_labels == POSITIVE)[..., None]
        click = (prompts.points * positive).sum(2) / positive.sum(2).clamp(min=1)
        has_extent = (prompts.mask_valid | prompts.box_valid)[..., None]
        return torch.cat(
            [torch.where(has_extent, middle, click), side.where(has_extent, side.new_tensor(self.click_side))], dim=-1
        )

    def _cut(self, image: np.ndarray, window: Window) -> np.ndarray:
        preprocess = self.model.preprocess
        return window.image(image, preprocess.image_size, preprocess.fill)


class PromptedCrop(Crop):
    """The crops of `Crop`, each with a box prompt around all of it.

    Training pairs images with image texts and regions with region texts, so this is the embedding of a crop that was
    trained to answer for a region's term.
    """

    name = "prompted_crop"

    def _encode(self, crops: Tensor) -> Tensor:
        prompts = Prompts.empty(len(crops), 1, 1, self.model.mask_grid)
        prompts.boxes[..., 2:] = 1  # x1 y1 x2 y2 = 0 0 1 1
        prompts.box_valid[:] = True
        return self.model.encode_regions(crops, prompts.to(crops.device))[1][:, 0]


class MaskPooling:
    """The unprompted patches averaged with the share of each that the region covers.

    The share is that of the mask, else of the box, else a Gaussian of one patch around each positive click. A region
    smaller than a patch keeps its fractional share.
    """

    name = "mask_pooling"

    def __init__(self, model: RegionCLIP) -> None:
        self.model = model
        self.coverage = Coverage(model.grid)  # fresh, so the click's width is one patch, whatever the model learned

    def embed(self, images: Sequence[np.ndarray], pixels: Tensor, prompts: Prompts) -> Tensor:
        patches = self.model.encode_patches(pixels, normalize=False).float()
        weights = self.weights(prompts)
        pooled = (weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)) @ patches
        return F.normalize(pooled, dim=-1)

    def weights(self, prompts: Prompts) -> Tensor:
        """(B, R, N): share of each patch, not normalised; zeros for padding."""
        shares = dict(zip(CHANNELS, self.coverage.to(prompts.boxes.device)(prompts).unbind(2), strict=True))
        without_mask = torch.where(prompts.box_valid[..., None], shares["box"], shares["positive"])
        return torch.where(prompts.mask_valid[..., None], shares["mask"], without_mask)


EMBEDDERS: Mapping[str, type[Prompted] | type[Unprompted] | type[Crop] | type[MaskPooling]] = {
    c.name: c for c in (Prompted, Unprompted, Crop, PromptedCrop, MaskPooling)
}


def mask_extents(masks: Tensor) -> Tensor:
    """Masks (B, R, h, w) -> (B, R, 4): x1 y1 x2 y2 of the cells that are covered at all; zeros for an empty mask."""
    height, width = masks.shape[-2:]
    x1, x2 = covered_span((masks > 0).any(-2))
    y1, y2 = covered_span((masks > 0).any(-1))
    return torch.stack([x1 / width, y1 / height, x2 / width, y2 / height], dim=-1)
