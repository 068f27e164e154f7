"""How many floating-point operations a training step needs, counted from the architecture.

These are a model's FLOPs as model FLOPs utilisation (MFU) counts them (Chowdhery et al. 2022, PaLM, appendix B): one
forward and one backward pass, whatever is computed again (activation checkpointing, the feature cache) or in vain
(padding). A multiplication and an addition are two. Matrix products count, nothing else; of these the contrast itself is
left out (under a hundredth of the towers), and of a prompt's encoder each matrix counts once per prompt. Attention counts
in full, masked or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from medpclip.models.fusions.alpha_channel import AlphaChannel
from medpclip.models.fusions.conditioned import ConditionedFusion
from medpclip.models.fusions.crops import Crop, PlacedCrop
from medpclip.models.fusions.markers import Blurred, Marked
from medpclip.models.fusions.pooling import Pooled
from medpclip.models.fusions.region_tokens import PromptedAttention, RegionTokens
from medpclip.models.prompt_encoder import CHANNELS
from medpclip.models.region_clip import RegionCLIP
from medpclip.models.trunk import Trunk


@dataclass(frozen=True)
class Flops:
    """FLOPs per image, per region prompt and per text, forward alone or with backward."""

    image: float
    region: float
    text: float

    def step(self, images: float, regions: float, texts: float) -> float:
        """FLOPs of a step of so many of each, over all ranks. Padding is not to be counted."""
        return images * self.image + regions * self.region + texts * self.text


def count_flops(model: RegionCLIP, patches: int | None = None, backward: bool = True, anchor: bool = False) -> Flops:
    """What the model costs, as a prompted forward computes it. Call it before an engine shards the parameters.

    Args:
        model: parameters that don't require a gradient cost no weight gradients, and nothing is passed back beyond the
            last that does.
        patches: kept of each image; None for all.
        backward: count the backward pass too.
        anchor: count an unprompted forward of a frozen copy of the image tower too.
    """
    kept = model.grid[0] * model.grid[1] if patches is None else patches
    image, region = _image_tower(model, kept)
    total = image.total if backward else image.forward
    if anchor:
        plain = _Cost()
        _plain_pass(plain, model.trunk, kept, learns=False, patches_read=True)  # as open_clip runs it
        total += plain.forward
    text = _text_tower(model)
    if backward:
        return Flops(total, region.total, text.total)
    return Flops(total, region.forward, text.forward)


@dataclass
class _Cost:
    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def products(self, matrices: Iterable[Tensor], rows: float, passes_back: bool) -> None:
        """`rows` vectors through each matrix; `passes_back`: whether what is before them needs a gradient."""
        for matrix in matrices:
            flops = 2.0 * matrix.numel() * rows
            self.forward += flops
            self.backward += flops * (matrix.requires_grad + passes_back)

    def attention(self, queries: float, keys: float, width: int, query_learns: bool, key_learns: bool) -> None:
        """Two products; each passes a gradient back to either side that needs one."""
        product = 2.0 * queries * keys * width
        self.forward += 2 * product
        to_logits = query_learns or key_learns  # those of keys and values need the same of the weights
        self.backward += product * (query_learns + key_learns + to_logits + key_learns)

    def mean(self, values: float, width: int, learns: bool) -> None:
        """So many vectors, weighted by what needs no gradient."""
        product = 2.0 * values * width
        self.forward += product
        self.backward += product * learns


def _image_tower(model: RegionCLIP, kept: int) -> tuple[_Cost, _Cost]:
    """Costs of an image and of one region prompt of it."""
    trunk, fusion = model.trunk, model.fusion
    learns = _learns(trunk.visual)
    written = learns or _learns(fusion)  # whether what prompts are written into needs a gradient
    image, region = _Cost(), _Cost()
    if isinstance(fusion, RegionTokens):
        _region_tokens(image, region, trunk, fusion, kept, learns, written)
        return image, region
    _plain_pass(image, trunk, kept, learns, patches_read=isinstance(fusion, Pooled))
    if isinstance(fusion, ConditionedFusion):
        _conditioned(region, trunk, fusion, kept, learns, written)
    elif isinstance(fusion, Pooled):
        _patch_heads(image, trunk, kept, learns)
        region.mean(kept, trunk.output_dim, learns)
    elif isinstance(fusion, AlphaChannel):
        region.products([fusion.alpha.weight], _patches(trunk), passes_back=False)
        _plain_pass(region, trunk, kept, written)
    elif isinstance(fusion, Crop):
        if isinstance(fusion, PlacedCrop):
            region.products(_matrices(fusion.place), 1, passes_back=False)
        _plain_pass(region, trunk, _patches(trunk), written)  # crops keep all their patches
    elif isinstance(fusion, Marked):
        _plain_pass(region, trunk, kept, learns)
    if isinstance(fusion, Blurred):
        image.forward += 2 * 2.0 * 3 * model.preprocess.image_size**3
    return image, region


def _plain_pass(cost: _Cost, trunk: Trunk, kept: int, learns: bool, patches_read: bool = False) -> None:
    """An image through all of the trunk; `learns`: whether its tokens need a gradient; `patches_read`: whether the last
    block's patches are computed too."""
    cost.products(_patch_matrices(trunk), _patches(trunk), passes_back=False)
    _blocks(cost, trunk, kept, learns, first_alone=not patches_read)
    if trunk.pool is not None:
        keys, own = _pool_matrices(trunk)
        cost.products(keys, kept, learns)
        cost.products(own, 1, learns)
        cost.attention(1, kept, trunk.width, learns, learns)
    cost.products(_head_matrices(trunk), 1, learns)


