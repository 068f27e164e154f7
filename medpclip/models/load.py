"""Building models, and reading them back from runs and checkpoints."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer
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

Colour = tuple[float, float, float]  # of RGB in [0, 1]


def build_model(config: ModelConfig) -> RegionCLIP:
    """A new model; trunk weights from `config.pretrained` or random, fusion at its start (a prompt changes nothing yet).

    Raises:
        MedpclipError: unknown architecture, a tower that can't take prompts, weights that don't fit.
    """
    weights = None if config.pretrained is None else _find_weights(config.trunk, config.pretrained)
    return _build(config, read_architecture(config.trunk), weights or Weights(), f"model.trunk {config.trunk!r}")


def load_model(path_or_name: str | Path) -> RegionCLIP:
    """A model in eval mode from a run folder, a checkpoint folder, or an open_clip architecture's name (random weights).

    A checkpoint needs no other file: its architecture and its pixels' normalisation are in its meta.json.

    Raises:
        MedpclipError: nothing there, an unfinished checkpoint, weights of another model.
    """
    path = Path(path_or_name)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise MedpclipError(f"{path}: no such file or folder; give a run, a checkpoint folder or an open_clip name")
        return build_model(ModelConfig(trunk=str(path_or_name))).eval()
    folder = find_checkpoint(path)
    meta = read_meta(folder)
    config = from_mapping(ModelConfig, meta["config"]["model"], f"{folder / META}: config.model")
    try:
        pixels = meta["preprocess"]
        weights = Weights(None, _colour(pixels["mean"]), _colour(pixels["std"]))
    except (KeyError, TypeError, ValueError):
        raise MedpclipError(
            f"{folder / META}: key 'preprocess' is missing or broken; take another checkpoint"
        ) from None
    model = _build(config, meta.get("architecture", {}), weights, f"{folder / META}: key 'architecture'")
    load_weights(model, folder)
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
    config = meta.get("config") if isinstance(meta, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise MedpclipError(f"{path}: key 'config.model' is missing or no object; take another checkpoint")
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


def read_architecture(trunk: str) -> dict[str, Any]:
    """open_clip's model config (embed_dim, vision_cfg, text_cfg, ...) of a name or a JSON file.

    open_clip's registry stays as it is: a JSON file of the user's never replaces an architecture of that name.

    Raises:
        MedpclipError: no such name or file, a file that is no model config, or one with a built-in architecture's name.
    """
    shipped = {path.stem: path for path in _SHIPPED.glob("*.json")}
    if trunk.endswith(".json"):
        path = Path(trunk)
        if not path.is_file():
            raise MedpclipError(f"model.trunk {trunk!r}: no such file; give an open_clip name or an existing JSON")
        if path.stem in shipped or path.stem in open_clip.list_models():
            raise MedpclipError(f"model.trunk {trunk!r}: a built-in architecture has this name; rename the file")
        return _read_json(path)
    if trunk in shipped:
        return _read_json(shipped[trunk])
    names = open_clip.list_models()
    if trunk not in names:
        near = difflib.get_close_matches(trunk, [*names, *shipped], 1)
        hint = f"did you mean {near[0]!r}?" if near else "see open_clip.list_models()"
        raise MedpclipError(f"model.trunk {trunk!r} is unknown; {hint}")
    config: dict[str, Any] = open_clip.get_model_config(trunk)
    return config


@dataclass(frozen=True)
class Weights:
    """Where a trunk's weights lie (None: nowhere, they stay random), and the normalisation they were trained with."""

    file: Path | None = None
    mean: Colour = open_clip.OPENAI_DATASET_MEAN
    std: Colour = open_clip.OPENAI_DATASET_STD


