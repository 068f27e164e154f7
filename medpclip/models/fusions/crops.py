"""Each region's surroundings as an image of their own, cut from the picture's full resolution.

RegionCLIP (Zhong et al. 2021, arXiv 2112.09106, section 1) takes this for the plain way to ask a CLIP about regions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from medpclip.data.loading.windows import WindowSpec
from medpclip.models.fusions.interface import Fusion
from medpclip.models.fusions.place import Place
from medpclip.models.fusions.regions import extents
from medpclip.models.prompts import Prompts, Windows
from medpclip.models.trunk.interface import Trunk


class Crop(Fusion):
    """A pass of the trunk for each crop.

    Args:
        image_size: the trunk's input side, to which crops are resized.
        context: side of the crop as a multiple of the longer side of the prompt's extent.
    """

    def __init__(self, image_size: int, context: float) -> None:
        super().__init__()
        # Clicks have no extent; what they get grows alike.
        self.window = WindowSpec(image_size, context, WindowSpec.click_side * context / WindowSpec.context)

    def forward(
        self,
        trunk: Trunk,
        images: Tensor,
        prompts: Prompts,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert windows is not None, "crops are cut by whoever has the picture"
        region = self.whole(trunk, windows.pixels.flatten(0, 1), added=self.added(prompts))
        return self.whole(trunk, images, keep), region.unflatten(0, windows.pixels.shape[:2])

    def added(self, prompts: Prompts) -> Tensor | None:
        """What the patches of crops (B * R, 1, width) start with besides their pixels; None for nothing."""
        return None


class PlacedCrop(Crop):
    """A crop that is told which part of the image it is (our design), as region tokens are told where to look: all that a
    crop can't see is what lies around it.

    Args:
        trunk: only its sizes are read here.
        image_size: the trunk's input side, to which crops are resized.
        context: side of the crop as a multiple of the longer side of the prompt's extent.
    """

    def __init__(self, trunk: Trunk, image_size: int, context: float) -> None:
        super().__init__(image_size, context)
        self.place = Place(trunk.width)

    def added(self, prompts: Prompts) -> Tensor:
        """The place and size of what each prompt points at."""
        added: Tensor = self.place(extents(prompts)).flatten(0, 1).unsqueeze(1)
        return added


class PromptedCrop(Fusion):
    """Crops, each with a box prompt around all of it, through another fusion.

    Training pairs images with image texts and regions with region texts, so this is the embedding of a crop that was
    trained to answer for a region's text.

    Args:
        fusion: a model's own. Where it asks for windows itself, it is given the whole crop.
        image_size: the trunk's input side.
        context: side of the crop as a multiple of the longer side of the prompt's extent.
    """

    def __init__(self, fusion: Fusion, image_size: int, context: float) -> None:
        super().__init__()
        self.fusion = fusion
        # Clicks have no extent; what they get grows alike.
        self.window = WindowSpec(image_size, context, WindowSpec.click_side * context / WindowSpec.context)

    def forward(
        self,
        trunk: Trunk,
        images: Tensor,
        prompts: Prompts,
        keep: Tensor | None = None,
        windows: Windows | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert windows is not None, "crops are cut by whoever has the picture"
        crops = windows.pixels.flatten(0, 1)
        around = Prompts.empty(len(crops), 1, 1, prompts.masks.shape[-1]).to(crops.device)
        around.boxes[..., 2:] = 1  # x1 y1 x2 y2 = 0 0 1 1
        around.box_valid[:] = True
        region = self.fusion(trunk, crops, around, None, self._again(crops, around))[1]
        return self.whole(trunk, images, keep), region.unflatten(0, windows.pixels.shape[:2])[:, :, 0]

    def _again(self, crops: Tensor, around: Prompts) -> Windows | None:
        wanted = self.fusion.window
        if wanted is None:
            return None
        resized = F.interpolate(crops, (wanted.size, wanted.size), mode="bicubic", antialias=True)
        return Windows(resized.unsqueeze(1), around.boxes)
