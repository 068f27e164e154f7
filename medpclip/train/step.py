"""One step's losses: draw the batch's unique texts, embed everything once, contrast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import Batch
from medpclip.data.loading.texts import Text, TextSampling, draw_image_texts, draw_region_texts, targets
from medpclip.losses import info_nce, sigmoid
from medpclip.models import Embeddings, Prompts, RegionCLIP
from medpclip.train.config import LossConfig


@dataclass
class StepInputs:
    """A micro-batch, ready for the model.

    Attributes:
        images: (B, S, S, 3) uint8.
        colours: (B, 2) float32, as `Batch` has them.
        prompts: R prompts for each.
        region_index: (M,) int64: which of the B * R regions are real.
        texts: image texts, then region texts.
        image_targets: (B, image texts) int8; region_targets: (M, region texts) int8.
    """

    images: Tensor
    colours: Tensor
    prompts: Prompts
    region_index: Tensor
    texts: list[Text]
    image_targets: Tensor
    region_targets: Tensor

    @property
    def counts(self) -> tuple[int, int]:
        """How many images and regions have a true text."""
        return tuple(int((t == 1).any(1).sum()) if t.numel() else 0 for t in (self.image_targets, self.region_targets))  # type: ignore[return-value]


@dataclass
class StepLosses:
    """Sums over items (`losses` says why), and how the best text fits.

    Attributes:
        image, region: scalars with gradient.
        region_hits: regions whose likeliest text is a true one.
    """

    image: Tensor
    region: Tensor
    region_hits: int


def prepare(batch: Batch, lexicon: Lexicon, sampling: TextSampling, seed: tuple[int, ...]) -> StepInputs:
    """Draw the texts of a batch, a pure function of its facts and `seed`, and say of which items they are true."""
    rng = np.random.default_rng(seed)
    width = batch.prompts["box_valid"].shape[1]
    regions = [facts for row in batch.region_facts for facts in row]
    index = [b * width + r for b, row in enumerate(batch.region_facts) for r in range(len(row))]
    image_texts = draw_image_texts(batch.image_facts, lexicon, sampling, rng)
    region_texts = draw_region_texts(regions, lexicon, sampling, rng)
    return StepInputs(
        images=batch.images,
        colours=batch.colours,
        prompts=Prompts(**batch.prompts),
        region_index=torch.tensor(index, dtype=torch.int64),
        texts=image_texts + region_texts,
        image_targets=torch.from_numpy(targets(batch.image_facts, image_texts, lexicon)),
        region_targets=torch.from_numpy(targets(regions, region_texts, lexicon)),
    )


def losses(model: RegionCLIP, inputs: StepInputs, config: LossConfig, device: torch.device) -> StepLosses:
    """Both losses of a micro-batch: the forward pass under whatever autocast is on, the contrast always in float32."""
    pixels = model.preprocess.to_pixels(inputs.images.to(device, non_blocking=True), inputs.colours)
    tokens = model.tokenizer([text.wording for text in inputs.texts]).to(device)
    out = model(pixels, inputs.prompts.to(device, non_blocking=True), tokens)
    with torch.autocast(device.type, enabled=False):  # bfloat16 logits would come in steps of half a unit
        return _contrast(model, inputs, config, out)


def _contrast(model: RegionCLIP, inputs: StepInputs, config: LossConfig, out: Embeddings) -> StepLosses:
    assert out.region is not None and out.text is not None
    device = out.image.device
    image_count = inputs.image_targets.shape[1]
    region = out.region.flatten(0, 1)[inputs.region_index.to(device)].float()
    text = out.text.float()
    image_logits = _logits(out.image.float(), text[:image_count], model.clip.logit_scale, model.clip.logit_bias)
    region_logits = _logits(region, text[image_count:], model.region_logit_scale, model.region_logit_bias)
    image_targets, region_targets = inputs.image_targets.to(device), inputs.region_targets.to(device)
    loss = info_nce if config.kind == "infonce" else sigmoid
    with torch.no_grad():
        hits = _hits(region_logits, region_targets)
    return StepLosses(loss(image_logits, image_targets), loss(region_logits, region_targets), hits)


def _logits(items: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    logits = scale.exp() * items @ texts.T
    return logits if bias is None else logits + bias


def _hits(logits: Tensor, targets: Tensor) -> int:
    if logits.numel() == 0:
        return 0
    best = logits.masked_fill(targets == 0, -torch.inf).argmax(1, keepdim=True)
    return int((targets.gather(1, best) == 1).sum())