def _build(config: ModelConfig, architecture: Mapping[str, Any], weights: Weights, where: str) -> RegionCLIP:
    """The model of an open_clip config.

    Args:
        config: what the user asked for; its trunk and pretrained are only kept.
        architecture: open_clip's model config.
        weights: of the trunk.
        where: how messages name the architecture.
    """
    _check_architecture(architecture, where)
    settings = copy.deepcopy(dict(architecture))
    settings.pop("custom_text", None)
    if config.image_size is not None:
        settings["vision_cfg"]["image_size"] = config.image_size
    if config.logit_bias is not None:
        settings["init_logit_bias"] = config.logit_bias
    settings["nonscalar_logit_scale"] = True  # a 0-d logit scale breaks DeepSpeed's broadcast
    try:
        clip = open_clip.CLIP(**settings)
    except (RuntimeError, AssertionError, TypeError, ValueError, OSError) as error:
        raise MedpclipError(f"{where} can't be built ({_first_line(error)}); check it") from None
    visual = check_supported(clip.visual, config.trunk)
    if weights.file is not None:
        try:
            open_clip.load_checkpoint(clip, str(weights.file))
        except Exception as error:  # torch's, safetensors' or the unpickler's, which refuses all but tensors
            raise MedpclipError(
                f"model.pretrained {config.pretrained!r}: doesn't fit {where} or can't be read ({_first_line(error)}); "
                "check trunk and pretrained"
            ) from None
    preprocess = Preprocess(visual.image_size[0], weights.mean, weights.std)
    return RegionCLIP(clip.train(), config, preprocess, _tokenizer(settings["text_cfg"], where), architecture)


def _check_architecture(architecture: Any, where: str) -> None:
    if not isinstance(architecture, Mapping) or not all(
        isinstance(architecture.get(key), kind)
        for key, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
    ):
        raise MedpclipError(f"{where}: no model config of open_clip's (embed_dim, vision_cfg, text_cfg); mend it")
    other = [key for key in ("custom_text", "multimodal_cfg") if architecture.get(key)]
    if other or "hf_model_name" in architecture["text_cfg"]:
        raise MedpclipError(
            f"{where}: its text tower isn't CLIP's own ({', '.join(other) or 'hf_model_name'}); choose a plain CLIP"
        )


def _tokenizer(text: Mapping[str, Any], where: str) -> Any:
    """The tokenizer that `text_cfg` asks for, as open_clip.get_tokenizer makes it for a built-in name."""
    context = text.get("context_length", open_clip.CLIPTextCfg.context_length)
    options = text.get("tokenizer_kwargs", {})
    name = text.get("hf_tokenizer_name")
    if not name:
        return open_clip.SimpleTokenizer(context_length=context, **options)
    try:
        return HFTokenizer(name, context_length=context, tokenizer_mode=text.get("tokenizer_mode"), **options)
    except Exception as error:  # transformers missing, or the hub's own errors
        raise MedpclipError(
            f"{where}: its tokenizer {name!r} can't be had ({_first_line(error)}); choose a trunk with CLIP's own"
        ) from None


def _find_weights(trunk: str, pretrained: str) -> Weights:
    """A file of weights, or those of one of open_clip's tags, downloaded unless the hub's cache has them."""
    if Path(pretrained).is_file():
        return Weights(Path(pretrained))
    tags = open_clip.list_pretrained_tags_by_model(trunk)
    if pretrained not in tags:
        known = ", ".join(tags) or "none"
        raise MedpclipError(
            f"model.pretrained {pretrained!r}: no such file, nor a tag of {trunk} (tags: {known}); "
            "give a file of weights, a tag, or null"
        )
    tag = open_clip.get_pretrained_cfg(trunk, pretrained)
    if tag.get("quick_gelu", False) != read_architecture(trunk).get("quick_gelu", False):
        # open_clip only warns, and computes with another activation than the weights were trained with.
        raise MedpclipError(
            f"model.pretrained {pretrained!r}: its activation isn't that of {trunk}; take the trunk of this name "
            "with or without '-quickgelu'"
        )
    try:
        file = Path(open_clip.download_pretrained(tag))
    except Exception as error:  # the hub's own errors, offline ones too
        raise MedpclipError(
            f"model.pretrained {pretrained!r}: can't be downloaded ({_first_line(error)}); give a file of weights"
        ) from None
    return Weights(file, _colour(tag.get("mean") or Weights.mean), _colour(tag.get("std") or Weights.std))


def _colour(values: Any) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MedpclipError(f"model.trunk {str(path)!r}: unreadable ({error}); mend the JSON") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
