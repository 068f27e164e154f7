"""One step: agree on the texts, embed everything, contrast all with all, and go back through the model.

A step's images are passed through the model in micro-batches, each with its prompts and its share of the step's texts. The
contrast is over the whole step, all ranks and micro-batches together: embeddings are made without gradient first and
kept, the losses' gradients with respect to them worked out, and each micro-batch then passed through again with the same
random numbers, to carry its part of these on to the weights (a feature cache; GradCache: Gao et al. 2021, arXiv
2101.06983). A step of a single micro-batch needs one pass only.

Nothing here draws from a state that goes on from step to step: what a step does is a function of (seed, step).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import Batch
from medpclip.data.loading.texts import Text
from medpclip.data.loading.windows import CutWindows
from medpclip.distributed import World
from medpclip.losses import Contrast, Side, TextShares, info_nce, sigmoid
from medpclip.models import Prompts, RegionCLIP
from medpclip.models.preprocess import Preprocess
from medpclip.train.config import LossConfig, TrainConfig
from medpclip.train.engines import Engine, Outputs
from medpclip.train.patch_drop import kept_patches
from medpclip.train.step_texts import Place, agree_on_texts
from medpclip.train.truncation import truncation_rate

_PATCHES = 4  # what a random stream is for; the loader has 0, 1 and 3, texts and the model 2 and 5

Anchor = Callable[[Tensor], Tensor]
"""Pixels (b, 3, S, S) -> the initial model's image embeddings (b, D), L2-normalised."""


@dataclass
class Micro:
    """What one pass through the model takes.

    Attributes:
        images: (b, S, S, 3) uint8.
        colours: (b, 2) float32, as `Batch` has them.
        prompts: R prompts for each.
        text: (t, context) int64: this micro-batch's share of the step's texts.
        keep: (b, K) int64: which patches stay; None for all.
        regions: (m,) int64: which of the b * R prompts are regions; the rest is padding.
        windows: of the prompts, where the model asks for them.
        wholes: (w,) int64: which of the b * R prompts are of whole images.
    """

    images: Tensor
    colours: Tensor
    prompts: Prompts
    text: Tensor
    keep: Tensor | None
    regions: Tensor
    windows: CutWindows | None = None
    wholes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


@dataclass
class StepInputs:
    """What this rank does in a step.

    Attributes:
        micros: in order.
        shares: who encodes which text.
        texts: all texts of the step, image texts first.
        image_texts: how many those are.
        image_targets: (B + W, image texts) int8 of this rank's B images, then of the W of them that are also prompted whole.
        region_targets: (M, region texts) int8 of its M regions.
        seed: of the model's own random numbers, for each micro-batch.
        truncated: how many of this rank's texts are longer than the model's context.
        keys: a number that tells which samples this rank has; the sum over ranks tells those of the step, whoever has them.
    """

    micros: list[Micro]
    shares: TextShares
    texts: list[Text]
    image_texts: int
    image_targets: Tensor
    region_targets: Tensor
    seed: list[int]
    keys: int
    truncated: float


@dataclass
class StepLosses:
    """Attributes:
    loss, image, region, anchor: over all ranks, and the same on all; the first is the weighted sum of the others.
    logit_scale, region_logit_scale: e to the model's.
    hits: this rank's regions whose likeliest text is a true one.
    sensitivity: sum over this rank's regions of 1 - cosine between a region's embedding and its image's.
    """

    loss: float
    image: float
    region: float
    anchor: float
    logit_scale: float
    region_logit_scale: float
    hits: int
    sensitivity: float


