"""What is evaluated: anything that embeds images, and regions and texts where it can."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medpclip.errors import MedpclipError
from medpclip.evaluation.code import EMBEDDING_PACKAGES, code_sha256, installed_version
from medpclip.evaluation.results.exposure import read_trained_on
from medpclip.evaluation.results.result import ModelFacts, weights_sha256
from medpclip.export.folder import REPORT
from medpclip.models.load import (
    CHECKPOINTS,
    EMA,
    META,
    WEIGHTS,
    build_model,
    find_checkpoint,
    is_checkpoint,
    load_model,
    read_meta,
)
from medpclip.models.preprocess import Preprocess
from medpclip.models.pretrained.hugging_face import normalisation
from medpclip.models.pretrained.source import Colour, Pretrained, colour, read_object
from medpclip.models.region_clip import ModelConfig, RegionCLIP
from medpclip.models.tokenizer import tokenizer_hashes

TOWER = "clip_vision_model"  # `model_type` of an exported tower's config.json
# Code by which an embedding is made of a picture or a text.
_CODE = ("models", "data/loading", "evaluation/embedding", "evaluation/corpus.py", "evaluation/subject.py", "export")


@dataclass
class Subject:
    """A model and what is said of it.

    Attributes:
        facts: for results.
        preprocess: its pixels.
        model: None for an image tower alone, which knows no texts and no regions.
        tower: the module that computes.
        encode_image: pixels (B, 3, S, S) -> (B, width), L2-normalised.
        width: D.
        architecture: by what it is built, beside the fusion.
        prompted: whether it was trained with prompts by us, so that it can be asked about regions itself.
        checkpoint: its folder, where it comes from one.
    """

    facts: ModelFacts
    preprocess: Preprocess
    model: RegionCLIP | None
    tower: nn.Module
    encode_image: Callable[[Tensor], Tensor]
    width: int
    prompted: bool
    architecture: Mapping[str, Any] | None
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()
        self.facts = replace(self.facts, settings_sha256=digest)

    @classmethod
    def of_model(cls, model: RegionCLIP, facts: ModelFacts, prompted: bool, checkpoint: Path | None = None) -> Subject:
        """A RegionCLIP on its device."""
        encode, architecture = model.encode_image, model.architecture
        return cls(facts, model.preprocess, model, model, encode, model.output_dim, prompted, architecture, checkpoint)

    @property
    def device(self) -> torch.device:
        return next(self.tower.parameters()).device

    @property
    def scales(self) -> tuple[float, float]:
        """By which cosines of images and of regions with texts are multiplied to be logits."""
        if self.model is None:
            return 1.0, 1.0
        return math.exp(self.model.clip.logit_scale.item()), math.exp(self.model.region_logit_scale.item())

    def settings(self) -> dict[str, Any]:
        """What decides embeddings beside the weights: architecture, preprocessing, fusion and tokenizer."""
        model = self.model
        return {
            "architecture": self.architecture,
            "preprocess": asdict(self.preprocess),
            "fusion": None if model is None else asdict(model.config.fusion),
            "tokenizer": None if model is None else tokenizer_hashes(model.tokenizer),
        }

    def identity(self) -> str:
        """All that its embeddings of an image, a region or a text depend on: weights, settings, and who computes."""
        versions = {name: installed_version(name) for name in EMBEDDING_PACKAGES}
        made_by = [versions, code_sha256(*_CODE)]
        return json.dumps([self.facts.weights_sha256, self.settings(), made_by], sort_keys=True)

    def cache_name(self) -> str:
        """What a folder of its embeddings is called."""
        return hashlib.sha256(self.identity().encode()).hexdigest()[:16]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients and in whole float32; everything is as it was afterwards."""
    training = [part for part in module.modules() if part.training]
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    module.eval()
    try:
        for backend in backends:
            backend.allow_tf32 = False  # ten bits of mantissa would change answers
        with torch.no_grad():
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
        for part in training:
            part.training = True


