"""RegionCLIP: an open_clip model that also answers for regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from medpclip.models.conditioned import ConditionedFusion
from medpclip.models.preprocess import Preprocess
from medpclip.models.prompts import Prompts
from medpclip.models.region_tokens import RegionTokens
from medpclip.models.trunk import check_supported, head


@dataclass
class FusionConfig:
    """How prompts meet the trunk's features.

    Attributes:
        kind: "region_tokens" (R prompts in one pass) or "conditioned" (prompt written into the patches, a pass a prompt).
        prompt_dim: width of the prompt encoder.
        depths: conditioned only: before which blocks (0-based); null for a quarter, a half and three quarters up.
    """

    kind: Literal["region_tokens", "conditioned"] = "region_tokens"
    prompt_dim: int = 256
    depths: list[int] | None = None


@dataclass
class ModelConfig:
    """Which model is built.

    Attributes:
        trunk: an open_clip architecture ("ViT-B-16"), one that medpclip ships ("medpclip-tiny-16"), or a JSON file.
        pretrained: an open_clip weights file, or one of its tags (which open_clip downloads unless the hub's cache has
            it; HF_HUB_OFFLINE=1 forbids that); null for random weights.
        image_size: input side in pixels; null for the architecture's own.
        logit_bias: start of the sigmoid losses' biases (Zhai et al. 2023 use -10); null where InfoNCE needs none.
    """

    trunk: str = "ViT-B-16"
    pretrained: str | None = None
    image_size: int | None = None
    logit_bias: float | None = None
    fusion: FusionConfig = field(default_factory=FusionConfig)


class Fusion(Protocol):
    """What `RegionCLIP` needs of a fusion: image (B, D) and region embeddings (B, R, D), not normalised."""

    def __call__(self, visual: VisionTransformer, images: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]: ...


@dataclass
class Embeddings:
    """L2-normalised vectors of one shared space; None for what was not asked.

    Attributes:
        image: (B, D).
        region: (B, R, D); rows of padding are finite and mean nothing.
        text: (T, D).
    """

    image: Tensor
    region: Tensor | None = None
    text: Tensor | None = None


class RegionCLIP(nn.Module):
    """One model for the whole image, for regions, and as a vision tower.

    Without prompts it is the open_clip model in `clip`, to the bit. Images are pixels (B, 3, S, S) as `preprocess` makes
    them; texts are token ids (T, context) as `tokenizer` makes them.

    Args:
        clip: an open_clip model whose image tower is a plain ViT with a CLS token.
        config: what it was built from.
        preprocess: its image preprocessing.
        tokenizer: list of strings -> int64 (T, context).
        architecture: open_clip's model config that `clip` was built from, as a checkpoint keeps it.
    """

    def __init__(
        self,
        clip: open_clip.CLIP,
        config: ModelConfig,
        preprocess: Preprocess,
        tokenizer: Callable[[Sequence[str]], Tensor],
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        visual = check_supported(clip.visual, config.trunk)
        self.clip = clip
        self.config = config
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.fusion: nn.Module = (
            RegionTokens(visual, config.fusion.prompt_dim)
            if config.fusion.kind == "region_tokens"
            else ConditionedFusion(visual, config.fusion.depths, config.fusion.prompt_dim)
        )
        # Regions have a temperature of their own: their texts are fewer and repeat more than captions do.
        self.region_logit_scale = nn.Parameter(clip.logit_scale.detach().clone().reshape(1))
        bias = config.logit_bias
        self.region_logit_bias = nn.Parameter(torch.full((1,), bias)) if bias is not None else None

    @property
    def visual(self) -> VisionTransformer:
        return self.clip.visual

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.visual.grid_size

    @property
    def mask_grid(self) -> int:
        """Side of the grid on which mask prompts are given: 4 cells to a patch, each way."""
        return 4 * self.grid[0]

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """(B, D): open_clip's `encode_image`, the same computation."""
        return self.clip.encode_image(images, normalize=normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """(T, D): open_clip's `encode_text`."""
        return self.clip.encode_text(tokens, normalize=normalize)

    def encode_regions(self, images: Tensor, prompts: Prompts, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Image (B, D) and region embeddings (B, R, D) from one call; the first doesn't depend on the prompts."""
        image, region = self.fusion(self.visual, images, prompts)
        if normalize:
            image, region = F.normalize(image, dim=-1), F.normalize(region, dim=-1)
        return image, region

    def encode_patches(self, images: Tensor, normalize: bool = True) -> Tensor:
        """(B, N, D): the unprompted patches of the last block through the CLS token's head, row by row."""
        output = self.visual.forward_intermediates(images, indices=1, output_fmt="NLC", intermediates_only=True)
        patches = head(self.visual, output["image_intermediates"][0])
        return F.normalize(patches, dim=-1) if normalize else patches

    def forward(self, images: Tensor, prompts: Prompts | None = None, text: Tensor | None = None) -> Embeddings:
        """Everything a training step needs in one call, as wrappers that shard parameters want it."""
        text_embedding = self.encode_text(text) if text is not None else None
        if prompts is None:
            return Embeddings(self.encode_image(images), None, text_embedding)
        image, region = self.encode_regions(images, prompts)
        return Embeddings(image, region, text_embedding)