def prepare(
    batches: Sequence[Batch], lexicon: Lexicon, model: RegionCLIP, config: TrainConfig, step: int, world: World
) -> StepInputs:
    """Draw what a step still needs: texts, alike on all ranks, and patches to drop. All ranks call it together."""
    place = Place(config.seed, step, world, len(batches), len(batches[0].image_facts))
    step_texts = agree_on_texts(batches, lexicon, config, place)
    texts = step_texts.image + step_texts.region
    shares = TextShares(len(texts), world.size, len(batches))
    numbers = shares.of(world.rank)
    wordings = [texts[number].wording if number >= 0 else "" for number in numbers.tolist()]
    tokens = model.tokenizer(wordings)
    real = [place for place, number in enumerate(numbers.tolist()) if number >= 0]
    cut = truncation_rate(model.tokenizer, [wordings[place] for place in real], tokens[real]) * len(real)
    micros, whole_images = [], list[int]()
    for micro, batch in enumerate(batches):
        prompts = Prompts(**batch.prompts)
        index = [b * prompts.regions + r for b, row in enumerate(batch.region_facts) for r in range(len(row))]
        keep = None
        if config.patch_drop:
            seeds = [(config.seed, _PATCHES, step, place.of(micro, b)) for b in range(len(batch.keys))]
            keep = kept_patches(_of_regions(prompts, batch), model.grid, config.patch_drop, seeds)
        text = tokens[micro * shares.per_micro : (micro + 1) * shares.per_micro]
        regions, wholes = torch.tensor(index, dtype=torch.int64), _wholes(batch)
        whole_images += [micro * place.batch_size + number for number in wholes.tolist()]
        wholes = (wholes + 1) * prompts.regions - 1
        micros.append(Micro(batch.images, batch.colours, prompts, text, keep, regions, batch.windows, wholes))
    return StepInputs(
        micros,
        shares,
        texts,
        len(step_texts.image),
        torch.cat([step_texts.image_targets, step_texts.image_targets[whole_images]]),
        step_texts.region_targets,
        [place.model_seed(micro) for micro in range(len(batches))],
        sum(_number(key) for batch in batches for key in batch.keys),
        cut,
    )


def _wholes(batch: Batch) -> Tensor:
    """Numbers of the batch's images that are also prompted whole."""
    return torch.zeros(0, dtype=torch.int64) if batch.whole is None else batch.whole.nonzero().flatten()


def _of_regions(prompts: Prompts, batch: Batch) -> Prompts:
    """The same without those of whole images, which cover every patch."""
    if batch.whole is None or not batch.whole.any():
        return prompts
    box_valid = prompts.box_valid.clone()
    box_valid[batch.whole, -1] = False
    return replace(prompts, box_valid=box_valid)