def _patch_heads(cost: _Cost, trunk: Trunk, kept: int, learns: bool) -> None:
    """Each patch on its own through the image's head."""
    if trunk.pool is not None:
        keys, own = _pool_matrices(trunk)
        cost.products([*keys, *own], kept, learns)
        cost.attention(kept, 1, trunk.width, learns, learns)
    cost.products(_head_matrices(trunk), kept, learns)


def _region_tokens(
    image: _Cost, region: _Cost, trunk: Trunk, fusion: RegionTokens, kept: int, learns: bool, written: bool
) -> None:
    image.products(_patch_matrices(trunk), _patches(trunk), passes_back=False)
    if fusion.encoder is not None and fusion.start is not None:
        prompt_learns = _learns(fusion.encoder)
        region.products(_matrices(fusion.encoder), 1, passes_back=prompt_learns)
        region.products([fusion.start.weight], 1, prompt_learns)
    if fusion.place is not None:
        region.products(_matrices(fusion.place), 1, passes_back=False)
    if fusion.glimpse is not None:
        region.products(_matrices(fusion.glimpse.place), 1, passes_back=False)
        region.products(_patch_matrices(trunk), fusion.glimpse.side**2, passes_back=False)
    if trunk.pool is None:
        _joint_blocks(image, region, trunk, fusion, kept, learns, written)
    else:
        _joint_pool(image, region, trunk, fusion, kept, learns, written)
    for cost, through in ((image, learns), (region, written)):
        cost.products(_head_matrices(trunk), 1, through)


def _joint_blocks(
    image: _Cost, region: _Cost, trunk: Trunk, fusion: RegionTokens, kept: int, learns: bool, written: bool
) -> None:
    """Region tokens beside the image's; the last block's output is asked for CLS and region tokens alone, and a
    glimpse's nowhere beyond the last look at it."""
    tokens, seen = trunk.prefix + kept, 0 if fusion.glimpse is None else fusion.glimpse.side**2
    for number, (block, layer) in enumerate(zip(trunk.blocks, fusion.layers, strict=True)):
        assert isinstance(layer, PromptedAttention)
        entering, rest = _split(block.module)
        read = 1 if number == len(trunk.blocks) - 1 else tokens
        image.products(entering, tokens, learns)
        image.products(rest, read, learns)
        image.attention(read, tokens, trunk.width, learns, learns)
        region.products([*entering, *rest], 1, written)
        _attend(region, trunk, layer, block.heads, kept, written, learns)
        if not seen or number > fusion.depths[-1]:
            continue
        region.products(entering, seen, written)
        if layer.gate is not None:
            _attend(region, trunk, layer, block.heads, seen, written, written)
        if number < fusion.depths[-1]:
            region.products(rest, seen, written)
            region.attention(seen, seen, trunk.width, written, written)


def _joint_pool(
    image: _Cost, region: _Cost, trunk: Trunk, fusion: RegionTokens, kept: int, learns: bool, written: bool
) -> None:
    """More queries of the pool, which may look at a glimpse too."""
    (layer,) = fusion.layers
    assert trunk.pool is not None and isinstance(layer, PromptedAttention)
    _blocks(image, trunk, kept, learns)
    keys, own = _pool_matrices(trunk)
    image.products(keys, kept, learns)
    image.products(own, 1, learns)
    image.attention(1, kept, trunk.width, learns, learns)
    region.products(own, 1, written)
    _attend(region, trunk, layer, trunk.pool.heads, kept, written, learns)
    if fusion.glimpse is not None:
        seen = fusion.glimpse.side**2
        _blocks(region, trunk, seen, written, prefix=0)
        region.products(keys, seen, written)
        _attend(region, trunk, layer, trunk.pool.heads, seen, written, written)


def _attend(
    region: _Cost, trunk: Trunk, layer: PromptedAttention, heads: int, seen: int, written: bool, key_learns: bool
) -> None:
    """A region's query over patches, and what coverage adds to keys, logits and values."""
    region.attention(1, seen, trunk.width, written, key_learns)
    keys, values = layer.key_gain is not None, layer.value_gain is not None
    over_patches = (keys or layer.logit_gain is not None) + values
    flops = 2.0 * len(CHANNELS) * (trunk.width * (keys + values) + heads * seen * over_patches)
    region.forward += flops
    region.backward += 2 * flops * written


