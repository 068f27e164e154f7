"""Building models, and reading them back from runs and checkpoints."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medpclip.config import from_mapping
from medpclip.errors import MedpclipError
from medpclip.models.architecture import build_clip, check_architecture, is_custom, with_text_config
from medpclip.models.positions import fit_positions
from medpclip.models.preprocess import Preprocess
from medpclip.models.pretrained import Pretrained, check_agreement, find_pretrained
from medpclip.models.pretrained.source import colour
from medpclip.models.region_clip import ModelConfig, RegionCLIP
from medpclip.models.tensors import assign, read_tensors
from medpclip.models.tokenizer import FOLDER as TOKENIZER
from medpclip.models.tokenizer import make_tokenizer
from medpclip.models.trunk import check_supported

WEIGHTS, EMA, META = "model.safetensors", "ema.safetensors", "meta.json"
CHECKPOINTS = "checkpoints"
_FIRST_PARTS = ["start", "keys", "values", "logits"]
_STEP = re.compile(r"step-(\d{8,})")
_ANOTHER = f"it is a checkpoint of another model than {META} says"
# What open_clip stored that is no weight: buffers it makes itself, and the sizes in OpenAI's files.
_NO_WEIGHTS = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size")
_TEXT_TOWER = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")


def build_model(config: ModelConfig) -> RegionCLIP:
    """A new model of `config`, in training mode.

    The weights are those of `config.pretrained`, or random. Fusion is at its start, where a prompt changes nothing yet,
    unless `pretrained` is a run or checkpoint of medpclip. Positions are interpolated to `config.image_size`.

    Raises:
        MedpclipError: unknown architecture, a tower that can't take prompts, weights that don't fit.
    """
    if config.pretrained is not None and is_checkpoint(Path(config.pretrained)):
        return _continued(config, find_checkpoint(Path(config.pretrained)))
    return _build(config, find_pretrained(config.trunk, config.pretrained))


def load_model(path_or_name: str | Path, ema: bool = False) -> RegionCLIP:
    """A model in eval mode from a run folder, a checkpoint folder, or an open_clip architecture's name (random weights).

    A checkpoint needs no other file: its architecture and its pixels' normalisation are in its meta.json, and beside it
    the tokenizer, if it isn't CLIP's own.

    Args:
        path_or_name: of what.
        ema: take the weights' moving average, which runs with `ema_decay` keep beside them.

    Raises:
        MedpclipError: nothing there, an unfinished checkpoint, weights of another model, no moving average.
    """
    path = Path(path_or_name)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise MedpclipError(f"{path}: no such file or folder; give a run, a checkpoint folder or an open_clip name")
        return build_model(ModelConfig(trunk=str(path_or_name))).eval()
    folder = find_checkpoint(path)
    meta = read_meta(folder)
    model = _build(_model_config(meta, folder), _untrained(meta, folder))
    load_weights(model, folder, ema)
    return model.eval()


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint folder, or a run with one."""
    return (path / META).is_file() or (path / CHECKPOINTS).is_dir()


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the newest complete one of a run."""
    if (path / META).is_file():
        return path
    found = checkpoints(path)
    if not found:
        raise MedpclipError(
            f"{path}: neither a checkpoint ({META}) nor a run with one under {CHECKPOINTS}/; train first"
        )
    return found[-1]


def checkpoints(run: Path) -> list[Path]:
    """A run's complete checkpoints by their steps. Folders with other names, as copies of one, aren't the run's."""
    folders = ((_STEP.fullmatch(path.parent.name), path.parent) for path in (run / CHECKPOINTS).glob(f"*/{META}"))
    return [folder for _, folder in sorted((int(match[1]), folder) for match, folder in folders if match)]


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


def load_weights(model: RegionCLIP, folder: Path, ema: bool = False) -> None:
    """Load a checkpoint's weights or their moving average, all of them or none.

    Raises:
        MedpclipError: unreadable, not there, or of another model.
    """
    path = folder / (EMA if ema else WEIGHTS)
    if ema and not path.is_file():
        raise MedpclipError(f"{path}: no moving average; train with ema_decay, or take the weights themselves")
    assign(model, read_tensors(path, "take another checkpoint"), str(path), _ANOTHER)


def _continued(config: ModelConfig, folder: Path) -> RegionCLIP:
    """A model with all weights of a checkpoint, at the resolution and with the biases that `config` asks for.

    Raises:
        MedpclipError: `config` asks for another architecture or fusion than the checkpoint has.
    """
    meta = read_meta(folder)
    before, source = _model_config(meta, folder), _untrained(meta, folder)
    if config.trunk not in (None, before.trunk):
        check_agreement(source, str(config.trunk))
    for key, value in asdict(before.fusion).items():
        asked = getattr(config.fusion, key)
        if asked != value:
            raise MedpclipError(
                f"model.pretrained '{folder}': its fusion.{key} is {value!r}, model.fusion.{key} is {asked!r}; "
                "take the same"
            )
    model = _build(config, source)
    tensors = read_tensors(folder / WEIGHTS, "take another checkpoint")
    _fit(tensors, model, model.visual, "clip.visual.", str(folder / WEIGHTS))
    assign(model, tensors, str(folder / WEIGHTS), _ANOTHER)
    return model


