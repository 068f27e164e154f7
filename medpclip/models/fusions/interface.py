"""What every way to get a region's embedding has in common, so that tables compare like with like."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from medpclip.data.loading.windows import WindowSpec
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Trunk


class Fusion(nn.Module, ABC):
    """A way to get region embeddings from a trunk's pieces.

    Attributes:
        window: what of the picture's own resolution it wants for each region; None for nothing.
        save_activations: keep the activations inside blocks for the backward pass; else they are computed again.
    """

    window: WindowSpec | None = None
    save_activations: bool = True

    @property
    def saves(self) -> bool:
        """Whether to keep activations now: without gradients there is nothing to save them for."""
        return self.save_activations or not torch.is_grad_enabled()

    def whole(self, trunk: Trunk, images: Tensor, keep: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        """The trunk's plain pass: pixels (M, 3, S, S) -> embeddings (M, D), not normalised; see `Trunk.embed`."""
        return trunk.embeddings(trunk.embed(images, keep, added), save=self.saves)

    @abstractmethod
    def forward(
        self,
        trunk: Trunk,
        images: Tensor,
        prompts: Prompts,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image (B, D) and region embeddings (B, R, D), not normalised; the first doesn't depend on the prompts.

        Args:
            trunk: the image tower's pieces.
            images: pixels (B, 3, S, S).
            prompts: R of them for each image.
            keep: (B, K) int64, the patches that stay; None for all. Only the passes over the whole image drop patches.
            windows: what `window` asks for; None only where that is None.
        """
