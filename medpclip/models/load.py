"""Building models, and reading them back from runs and checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transformer import VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file

from medpclip.config import from_mapping
from medpclip.errors import MedpclipError
from medpclip.models.preprocess import Preprocess
from medpclip.models.region_clip import ModelConfig, RegionCLIP
from medpclip.models.trunk import check_supported

WEIGHTS, META = "model.safetensors", "meta.json"
CHECKPOINTS = "checkpoints"
_SHIPPED = Path(__file__).parent / "configs"


def build_model(config: ModelConfig) -> RegionCLIP:
    """A new model; trunk weights from `config.pretrained` or random, fusion at its start (a prompt changes nothing yet).

    Raises:
        MedpclipError: unknown architecture, a tower that can't take prompts, weights that don't fit.
    """
    name = _architecture(config.trunk)
    if config.pretrained is not None:
        _check_pretrained(name, config.pretrained)
    bias = {} if config.logit_bias is None else {"init_logit_bias": config.logit_bias}
    size = {} if config.image_size is None else {"force_image_size": config.image_size}
    try:
        # A 0-d logit scale breaks DeepSpeed's broadcast, hence nonscalar_logit_scale.
        clip = open_clip.create_model(name, pretrained=config.pretrained, nonscalar_logit_scale=True, **bias, **size)
    except (RuntimeError, AssertionError, TypeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MedpclipError(
            f"model.trunk {config.trunk!r} can't be built ({reason}); check trunk and pretrained"
        ) from None
    visual = check_supported(clip.visual, config.trunk)
    clip.train()
    return RegionCLIP(clip, config, _preprocess(visual), open_clip.get_tokenizer(name))


def load_model(path_or_name: str | Path) -> RegionCLIP:
    """A model in eval mode from a run folder, a checkpoint folder, or an open_clip architecture's name (random weights).

    Raises:
        MedpclipError: nothing there, an unfinished checkpoint, weights of another model.
    """
    path = Path(path_or_name)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise MedpclipError(f"{path}: no such file or folder; give a run, a checkpoint folder or an open_clip name")
        return build_model(ModelConfig(trunk=str(path_or_name))).eval()
    folder = find_checkpoint(path)
    config = from_mapping(ModelConfig, read_meta(folder)["config"]["model"], f"{folder / META}: config.model")
    # The checkpoint has all weights: what it was once initialised from may be gone.
    model = build_model(replace(config, pretrained=None))
    load_weights(model, folder)
    model.config = config
    return model.eval()


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the newest complete one of a run."""
    if (path / META).is_file():
        return path
    steps = sorted(p.parent for p in (path / CHECKPOINTS).glob(f"step-*/{META}"))
    if not steps:
        raise MedpclipError(
            f"{path}: neither a checkpoint ({META}) nor a run with one under {CHECKPOINTS}/; train first"
        )
    return steps[-1]


def read_meta(folder: Path) -> dict[str, Any]:
    """A checkpoint's meta.json."""
    path = folder / META
    try:
        meta = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MedpclipError(f"{path}: unreadable ({error}); take another checkpoint") from None
    if not isinstance(meta, dict) or "model" not in meta.get("config", {}):
        raise MedpclipError(f"{path}: key 'config.model' is missing; not a medpclip checkpoint")
    return meta


def load_weights(model: RegionCLIP, folder: Path) -> None:
    """Load a checkpoint's weights, all of them or none."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MedpclipError(f"{path}: unreadable ({error}); take another checkpoint") from None
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own:
            side = "lacks" if name not in weights else "has an unknown"
            raise MedpclipError(f"{path}: {side} tensor {name!r}; it is a checkpoint of another model than {META} says")
        if own[name].shape != weights[name].shape:
            raise MedpclipError(
                f"{path}: tensor {name!r} is {tuple(weights[name].shape)}, the model's {tuple(own[name].shape)}; "
                "it is a checkpoint of another model"
            )
    model.load_state_dict(weights)


def _architecture(trunk: str) -> str:
    if trunk.endswith(".json"):
        path = Path(trunk)
        if not path.is_file():
            raise MedpclipError(f"model.trunk {trunk!r}: no such file; give an open_clip name or an existing JSON")
        open_clip.add_model_config(path)
        return path.stem
    if trunk not in open_clip.list_models():
        open_clip.add_model_config(_SHIPPED)
    if trunk not in open_clip.list_models():
        import difflib

        near = difflib.get_close_matches(trunk, open_clip.list_models(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MedpclipError(f"model.trunk {trunk!r} is unknown{hint or '; see open_clip.list_models()'}")
    return trunk


def _check_pretrained(name: str, pretrained: str) -> None:
    if Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        known = ", ".join(tags) or "none"
        raise MedpclipError(f"model.pretrained {pretrained!r}: no such file, nor a tag of {name} (tags: {known})")


def _preprocess(visual: VisionTransformer) -> Preprocess:
    mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return Preprocess(visual.image_size[0], tuple(mean), tuple(std))
