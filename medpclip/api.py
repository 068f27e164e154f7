"""The Python interface: a model that takes pictures, plain numbers and words.

    model = medpclip.load("runs/quickstart/train")
    model.classify("smear.png", ["red blood cell", "platelet"], boxes=[[10, 20, 60, 75]])

Pictures go through the same padding and resizing as in training and evaluation. Coordinates are pixels of the picture
as it was given: the origin is its top left corner, and pixel (0, 0) covers [0, 1) x [0, 1).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import stack
from medpclip.data.loading.windows import cut_windows
from medpclip.errors import MedpclipError
from medpclip.inputs import Picture, read_labels, read_picture, read_regions, read_templates
from medpclip.models import Prompts, RegionCLIP
from medpclip.models.device import pick_device
from medpclip.models.load import load_model
from medpclip.models.prompts import Windows

if TYPE_CHECKING:
    from medpclip.export.clip_vision import ExportReport

Numbers: TypeAlias = Sequence[float] | np.ndarray | Tensor

TEMPLATES = ("{name}", "a {name}", "this is a {name}")
_IMAGES_PER_PASS, _PROMPTS_PER_PASS, _TEXTS_PER_PASS = 32, 64, 256
_CACHED_LABEL_LISTS = 64


def load(path_or_name: str | Path, device: str = "cpu", ema: bool = False) -> Model:
    """A model to ask.

    Args:
        path_or_name: a run's folder (its newest checkpoint), a checkpoint's folder, or the name of an open_clip
            architecture, which comes with random weights and a warning.
        device: "cpu", "auto" (a GPU where there is one), or a torch device such as "cuda:1".
        ema: take the moving average of the weights, where the run has kept one.

    Raises:
        MedpclipError: nothing there, an unfinished checkpoint, weights of another model, no such device.
    """
    target = pick_device(device)
    region_clip = load_model(path_or_name, ema)
    if not Path(path_or_name).exists():
        warnings.warn(f"{path_or_name} has random weights: its answers mean nothing before it is trained", stacklevel=2)
    return Model(region_clip.to(target))


@dataclass(frozen=True)
class Answer:
    """What an image or a region is, out of the labels that were asked for.

    Attributes:
        label: the most probable one.
        probability: its probability.
        probabilities: label -> probability, the most probable first; they add up to 1 over the labels asked for.
        similarities: label -> cosine between the embeddings, in [-1, 1], in the same order.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    similarities: dict[str, float]

    def __repr__(self) -> str:
        shown = [f"{label} {value:.3f}" for label, value in list(self.probabilities.items())[:5]]
        more = len(self.probabilities) - len(shown)
        return f"Answer({', '.join(shown)}{f', and {more} more' if more else ''})"