def _number(key: str) -> int:
    """40 bits of a sample's key: sums over ranks stay exact in float64."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=5).digest(), "big")


def run_step(
    engine: Engine,
    inputs: StepInputs,
    config: LossConfig,
    world: World,
    anchor: Anchor | None = None,
    alive: Callable[[], None] = lambda: None,
) -> StepLosses:
    """Leave the step's gradients with the engine, which averages them over ranks; `Engine.step` is next.

    `alive` is called before every pass through the model, which may be many.
    """
    preprocess = engine.model.preprocess
    single = len(inputs.micros) == 1
    outputs: list[Outputs] = []
    anchors: list[Tensor] = []
    for micro, seed in zip(inputs.micros, inputs.seed, strict=True):
        alive()
        with torch.set_grad_enabled(single):
            outputs.append(_forward(engine, preprocess, micro, seed))
        if anchor is not None:
            with torch.no_grad():
                anchors.append(anchor(_pixels(engine, preprocess, micro)))
    kept = _Kept.of(outputs, inputs)
    contrast = _contrast(kept, inputs, config, world)
    by_image, by_whole = contrast.sides[0].items.split([len(kept.image), len(kept.whole)])
    by_image, anchor_loss = _with_anchor(by_image, kept.image, anchors, config.anchor_weight, world)
    gradients = _Gradients(by_image, by_whole, contrast.sides[1].items, contrast.texts, contrast)
    for number, (micro, seed) in enumerate(zip(inputs.micros, inputs.seed, strict=True)):
        alive()
        out = outputs[number] if single else _forward(engine, preprocess, micro, seed)
        last = number + 1 == len(inputs.micros)
        # World times: engines average over ranks, and the loss is already divided by the number of all items.
        engine.backward(world.size * gradients.surrogate(out, micro, last), last)
    image, region = (side.loss.item() for side in contrast.sides)
    return StepLosses(
        loss=config.image_weight * image + config.region_weight * region + config.anchor_weight * anchor_loss,
        image=image,
        region=region,
        anchor=anchor_loss,
        logit_scale=kept.scalars[0].exp().item(),
        region_logit_scale=kept.scalars[2].exp().item(),
        hits=contrast.sides[1].hits,
        sensitivity=kept.sensitivity,
    )


def _pixels(engine: Engine, preprocess: Preprocess, micro: Micro) -> Tensor:
    return preprocess.to_pixels(micro.images.to(engine.device, non_blocking=True), micro.colours)


def _forward(engine: Engine, preprocess: Preprocess, micro: Micro, seed: int) -> Outputs:
    torch.manual_seed(seed)  # of all devices: dropout is the same in both passes, and after a resume
    device = engine.device
    keep = None if micro.keep is None else micro.keep.to(device)
    prompts = micro.prompts.to(device, non_blocking=True)
    windows = None if micro.windows is None else preprocess.to_windows(micro.windows.to(device), micro.colours)
    return engine.forward(_pixels(engine, preprocess, micro), micro.text.to(device), keep, prompts, windows)


@dataclass
class _Kept:
    """The step's embeddings of this rank, without a graph: image (B, D), of prompts of whole images (W, D), region (M, D),
    text (m, D), scalars (4,)."""

    image: Tensor
    whole: Tensor
    region: Tensor
    text: Tensor
    scalars: Tensor
    sensitivity: float

    @classmethod
    def of(cls, outputs: Sequence[Outputs], inputs: StepInputs) -> _Kept:
        images, wholes, regions, texts, sensitivity = [], [], [], [], 0.0
        for (image, region, text, _), micro in zip(outputs, inputs.micros, strict=True):
            index = micro.regions.to(image.device)
            chosen = region.detach().flatten(0, 1)[index]
            images.append(image.detach())
            wholes.append(region.detach().flatten(0, 1)[micro.wholes.to(image.device)])
            regions.append(chosen)
            texts.append(text.detach())
            own_image = image.detach()[index // region.shape[1]]
            sensitivity += (1 - (chosen * own_image).sum(-1)).sum().item()
        scalars = outputs[0][3].detach()
        return cls(torch.cat(images), torch.cat(wholes), torch.cat(regions), torch.cat(texts), scalars, sensitivity)


def _contrast(kept: _Kept, inputs: StepInputs, config: LossConfig, world: World) -> Contrast:
    scale, bias, region_scale, region_bias = kept.scalars.unbind()
    device = kept.image.device
    sides = [
        Side(torch.cat([kept.image, kept.whole]), inputs.image_targets.to(device), 0, scale, bias, config.image_weight),
        Side(
            kept.region,
            inputs.region_targets.to(device),
            inputs.image_texts,
            region_scale,
            region_bias,
            config.region_weight,
        ),
    ]
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if config.kind == "sigmoid":
            return sigmoid(sides, kept.text, inputs.shares, world)
        return info_nce(sides, kept.text, inputs.shares, world, config.positives)


def _with_anchor(
    by_image: Tensor, image: Tensor, anchors: Sequence[Tensor], weight: float, world: World
) -> tuple[Tensor, float]:
    """The images' gradient with the anchor's added, and its loss: the mean of 1 - cosine over all ranks' images."""
    if not anchors:
        return by_image, 0.0
    initial = torch.cat(list(anchors)).to(image)
    count = len(image) * world.size  # ranks have equally many images
    [distance] = world.total([(1 - (image * initial).sum(-1)).sum().item()])
    return by_image - weight / count * initial, distance / count


@dataclass
class _Gradients:
    """What the embeddings of this rank get back from the losses, handed out micro-batch by micro-batch."""

    image: Tensor
    whole: Tensor
    region: Tensor
    text: Tensor
    contrast: Contrast

    def surrogate(self, out: Outputs, micro: Micro, last: bool) -> Tensor:
        """A scalar whose gradient is this micro-batch's part of the losses' gradient."""
        image, region, text, scalars = out
        count, wholes, regions, texts = len(image), len(micro.wholes), len(micro.regions), len(text)
        by_image, self.image = self.image[:count], self.image[count:]
        by_whole, self.whole = self.whole[:wholes], self.whole[wholes:]
        by_region, self.region = self.region[:regions], self.region[regions:]
        by_text, self.text = self.text[:texts], self.text[texts:]
        on_regions = region.new_zeros(region.shape).flatten(0, 1)
        on_regions[micro.regions.to(region.device)] = by_region
        on_regions[micro.wholes.to(region.device)] = by_whole
        total = (image * by_image).sum() + (region.flatten(0, 1) * on_regions).sum() + (text * by_text).sum()
        # Scales and biases are the same in every pass, and get theirs once.
        by_scalars = torch.stack([value for side in self.contrast.sides for value in (side.log_scale, side.bias)])
        return total + (scalars * by_scalars).sum() * float(last)
