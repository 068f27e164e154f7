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

from medpclip.models.fusions.conditioned import ConditionedFusion
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
        total += _unprompted(model.trunk, kept)
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


def _image_tower(model: RegionCLIP, kept: int) -> tuple[_Cost, _Cost]:
    """Costs of an image and of one region prompt of it."""
    trunk, fusion = model.trunk, model.fusion
    learns = _learns(trunk.visual)
    image, region = _Cost(), _Cost()
    image.products(_patch_matrices(trunk), model.grid[0] * model.grid[1], passes_back=False)
    prompt_learns = _learns(fusion.encoder)
    region.products(_matrices(fusion.encoder), 1, passes_back=prompt_learns)
    if isinstance(fusion, ConditionedFusion):
        _blocks(image, trunk, kept, learns, 0)
        _conditioned(region, trunk, fusion, kept, learns)
        image.products(_head_matrices(trunk), 1, learns)
        region.products(_head_matrices(trunk), 1, learns or _learns(fusion))
        return image, region
    region.products([fusion.start.weight], 1, prompt_learns)
    region_learns = learns or _learns(fusion)
    if trunk.pool is None:
        _joint_blocks(image, region, trunk, kept, learns, region_learns)
    else:
        _blocks(image, trunk, kept, learns, 0)
        keys, own = _pool_matrices(trunk)
        image.products(keys, kept, learns)
        for cost, query_learns in ((image, learns), (region, region_learns)):
            cost.products(own, 1, query_learns)
            cost.attention(1, kept, trunk.width, query_learns, learns)
        _gains(region, trunk.width, trunk.pool.heads, kept, region_learns)
    for cost, through in ((image, learns), (region, region_learns)):
        cost.products(_head_matrices(trunk), 1, through)
    return image, region


def _joint_blocks(image: _Cost, region: _Cost, trunk: Trunk, kept: int, learns: bool, region_learns: bool) -> None:
    """Region tokens beside the image's; the last block's output is asked for CLS and region tokens alone."""
    tokens = trunk.prefix + kept
    for number, block in enumerate(trunk.blocks, 1):
        entering, rest = _split(block.module)
        read = 1 if number == len(trunk.blocks) else tokens
        image.products(entering, tokens, learns)
        image.products(rest, read, learns)
        image.attention(read, tokens, trunk.width, learns, learns)
        region.products([*entering, *rest], 1, region_learns)
        region.attention(1, kept, trunk.width, region_learns, learns)
        _gains(region, trunk.width, block.heads, kept, region_learns)


def _gains(region: _Cost, width: int, heads: int, kept: int, learns: bool) -> None:
    """What coverage adds to keys, logits and values."""
    flops = 4.0 * len(CHANNELS) * (width + heads * kept)
    region.forward += flops
    region.backward += 2 * flops * learns


def _blocks(cost: _Cost, trunk: Trunk, kept: int, learns: bool, start: int) -> None:
    tokens = trunk.prefix + kept
    for block in trunk.blocks[start:]:
        cost.products(_matrices(block.module), tokens, learns)
        cost.attention(tokens, tokens, trunk.width, learns, learns)


def _conditioned(region: _Cost, trunk: Trunk, fusion: ConditionedFusion, kept: int, learns: bool) -> None:
    """A pass of its own for each prompt, above the first block that sees it."""
    tokens, written = trunk.prefix + kept, learns or _learns(fusion)
    _blocks(region, trunk, kept, written, fusion.depths[0])
    for number, block in enumerate(fusion.blocks):
        assert isinstance(block.attention, nn.MultiheadAttention) and isinstance(block.dense, nn.Linear)
        query = block.attention.q_proj_weight
        query = block.attention.in_proj_weight[: trunk.width] if query is None else query
        before = learns or number > 0
        region.products([query, block.attention.out_proj.weight], tokens, before)
        region.products([block.dense.weight], kept, False)


def _unprompted(trunk: Trunk, kept: int) -> float:
    cost = _Cost()
    cost.products(_patch_matrices(trunk), trunk.grid[0] * trunk.grid[1], False)
    _blocks(cost, trunk, kept, False, 0)
    if trunk.pool is not None:
        keys, own = _pool_matrices(trunk)
        cost.products(keys, kept, False)
        cost.products(own, 1, False)
        cost.attention(1, kept, trunk.width, False, False)
    cost.products(_head_matrices(trunk), 1, False)
    return cost.forward


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