def _build(config: ModelConfig, pretrained: Pretrained) -> RegionCLIP:
    """The model of an architecture, with the weights that come with it, in training mode."""
    where = pretrained.source
    architecture = with_text_config(pretrained.architecture, None, where)
    clip = build_clip(architecture, config.image_size, config.logit_bias, where)
    check_supported(clip.visual, config.name)
    _check_size(config, clip.visual)
    if pretrained.tensors is not None:
        tensors = _own_names(pretrained.tensors, is_custom(architecture))
        _fit(tensors, clip, clip.visual, "visual.", where)
        assign(clip, tensors, where, "take weights of this very architecture")
    preprocess = Preprocess(clip.visual.image_size[0], pretrained.mean, pretrained.std)
    tokenizer = make_tokenizer(architecture["text_cfg"], pretrained.tokenizer_folder, where)
    return RegionCLIP(clip.train(), config, preprocess, tokenizer, architecture)


def _model_config(meta: Mapping[str, Any], folder: Path) -> ModelConfig:
    model = copy.deepcopy(meta["config"]["model"])
    fusion = model.setdefault("fusion", {})
    if isinstance(fusion, dict):
        if fusion.get("kind", "region_tokens") == "region_tokens":
            fusion.setdefault("parts", _FIRST_PARTS)  # a checkpoint from before they could be chosen, and had "place"
        else:
            fusion.pop("parts", None)  # all there were at the time
    return from_mapping(ModelConfig, model, f"{folder / META}: config.model")


def _untrained(meta: Mapping[str, Any], folder: Path) -> Pretrained:
    """A checkpoint's open_clip model without its weights, which are those of the whole RegionCLIP.

    Raises:
        MedpclipError: meta.json or the tokenizer is broken.
    """
    where = f"{folder / META}: key 'architecture'"
    try:
        mean, std = colour(meta["preprocess"]["mean"]), colour(meta["preprocess"]["std"])
    except (KeyError, TypeError, ValueError):
        raise MedpclipError(
            f"{folder / META}: key 'preprocess' is missing or broken; take another checkpoint"
        ) from None
    check_architecture(meta.get("architecture"), where)
    architecture = copy.deepcopy(meta["architecture"])
    size = meta["config"]["model"].get("image_size")
    if size is not None:  # the resolution of the weights, where it wasn't the architecture's own
        architecture["vision_cfg"]["image_size"] = size
    text = architecture["text_cfg"]
    if not (text.get("hf_tokenizer_name") or text.get("hf_model_name")):
        return Pretrained(architecture, where, None, mean, std)
    if not (folder / TOKENIZER).is_dir():
        raise MedpclipError(
            f"{folder / TOKENIZER}: no such folder, and the text tower needs it; take a whole checkpoint"
        )
    return Pretrained(architecture, where, None, mean, std, folder / TOKENIZER)


def _own_names(tensors: Mapping[str, Tensor], custom: bool) -> dict[str, Tensor]:
    """open_clip's tensors as the model names them: with its text tower's under "text.", or not."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.rsplit(".", 1)[-1] in _NO_WEIGHTS:
            continue
        if custom and name.startswith(_TEXT_TOWER):
            name = f"text.{name}"
        elif not custom:
            name = name.removeprefix("text.")
        out[name] = tensor
    return out


def _fit(tensors: dict[str, Tensor], module: nn.Module, visual: nn.Module, prefix: str, source: str) -> None:
    """Have weights fit a model of another resolution, or of the other loss. Changed in place.

    Without a bias the model leaves the weights' out; with one that the weights don't have, its own start stays.
    """
    fit_positions(tensors, visual, prefix, source)
    own = module.state_dict()
    for name in [name for name in {**own, **tensors} if name.endswith(("logit_scale", "logit_bias"))]:
        if name not in own and name.endswith("logit_bias"):
            del tensors[name]
        elif name in own and name not in tensors and name.endswith("logit_bias"):
            tensors[name] = own[name]
        elif name in own and name in tensors and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(own[name].shape)


def _check_size(config: ModelConfig, visual: nn.Module) -> None:
    tower: Any = visual
    patch: int = (tower.trunk.patch_embed if hasattr(tower, "trunk") else tower).patch_size[0]
    if config.image_size is not None and config.image_size % patch:
        raise MedpclipError(f"model.image_size is {config.image_size}, no multiple of the {patch} pixels of a patch")