class Model:
    """A region-aware CLIP with pictures, numbers and words on the outside.

    A picture is a file, a PIL image of any mode, an array uint8 or float in [0, 1] of (H, W), (H, W, 3) or (H, W, 4)
    (alpha is dropped), or a tensor uint8 or float in [0, 1] of (3, H, W). Files and PIL images with more than 8 bits are
    windowed as `medpclip data build` does it.

    Regions are given in one of four ways, in pixels of the picture:
        boxes: [[x1, y1, x2, y2], ...], one region each.
        points: [(x, y), ...], one region each: a click on it.
        masks: [mask, ...], one region each: (H, W), bool or of two values with 0 outside.
        regions: [{"box": ..., "points": [...], "labels": [...], "mask": ...}, ...], to combine them; `labels` says of each
            point whether it is on the region (1, the default) or off it (0).

    Args:
        region_clip: the model underneath, on the device where it shall compute; it is put in eval mode. Text embeddings
            are remembered: after changing its weights make a new `Model`.
    """

    def __init__(self, region_clip: RegionCLIP) -> None:
        self.region_clip = region_clip.eval()
        self._text_cache: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.region_clip.region_logit_scale.device

    def __repr__(self) -> str:
        config = self.region_clip.config
        size = self.region_clip.preprocess.image_size
        return f"Model({config.name}, {config.fusion.kind}, {size} px, {self.device})"

    @overload
    def classify(self, image: Picture, labels: Sequence[str], *, templates: Sequence[str] = ...) -> Answer: ...

    @overload
    def classify(
        self,
        image: Picture,
        labels: Sequence[str],
        *,
        boxes: Sequence[Numbers] | np.ndarray | Tensor | None = ...,
        points: Sequence[Numbers] | np.ndarray | Tensor | None = ...,
        masks: Sequence[Any] | np.ndarray | Tensor | None = ...,
        regions: Sequence[Mapping[str, Any]] | None = ...,
        templates: Sequence[str] = ...,
    ) -> list[Answer]: ...

    def classify(
        self,
        image: Picture,
        labels: Sequence[str],
        *,
        boxes: Any = None,
        points: Any = None,
        masks: Any = None,
        regions: Sequence[Mapping[str, Any]] | None = None,
        templates: Sequence[str] = TEMPLATES,
    ) -> Answer | list[Answer]:
        """The whole image's answer, or one answer per region where regions are given.

        Probabilities are the softmax over the labels of cosine times the logit scale of images or of regions: they say
        which of the labels fits best, not whether any fits.

        Args:
            image: a picture, see the class.
            labels: two or more different words or phrases.
            boxes, points, masks, regions: one of them, or none for the whole image; see the class.
            templates: texts with the fill-in {name}; a label's embedding is the mean over them.

        Raises:
            MedpclipError: saying which argument can't be used and why.
        """
        labels = read_labels(labels)
        texts = self._texts(labels, templates)
        if len(labels) < 2:
            raise MedpclipError(f"labels: only {labels[0]!r} is given, so it is the answer; give what else it may be")
        if boxes is None and points is None and masks is None and regions is None:
            embedding, scale = self._image_embeddings([image]), self.region_clip.clip.logit_scale
            return _answers(embedding, texts, scale, labels)[0]
        embedding = self._region_embeddings(image, boxes, points, masks, regions)
        return _answers(embedding, texts, self.region_clip.region_logit_scale, labels)

    def embed_image(self, image: Picture) -> np.ndarray:
        """One picture -> its L2-normalised embedding, float32 (D,)."""
        return self.embed_images([image])[0]

    def embed_images(self, images: Sequence[Picture]) -> np.ndarray:
        """Several pictures, of any sizes -> float32 (N, D), L2-normalised."""
        return self._image_embeddings(images).cpu().numpy()

    def embed_regions(
        self, image: Picture, *, boxes: Any = None, points: Any = None, masks: Any = None, regions: Any = None
    ) -> np.ndarray:
        """The regions of a picture -> float32 (R, D), L2-normalised. Regions are given as the class describes."""
        return self._region_embeddings(image, boxes, points, masks, regions).cpu().numpy()

    def embed_text(self, labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> np.ndarray:
        """Labels -> float32 (L, D): the L2-normalised mean over the templates, as `classify` uses it."""
        return self._texts(labels, templates).cpu().numpy().copy()

    def export_clip_vision(self, out: str | Path) -> ExportReport:
        """Write the image tower as a folder for `transformers.CLIPVisionModel`; see `medpclip export clip-vision`."""
        from medpclip.export.clip_vision import export_clip_vision

        model = self.region_clip
        return export_clip_vision(model.clip, model.preprocess, Path(out), name=model.config.name)

    @torch.inference_mode()
    def _image_embeddings(self, images: Sequence[Picture]) -> Tensor:
        one_array = isinstance(images, (np.ndarray, Tensor)) and images.ndim < 4
        if one_array or isinstance(images, (str, Path, Image.Image)):
            raise MedpclipError("images: a single picture is given; put it into a list, or use embed_image")
        parts = [
            self.region_clip.encode_image(self._pixels(images[start : start + _IMAGES_PER_PASS])).float()
            for start in range(0, len(images), _IMAGES_PER_PASS)
        ]
        if not parts:
            raise MedpclipError("images: the list is empty; give at least one picture")
        return torch.cat(parts)

    @torch.inference_mode()
    def _region_embeddings(self, image: Picture, boxes: Any, points: Any, masks: Any, regions: Any) -> Tensor:
        picture, grid = read_picture(image), self.region_clip.mask_grid
        prompts = read_regions(boxes, points, masks, regions, picture.shape[:2], grid)
        pixels = self._pixels([picture])
        parts = []
        for start in range(0, len(prompts), _PROMPTS_PER_PASS):
            arrays = stack([prompts[start : start + _PROMPTS_PER_PASS]], grid)
            given, windows = Prompts.from_arrays(arrays).to(self.device), self._windows(picture, arrays)
            parts.append(self.region_clip.encode_regions(pixels, given, windows=windows)[1][0])
        return torch.cat(parts).float()

    def _windows(self, picture: np.ndarray, prompts: Mapping[str, np.ndarray]) -> Windows | None:
        """What the model wants to see of a picture's regions at its own resolution."""
        spec, preprocess = self.region_clip.fusion.window, self.region_clip.preprocess
        if spec is None:
            return None
        height, width = picture.shape[:2]
        cut = cut_windows([picture], [Window.whole(width, height)], prompts, spec, preprocess.fill)
        return preprocess.to_windows(cut.to(self.device))

    def _pixels(self, images: Sequence[Picture]) -> Tensor:
        preprocess = self.region_clip.preprocess
        squares = np.stack([preprocess.pad_resize(read_picture(image)) for image in images])
        return preprocess.to_pixels(torch.from_numpy(squares).to(self.device))

    @torch.inference_mode()
    def _texts(self, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(L, D), on the model's device."""
        key = (tuple(read_labels(labels)), tuple(read_templates(templates)))
        if key not in self._text_cache:
            if len(self._text_cache) == _CACHED_LABEL_LISTS:
                del self._text_cache[next(iter(self._text_cache))]
            words = [template.format(name=label) for label in key[0] for template in key[1]]
            tokens = self.region_clip.tokenizer(words)
            _check_distinct(key[0], tokens.unflatten(0, (len(key[0]), -1)).flatten(1))
            parts = tokens.to(self.device).split(_TEXTS_PER_PASS)
            embeddings = torch.cat([self.region_clip.encode_text(part) for part in parts]).float()
            self._text_cache[key] = F.normalize(embeddings.unflatten(0, (len(key[0]), len(key[1]))).mean(1), dim=-1)
        return self._text_cache[key]


def _check_distinct(labels: Sequence[str], tokens: Tensor) -> None:
    """Refuse labels whose rows of tokens are alike: the tokenizer drops case, and whatever is beyond its context."""
    seen: dict[tuple[int, ...], str] = {}
    for label, row in zip(labels, tokens.tolist(), strict=True):
        if (other := seen.setdefault(tuple(row), label)) != label:
            raise MedpclipError(
                f"labels: {other[:60]!r} and {label[:60]!r} are the same to the tokenizer; shorten or drop one"
            )


def _answers(embedding: Tensor, texts: Tensor, log_scale: Tensor, labels: Sequence[str]) -> list[Answer]:
    with torch.inference_mode():
        cosines = embedding @ texts.T
        chances = (log_scale.float().exp() * cosines).softmax(-1)
    answers = []
    for cosine, chance in zip(cosines.tolist(), chances.tolist(), strict=True):
        order = sorted(range(len(labels)), key=lambda i: -chance[i])
        probabilities = {labels[i]: chance[i] for i in order}
        answers.append(Answer(labels[order[0]], chance[order[0]], probabilities, {labels[i]: cosine[i] for i in order}))
    return answers
