"""The prompt as a fourth channel of the image (Alpha-CLIP: Sun et al. 2024, arXiv 2312.03818, section 3.2).

A convolution beside the patch embedding's takes the region's map, 1 inside and 0 outside; what it makes is added to the
patches before their places are. It is zero at first, so the region then is the whole image. A pass for each prompt.
"""

from __future__ import annotations

from torch import Tensor, nn

from medpclip.models.fusions.interface import Fusion
from medpclip.models.fusions.regions import visibility
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Trunk


class AlphaChannel(Fusion):
    """Args:
    trunk: only its sizes are read here.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.alpha = nn.Conv2d(1, trunk.width, trunk.patch, trunk.patch, bias=False)
        nn.init.zeros_(self.alpha.weight)

    def forward(
        self,
        trunk: Trunk,
        images: Tensor,
        prompts: Prompts,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        maps = visibility(prompts, height, width, click_radius=1 / trunk.grid[0])
        added = self.alpha(maps.flatten(0, 1).unsqueeze(1).to(images.dtype)).flatten(2).transpose(1, 2)
        copies = images.repeat_interleave(prompts.regions, 0)
        kept = None if keep is None else keep.repeat_interleave(prompts.regions, 0)
        region = self.whole(trunk, copies, kept, added).unflatten(0, (prompts.batch_size, prompts.regions))
        return self.whole(trunk, images, keep), region