def load_subject(name: str, *, ema: bool = False, seed: int = 0, device: torch.device | str = "cpu") -> Subject:
    """What `--model` means.

    Args:
        name: a run or checkpoint of ours; a folder of `medpclip export clip-vision`; a folder of Hugging Face's CLIP or
            SigLIP, or open_clip's; ARCHITECTURE:WEIGHTS with a file or one of open_clip's tags; or an ARCHITECTURE alone,
            with random weights.
        ema: of a checkpoint, the moving average of the weights.
        seed: of random weights.
        device: where to compute.

    Raises:
        MedpclipError: nothing there, or it can't be read.
    """
    path = Path(name)
    if ema and not (path.is_dir() and is_checkpoint(path)):
        raise MedpclipError(f"--ema: {name} is no run or checkpoint of medpclip; leave --ema out")
    if path.is_dir() and is_checkpoint(path):
        # Found once: a training that still runs may write a newer checkpoint meanwhile.
        return _checkpoint(find_checkpoint(path), ema, device)
    if _is_tower(path):
        return _tower(path, device)
    torch.manual_seed(seed)  # random weights: the same ones every time
    model = build_model(_config(name)).eval().to(device)
    shown = path.resolve().name if path.is_dir() else _without_path(name)
    return Subject.of_model(model, ModelFacts(shown, weights_sha256(None, model.clip.state_dict()), None), False)


def _config(name: str) -> ModelConfig:
    path = Path(name)
    if path.is_dir():
        return ModelConfig(pretrained=name)
    if path.is_file() and path.suffix != ".json":
        raise MedpclipError(f"{name}: of which architecture are these weights? give ARCHITECTURE:{name}")
    architecture, colon, weights = name.partition(":")
    if not path.exists() and not colon and (path.suffix or len(path.parts) > 1):
        raise MedpclipError(
            f"{name}: no such file or folder; give a run, a checkpoint, a folder of weights, ARCHITECTURE:WEIGHTS, or an "
            "open_clip name"
        )
    return ModelConfig(trunk=architecture, pretrained=weights or None)


def _without_path(name: str) -> str:
    architecture, colon, weights = name.partition(":")
    return f"{Path(architecture).stem if Path(architecture).exists() else architecture}{colon}{Path(weights).name}"


def _checkpoint(folder: Path, ema: bool, device: torch.device | str) -> Subject:
    model = load_model(folder, ema).to(device)
    meta = read_meta(folder)
    facts = ModelFacts(
        _shown(folder) + " (moving average)" * ema,
        weights_sha256(folder / (EMA if ema else WEIGHTS), {}),
        meta.get("step"),
        read_trained_on(meta, f"{folder}/{META}"),
    )
    return Subject.of_model(model, facts, True, folder)


def _shown(checkpoint: Path) -> str:
    """A checkpoint as shareable files name it: its run's folder and its own, without the path to them."""
    folder = checkpoint.resolve()
    run = folder.parent.parent.name if folder.parent.name == CHECKPOINTS else ""
    return f"{run}/{folder.name}" if run else folder.name


def _is_tower(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and read_object(path).get("model_type") == TOWER


class _Tower(nn.Module):
    """transformers' CLIPVisionModel: the pooled output, which an export has before the shared space's projection."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixels: Tensor) -> Tensor:
        pooled: Tensor = self.vision(pixel_values=pixels).pooler_output
        return nn.functional.normalize(pooled, dim=-1)


def _tower(folder: Path, device: torch.device | str) -> Subject:
    try:
        from transformers import CLIPVisionModel
    except ImportError:
        raise MedpclipError(
            f"{folder}: to evaluate an exported tower install the extra: pip install 'medpclip[eval]'"
        ) from None
    try:
        vision: Any = CLIPVisionModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers' own, and safetensors'
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MedpclipError(f"{folder}: transformers can't load the tower ({reason}); export it again") from None
    mean, std = _tower_colours(folder)
    preprocess = Preprocess(int(vision.config.image_size), mean, std)
    tower = _Tower(vision).eval().to(device)
    facts = ModelFacts(folder.resolve().name, weights_sha256(None, vision.state_dict()), None)
    # Not where it lay, nor by which version of transformers it was written.
    told = json.loads(vision.config.to_json_string()).items()
    architecture = {key: value for key, value in told if not key.startswith("_") and key != "transformers_version"}
    return Subject(facts, preprocess, None, tower, tower, int(vision.config.hidden_size), False, architecture)


def _tower_colours(folder: Path) -> tuple[Colour, Colour]:
    """Mean and deviation that the export's report states, else its image processor."""
    if (folder / REPORT).is_file():
        report = read_object(folder / REPORT)
        try:
            return colour(report["mean"]), colour(report["std"])
        except (KeyError, TypeError, ValueError):
            raise MedpclipError(
                f"{folder / REPORT}: keys 'mean' and 'std' aren't three numbers each; export it again"
            ) from None
    return normalisation(folder, Pretrained.mean, Pretrained.std)