def _blocks(
    cost: _Cost,
    trunk: Trunk,
    kept: int,
    learns: bool,
    start: int = 0,
    prefix: int | None = None,
    first_alone: bool = False,
) -> None:
    """All blocks from `start`; `first_alone`: the last one's output is asked for CLS alone, where there is one."""
    tokens = kept + (trunk.prefix if prefix is None else prefix)
    for number, block in enumerate(trunk.blocks[start:], start + 1):
        entering, rest = _split(block.module)
        read = 1 if first_alone and trunk.pool is None and number == len(trunk.blocks) else tokens
        cost.products(entering, tokens, learns)
        cost.products(rest, read, learns)
        cost.attention(read, tokens, trunk.width, learns, learns)


def _conditioned(
    region: _Cost, trunk: Trunk, fusion: ConditionedFusion, kept: int, learns: bool, written: bool
) -> None:
    """A pass of its own for each prompt, above the first block that sees it. Keys and values of a prompt's few tokens, and
    the products with them, are left out: under a hundredth of it."""
    tokens = trunk.prefix + kept
    region.products(_matrices(fusion.encoder), 1, passes_back=_learns(fusion.encoder))
    _blocks(region, trunk, kept, written, fusion.depths[0], first_alone=True)
    for number, block in enumerate(fusion.blocks):
        assert isinstance(block.attention, nn.MultiheadAttention) and isinstance(block.dense, nn.Linear)
        query = block.attention.q_proj_weight
        query = block.attention.in_proj_weight[: trunk.width] if query is None else query
        before = learns or number > 0
        region.products([query, block.attention.out_proj.weight], tokens, before)
        region.products([block.dense.weight], kept, False)
    region.products(_head_matrices(trunk), 1, written)


def _text_tower(model: RegionCLIP) -> _Cost:
    """Cost of one text, padded to the context as the tower takes it."""
    clip = model.clip
    tower: Any = getattr(clip, "text", clip)
    outer = {id(p) for p in clip.visual.parameters()} if tower is clip else set()
    layers = _text_layers(tower)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    embeddings = [m for m in tower.modules() if isinstance(m, nn.Embedding)]
    outer |= {id(m.weight) for m in embeddings}
    width, context = embeddings[0].embedding_dim, model.tokenizer(["a"]).shape[1]
    named = [(n, p) for n, p in tower.named_parameters() if id(p) not in outer and p.ndim == 2]
    own = [p for n, p in named if id(p) not in inside and n.rpartition(".")[2] != "positional_embedding"]
    learns = any(p.requires_grad for n, p in tower.named_parameters() if not n.startswith("visual."))
    cost = _Cost()
    for layer in layers:
        cost.products(_matrices(layer), context, learns)
        cost.attention(context, context, width, learns, learns)
    cost.products(own, 1, learns)
    return cost


def _text_layers(tower: nn.Module) -> list[nn.Module]:
    """The text transformer's blocks: open_clip's, or a transformers encoder's."""
    transformer: Any = tower.transformer
    if hasattr(transformer, "resblocks"):
        return list(transformer.resblocks)
    encoder = getattr(transformer, "encoder", transformer)
    layers = getattr(encoder, "layer", None) or getattr(encoder, "layers", None)
    assert layers is not None, f"a text tower without layers: {type(transformer).__name__}"
    return list(layers)


def _pool_matrices(trunk: Trunk) -> tuple[list[Tensor], list[Tensor]]:
    """Of an attention pool: what makes keys and values of patches, and what a query goes through."""
    visual: Any = trunk.visual
    keys = visual.trunk.attn_pool.kv.weight
    return [keys], [matrix for matrix in _matrices(visual.trunk.attn_pool) if matrix is not keys]


def _split(block: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """A block's matrices: the one that makes queries, keys and values, and the others."""
    (entering,) = (p for name, p in block.named_parameters() if name.endswith(("in_proj_weight", "qkv.weight")))
    return [entering], [matrix for matrix in _matrices(block) if matrix is not entering]


def _matrices(module: nn.Module) -> list[Tensor]:
    """Weights of linear layers (and of attention); type embeddings and learned tokens are none."""
    linear = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
    return [p for n, p in module.named_parameters() if id(p) in linear or n.endswith("in_proj_weight")]


def _patches(trunk: Trunk) -> int:
    return trunk.grid[0] * trunk.grid[1]


def _patch_matrices(trunk: Trunk) -> list[Tensor]:
    return [m.weight for m in trunk.visual.modules() if isinstance(m, nn.Conv2d)]


def _head_matrices(trunk: Trunk) -> list[Tensor]:
    """From the trunk's width to the shared space."""
    visual: Any = trunk.visual
    if not hasattr(visual, "trunk"):
        return [visual.proj]
    return [p for part in (visual.trunk.head, visual.head) for p in _matrices(part)]


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())
