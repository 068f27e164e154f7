"""How far an exported vision tower lies from its source, as transformers loads and runs it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor

from medpclip.errors import MedpclipError
from medpclip.models.preprocess import Preprocess

# transformers 5 resizes 8-bit tensors with torchvision, we with Pillow: the roundings differ by a grey level or two.
PIXEL_TOLERANCE = 3.0


@dataclass(frozen=True)
class Differences:
    """Largest absolute differences between the source and the exported model.

    Attributes:
        hidden: of `hidden_states[-2]`, what LLaVA reads.
        last: of `last_hidden_state`.
        pooled: of `pooler_output`.
        scale: the largest absolute value among the source's.
        pixels_square: of the pixels of square images, in grey levels of 255.
        pixels_padded: of the pixels of other images, padded to square as LLaVA does before its processor, in grey levels.
    """

    hidden: float
    last: float
    pooled: float
    scale: float
    pixels_square: float
    pixels_padded: float


def verify_clip_vision(
    visual: VisionTransformer, preprocess: Preprocess, folder: Path, images: Sequence[np.ndarray], tolerance: float
) -> Differences | None:
    """Load `folder` with transformers and compare it with its source on random pixels, drawn images and `images`.

    Args:
        visual: the source's tower, float32, on the CPU, in eval mode.
        images: uint8 (height, width, 3).
        tolerance: for the three outputs, relative to max(1, `scale`).

    Returns:
        The differences; None if transformers isn't installed.

    Raises:
        MedpclipError: if transformers doesn't load the folder completely, or a difference is above its tolerance.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    pictures = [*drawn_images(), *images]
    square, padded = _pixel_differences(preprocess, folder, pictures)
    noise = torch.randn(2, 3, *visual.image_size, generator=torch.Generator().manual_seed(0))
    pixels = torch.cat([noise, *(_pixels(preprocess, picture) for picture in pictures)])
    found = _output_differences(visual, folder, pixels)
    differences = Differences(**found, pixels_square=square, pixels_padded=padded)
    limit = tolerance * max(1.0, differences.scale)
    allowed = {"hidden": limit, "last": limit, "pooled": limit}
    allowed |= {"pixels_square": PIXEL_TOLERANCE, "pixels_padded": PIXEL_TOLERANCE}
    for name, bound in allowed.items():
        value = getattr(differences, name)
        if not value <= bound:  # NaN fails too
            raise MedpclipError(
                f"export: {name} differs from the source by {value:.2g} (allowed {bound:.2g}); not exported"
            )
    return differences


def drawn_images() -> list[np.ndarray]:
    """Square and oblong uint8 images (height, width, 3) with slopes, edges and noise."""
    rng = np.random.default_rng(0)
    drawn = []
    for height, width in ((256, 256), (500, 500), (300, 411), (517, 200)):
        y, x = np.mgrid[0:height, 0:width] / max(height, width)
        slope = np.stack([x, y, 1 - x], axis=-1) * 255
        disc = (np.hypot(x - 0.4, y - 0.3) < 0.15)[..., None]
        noise = rng.normal(0, 12, (height, width, 3))
        drawn.append(np.clip(np.where(disc, 255 - slope, slope) + noise, 0, 255).astype(np.uint8))
    return drawn


def expand2square(image: np.ndarray, colour: tuple[int, ...]) -> Image.Image:
    """Centre an image on a square of `colour`, as LLaVA does before its processor (`image_aspect_ratio: pad`)."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = Image.new("RGB", (side, side), colour)
    square.paste(Image.fromarray(image), ((side - width) // 2, (side - height) // 2))
    return square


def _output_differences(visual: VisionTransformer, folder: Path, pixels: Tensor) -> dict[str, float]:
    from transformers import CLIPVisionModel

    with _no_progress_bar():
        loaded: Any = CLIPVisionModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model, info = loaded
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise MedpclipError(f"export: transformers {_transformers_version()} doesn't load every tensor; not exported")
    model.eval()
    worst = dict.fromkeys(("hidden", "last", "pooled", "scale"), 0.0)
    for batch in pixels.split(4):
        source = _source_outputs(visual, batch)
        with torch.no_grad():
            output = model(pixel_values=batch, output_hidden_states=True)
        exported = (output.hidden_states[-2], output.last_hidden_state, output.pooler_output)
        for name, ours, theirs in zip(("hidden", "last", "pooled"), source, exported, strict=True):
            difference = (ours - theirs).abs().max().item()
            worst[name] = max(worst[name], math.inf if math.isnan(difference) else difference)
            worst["scale"] = max(worst["scale"], ours.abs().max().item())
    return worst


def _source_outputs(visual: VisionTransformer, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What enters the last block and leaves it (B, 1 + N, width), and the normed CLS token (B, width)."""
    seen: dict[str, Tensor] = {}

    def note(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(hidden=inputs[0], last=output)

    def note_norm(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(pooled=output if output.ndim == 2 else output[:, 0])

    hooks = [
        visual.transformer.resblocks[-1].register_forward_hook(note),
        visual.ln_post.register_forward_hook(note_norm),
    ]
    try:
        with torch.no_grad():
            visual(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return seen["hidden"], seen["last"], seen["pooled"]


def _pixels(preprocess: Preprocess, image: np.ndarray) -> Tensor:
    """Our pixels of one image, (1, 3, S, S)."""
    return preprocess.to_pixels(torch.from_numpy(preprocess.pad_resize(image).copy())[None])


def _pixel_differences(preprocess: Preprocess, folder: Path, images: Sequence[np.ndarray]) -> tuple[float, float]:
    """Between our pixels and CLIPImageProcessor's, in grey levels: of square images, and of padded ones."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    colour = tuple(int(channel * 255) for channel in processor.image_mean)  # as LLaVA computes it
    levels = torch.tensor(preprocess.std)[None, :, None, None] * 255
    worst = {True: 0.0, False: 0.0}
    for image in images:
        square = image.shape[0] == image.shape[1]
        theirs = processor(expand2square(image, colour), return_tensors="pt")["pixel_values"]
        difference = ((_pixels(preprocess, image) - theirs) * levels).abs().max().item()
        worst[square] = max(worst[square], difference)
    return worst[True], worst[False]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _transformers_version() -> str:
    import transformers

    return transformers.__version__
