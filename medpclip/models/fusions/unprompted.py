"""What can be had without looking at the prompt."""

from __future__ import annotations

from torch import Tensor

from medpclip.models.fusions.interface import Fusion
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Trunk


class Unprompted(Fusion):
    """The image's embedding for each of its regions."""

    def forward(
        self,
        trunk: Trunk,
        images: Tensor,
        prompts: Prompts,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> tuple[Tensor, Tensor]:
        image = self.whole(trunk, images, keep)
        return image, image[:, None].expand(-1, prompts.regions, -1)
