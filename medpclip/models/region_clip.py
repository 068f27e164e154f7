"""RegionCLIP: an open_clip model that also answers for regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.models.fusions import Fusion, FusionConfig, make_fusion
from medpclip.models.preprocess import Preprocess
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk import Trunk, adapt, check_supported

if TYPE_CHECKING:
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer


@dataclass
class ModelConfig:
    """Which model is built.

    Attributes:
        trunk: an open_clip architecture ("ViT-B-16"), one that medpclip ships ("medpclip-tiny-16"), or a JSON file; null
            for the one that the folder `pretrained` has, or ViT-B-16 where that is no folder.
        pretrained: where the first weights come from: a folder in Hugging Face's format (CLIP, SigLIP) or open_clip's
            (BiomedCLIP), a run or checkpoint of medpclip (its weights alone, prompts' too), a file of weights, or an
            open_clip tag (which open_clip downloads unless the hub's cache has it; HF_HUB_OFFLINE=1 forbids that); null
            for random weights.
        image_size: input side in pixels, other than the weights' own too; null for the architecture's.
        logit_bias: start of the sigmoid losses' biases (Zhai et al. 2023 use -10); null where InfoNCE needs none, and
            the weights' own is left out.
    """

    trunk: str | None = None
    pretrained: str | None = None
    image_size: int | None = None
    logit_bias: float | None = None
    fusion: FusionConfig = field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"'image_size' is {self.image_size}, expected at least 1, or null")

    @property
    def name(self) -> str:
        """What to call the model in messages: the trunk's name, else that of the folder it came from."""
        return Path(self.trunk or self.pretrained or "ViT-B-16").stem


class Embeddings(NamedTuple):
    """L2-normalised vectors of one shared space; None for what was not asked. A tuple, as wrappers that shard parameters
    find only tensors in tuples.

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
        clip: an open_clip model whose image tower is a ViT that `check_supported` accepts.
        config: what it was built from.
        preprocess: its image preprocessing.
        tokenizer: list of strings -> int64 (T, context).
        architecture: open_clip's model config that `clip` was built from, as a checkpoint keeps it.
    """

    def __init__(
        self,
        clip: open_clip.CLIP | open_clip.CustomTextCLIP,
        config: ModelConfig,
        preprocess: Preprocess,
        tokenizer: Callable[[Sequence[str]], Tensor],
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        trunk = adapt(check_supported(clip.visual, config.name))
        self.clip = clip
        self.config = config
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.fusion: Fusion = make_fusion(config.fusion, trunk, preprocess)
        # Regions have a temperature of their own: their texts are fewer and repeat more than captions do.
        self.region_logit_scale = nn.Parameter(clip.logit_scale.detach().clone().reshape(1))
        bias = config.logit_bias
        if bias is None and clip.logit_bias is not None:
            bias = clip.logit_bias.item()
        self.region_logit_bias = nn.Parameter(torch.full((1,), bias)) if bias is not None else None
        self.save_activations = True

    @property
    def visual(self) -> VisionTransformer | TimmModel:
        """The image tower, as open_clip built it."""
        return self.clip.visual

    @property
    def output_dim(self) -> int:
        """D, the width of the shared space."""
        return self.trunk.output_dim

    @property
    def trunk(self) -> Trunk:
        """The image tower's pieces."""
        return adapt(self.visual)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.trunk.grid

    @property
    def mask_grid(self) -> int:
        """Side of the grid on which mask prompts are given: 4 cells to a patch, each way."""
        return 4 * self.grid[0]

    def encode_image(self, images: Tensor, normalize: bool = True, keep: Tensor | None = None) -> Tensor:
        """(B, D): open_clip's `encode_image`, the same computation; with `keep` (B, K) that of these patches alone."""
        if keep is None:
            return self.clip.encode_image(images, normalize=normalize)
        trunk, save = self.trunk, self.save_activations or not torch.is_grad_enabled()
        image = trunk.pooled(trunk.run(trunk.embed(images, keep), save=save))
        return F.normalize(image, dim=-1) if normalize else image

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """(T, D): open_clip's `encode_text`."""
        return self.clip.encode_text(tokens, normalize=normalize)

    def encode_regions(
        self,
        images: Tensor,
        prompts: Prompts,
        normalize: bool = True,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image (B, D) and region embeddings (B, R, D) from one call; the first doesn't depend on the prompts.

        `windows` are what `self.fusion.window` asks for.
        """
        assert (windows is None) == (self.fusion.window is None), "windows are given where they are asked for"
        image, region = self.fusion(self.trunk, images, prompts, keep, windows)
        if normalize:
            image, region = F.normalize(image, dim=-1), F.normalize(region, dim=-1)
        return image, region

    def encode_patches(self, images: Tensor, normalize: bool = True) -> Tensor:
        """(B, N, D): the unprompted patches of the last block, each through the image's head, row by row."""
        trunk = self.trunk
        patches = trunk.patches(trunk.run(trunk.embed(images)))
        return F.normalize(patches, dim=-1) if normalize else patches

    def forward(
        self,
        images: Tensor,
        prompts: Prompts | None = None,
        text: Tensor | None = None,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> Embeddings:
        """Everything a training step needs in one call, as wrappers that shard parameters want it.

        Args:
            images: pixels (B, 3, S, S).
            prompts: R of them for each image.
            text: token ids (T, context).
            keep: (B, K) int64, ascending numbers of the patches that stay, row by row; None for all. The other patches
                are as if they weren't there, for the image and for its regions.
            windows: of the prompts, where the fusion asks for them.
        """
        text_embedding = self.encode_text(text) if text is not None else None
        if prompts is None:
            return Embeddings(self.encode_image(images, keep=keep), None, text_embedding)
        image, region = self.encode_regions(images, prompts, keep=keep, windows=windows)
        return Embeddings(image, region, text_embedding)

    def logit_parameters(self) -> Tensor:
        """(4,): the image loss's log scale and bias, the region loss's log scale and bias; 0 where there is no bias."""
        zero = torch.zeros_like(self.region_logit_scale)
        biases = (zero if bias is None else bias.reshape(1) for bias in (self.clip.logit_bias, self.region_logit_bias))
        image_bias, region_bias = biases
        return torch.cat([self.clip.logit_scale.reshape(1), image_bias, self.region_logit_scale, region_bias])

    def set_activation_checkpointing(self, on: bool) -> None:
        """Whether both towers drop the activations inside their blocks and compute them again in the backward pass.

        Random states are put back for that (dropout draws the same again), so gradients stay as they are.
        """
        self.save_activations = not on
        self.fusion.save_activations = not on
        self.visual.set_grad_checkpointing(on)
        text = getattr(self.clip, "text", self.clip).transformer
        if hasattr(text, "supports_gradient_checkpointing"):
            _checkpoint_transformers_model(text, on)
        else:
            text.grad_checkpointing = on


def _checkpoint_transformers_model(model: Any, on: bool) -> None:
    """open_clip's wrapper can only switch it on, and with what `transformers` has by default."""
    name = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    if on:
        getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(model, f"{name}_disable")()
