"""The ways to embed a region that a model can be asked for, and what each of them needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medpclip.data.loading.prompting import RegionPrompt, stack
from medpclip.data.loading.windows import CutWindows, WindowSpec
from medpclip.evaluation.embedding.pictures import CutWindow
from medpclip.evaluation.task import OWN
from medpclip.models.fusions import TRAINING_FREE, Fusion, FusionConfig, make_fusion, prompted_crop
from medpclip.models.fusions.crops import Crop, PromptedCrop
from medpclip.models.fusions.pooling import MaskPooling, RoIAlign
from medpclip.models.fusions.region_tokens import RegionTokens
from medpclip.models.fusions.unprompted import Unprompted
from medpclip.models.prompts import Prompts
from medpclip.models.region_clip import RegionCLIP

PROMPTED, PROMPTED_CROP = OWN
UNPROMPTED = "unprompted"


@dataclass(frozen=True)
class Ask:
    """One prompt on one image of a batch.

    Attributes:
        image: which of the pixels that are at hand.
        row: where its answer goes.
        window: what the embedder wants of the picture's own resolution; None where it wants nothing.
    """

    image: int
    row: int
    prompt: RegionPrompt
    window: CutWindow | None


class Embedder:
    """One way to embed regions, on a model's trunk.

    Args:
        name: as task files spell it.
        fusion: how; a `Fusion` of its own or the model's.
        model: whose trunk it runs on.
    """

    def __init__(self, name: str, fusion: Fusion, model: RegionCLIP) -> None:
        self.name, self.fusion, self.model = name, fusion, model
        # An answer that the crop alone decides: crops of several images may stand beside one another in one row.
        self._alone = isinstance(fusion, (Crop, PromptedCrop))
        # Prompts of one image share a pass of the trunk, so that a batch may hold many of them.
        self._one_pass = isinstance(fusion, (RegionTokens, MaskPooling, RoIAlign, Unprompted))

    @property
    def window(self) -> WindowSpec | None:
        """Which squares of the picture it wants."""
        return self.fusion.window

    @property
    def settings(self) -> str:
        """What its answers depend on besides weights, image and prompt."""
        window = None if self.window is None else asdict(self.window)
        return json.dumps([self.name, type(self.fusion).__name__, window])

    def batches(self, asks: Sequence[Ask], images: int, prompts: int) -> list[list[list[Ask]]]:
        """Forwards: rows of prompts that share an image (but for crops), rows alike in length beside one another.

        Args:
            images: at most so many rows in a forward.
            prompts: at most so many prompts in a row, and in a forward where each of them costs a pass.
        """
        if self._alone:
            return [[list(asks[i : i + prompts])] for i in range(0, len(asks), prompts)]
        of: dict[int, list[Ask]] = {}
        for ask in asks:
            of.setdefault(ask.image, []).append(ask)
        rows = [own[i : i + prompts] for own in of.values() for i in range(0, len(own), prompts)]
        rows.sort(key=len)
        most = prompts * images if self._one_pass else prompts
        out: list[list[list[Ask]]] = []
        for row in rows:
            if not out or len(out[-1]) == images or (len(out[-1]) + 1) * len(row) > most:
                out.append([])
            out[-1].append(row)
        return out

    def embed(self, pixels: Tensor, batch: Sequence[Sequence[Ask]]) -> np.ndarray:
        """A forward of `batches`: float32 (n, D), L2-normalised, row by row.

        Args:
            pixels: (images, 3, S, S), which the asks count in.
        """
        arrays = stack([[ask.prompt for ask in row] for row in batch], self.model.mask_grid)
        prompts = Prompts.from_arrays(arrays).to(pixels.device)
        windows = None
        if self.window is not None:
            windows = self.model.preprocess.to_windows(_together(batch, self.window, self.model).to(pixels.device))
        chosen = pixels[[row[0].image for row in batch]]
        region = self.fusion(self.model.trunk, chosen, prompts, None, windows)[1]
        there = [region[b, : len(row)] for b, row in enumerate(batch)]
        return F.normalize(torch.cat(there).float(), dim=-1).cpu().numpy()


def make_embedders(model: RegionCLIP, prompted: bool) -> dict[str, Embedder]:
    """All that a model can be asked for, by name.

    Args:
        prompted: whether the model was trained with prompts, so that its own answers mean something.
    """
    trunk, preprocess = model.trunk, model.preprocess
    fusions: dict[str, Fusion] = {
        kind: make_fusion(FusionConfig(kind), trunk, preprocess) for kind in TRAINING_FREE if kind != UNPROMPTED
    }
    if prompted:
        fusions[PROMPTED] = model.fusion
        fusions[PROMPTED_CROP] = prompted_crop(model.fusion, preprocess)
    device = model.region_logit_scale.device
    return {name: Embedder(name, fusion.eval().to(device), model) for name, fusion in fusions.items()}


def _together(batch: Sequence[Sequence[Ask]], spec: WindowSpec, model: RegionCLIP) -> CutWindows:
    """The asks' windows, padded to the longest row."""
    longest = max(map(len, batch))
    pixels = np.empty((len(batch), longest, spec.size, spec.size, 3), np.uint8)
    pixels[:] = model.preprocess.fill
    rects = np.zeros((len(batch), longest, 4), np.float32)
    for b, row in enumerate(batch):
        for r, ask in enumerate(row):
            assert ask.window is not None
            pixels[b, r], rects[b, r] = ask.window
    return CutWindows(torch.from_numpy(pixels), torch.from_numpy(rects))
