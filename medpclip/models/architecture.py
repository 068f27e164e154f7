"""Architectures: open_clip's model configs, whole enough that a model can be built of one anywhere.

Two keys are ours. `text_cfg.hf_config` is the Hugging Face config of a text tower (BERT's `config.json`), which open_clip
fetches by `hf_model_name` each time. `vision_cfg.act_kwargs`, which open_clip reads for its own towers only, holds for
timm's as well.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
from open_clip import CLIPTextCfg, CLIPVisionCfg
from torch import nn

from medpclip.errors import MedpclipError
from medpclip.models.tensors import first_line

_SHIPPED = Path(__file__).parent / "configs"
# What two configs of the same weights may differ in: resolution, temperatures' starts, and where things were found.
_FREE = {
    "vision_cfg": {"image_size", "patch_dropout", "timm_model_pretrained", "timm_drop", "timm_drop_path"},
    "text_cfg": {"hf_model_pretrained", "hf_model_name", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"},
}


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


def check_architecture(architecture: Any, where: str) -> None:
    """Refuse what is no model config of a dual encoder.

    Raises:
        MedpclipError: naming what is missing or too much.
    """
    if not isinstance(architecture, Mapping) or not all(
        isinstance(architecture.get(key), kind)
        for key, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
    ):
        raise MedpclipError(f"{where}: no model config of open_clip's (embed_dim, vision_cfg, text_cfg); mend it")
    if architecture.get("multimodal_cfg"):
        raise MedpclipError(f"{where}: has a text decoder (multimodal_cfg); choose a model of two encoders")


def with_text_config(architecture: Mapping[str, Any], folder: Path | None, where: str) -> dict[str, Any]:
    """The architecture, with the Hugging Face config of its text tower inside, if it has such a tower.

    Args:
        architecture: open_clip's model config.
        folder: has the text tower's config.json; None to look where `hf_model_name` says: a folder or the hub's cache.
        where: how messages name the architecture.

    Raises:
        MedpclipError: it can't be had.
    """
    check_architecture(architecture, where)
    name = architecture["text_cfg"].get("hf_model_name")
    whole = copy.deepcopy(dict(architecture))
    if not name or whole["text_cfg"].get("hf_config"):
        return whole
    if folder is None and Path(name).is_dir():
        folder = Path(name)
    if folder is not None:
        path = folder / "config.json"
        try:
            config = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise MedpclipError(
                f"{path}: unreadable ({first_line(error)}); copy config.json of the text tower {name} there"
            ) from None
    else:
        config = _fetched_config(name, where)
    # Where the files lay is nobody's business, and no code of a folder's is ever run.
    config = {key: value for key, value in config.items() if key not in ("_name_or_path", "auto_map")}
    whole["text_cfg"] |= {"hf_config": config}
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if Path(whole["text_cfg"].get(key) or "").is_absolute():
            whole["text_cfg"][key] = "local"
    return whole


def build_clip(
    architecture: Mapping[str, Any], image_size: int | None, logit_bias: float | None, where: str
) -> open_clip.CLIP | open_clip.CustomTextCLIP:
    """An open_clip model with random weights.

    Args:
        architecture: as `with_text_config` completes it.
        image_size: input side in pixels; None for the architecture's own.
        logit_bias: start of the sigmoid loss's bias; None for no bias, whatever the architecture says.
        where: how messages name the architecture.

    Raises:
        MedpclipError: it can't be built.
    """
    settings = copy.deepcopy(dict(architecture))
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    size = image_size or vision.get("image_size", CLIPVisionCfg.image_size)
    is_timm = bool(vision.get("timm_model_name"))
    vision |= {"image_size": size} | ({"timm_model_pretrained": False} if is_timm else {})
    settings.pop("init_logit_bias", None)
    if logit_bias is not None:
        settings["init_logit_bias"] = logit_bias
    settings["nonscalar_logit_scale"] = True  # a 0-d logit scale breaks DeepSpeed's broadcast
    kind = open_clip.CustomTextCLIP if is_custom(settings) else open_clip.CLIP
    settings.pop("custom_text", None)
    try:
        with _written(text.pop("hf_config", None)) as folder:
            if folder is not None:
                text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
            clip = kind(**settings)
        if is_timm:
            _set_up_timm(clip.visual, size, vision.get("act_kwargs"))
    except (
        RuntimeError,
        AssertionError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        ArithmeticError,
        OSError,
    ) as error:
        raise MedpclipError(f"{where} can't be built ({first_line(error)}); check it") from None
    return clip


def is_custom(architecture: Mapping[str, Any]) -> bool:
    """Whether open_clip makes a `CustomTextCLIP` of it, whose text tower is a module of its own."""
    return bool(architecture.get("custom_text")) or "hf_model_name" in architecture["text_cfg"]


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """What two architectures differ in, such that one's weights aren't the other's: "KEY: A, B", or None."""
    for key, default in (("embed_dim", None), ("quick_gelu", False)):
        if first.get(key, default) != second.get(key, default):
            return f"{key}: {first.get(key, default)!r}, {second.get(key, default)!r}"
    for part, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        one, other = (defaults | dict(architecture[part]) for architecture in (first, second))
        for key in sorted((one.keys() & other.keys()) - _FREE[part]):
            if one[key] != other[key]:
                return f"{part}.{key}: {one[key]!r}, {other[key]!r}"
    return None


def _set_up_timm(visual: nn.Module, size: int | Sequence[int], activation: Mapping[str, Any] | None) -> None:
    """What open_clip's config can't tell timm when a model is made: resolution and activation."""
    patches = visual.trunk.patch_embed  # type: ignore[union-attr]
    wanted = (size, size) if isinstance(size, int) else tuple(size)
    if tuple(patches.img_size) != wanted:  # type: ignore[arg-type, union-attr]
        visual.set_input_size(wanted)  # type: ignore[operator]
    for module in visual.modules() if activation else ():
        if isinstance(module, nn.GELU):
            module.approximate = activation["approximate"]  # type: ignore[index]


@contextlib.contextmanager
def _written(config: Mapping[str, Any] | None) -> Iterator[Path | None]:
    """A folder with `config` as its config.json, which is how open_clip takes a text tower's; None for no config."""
    if config is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        yield Path(folder)


def _fetched_config(name: str, where: str) -> dict[str, Any]:
    try:
        from transformers import AutoConfig

        config: dict[str, Any] = AutoConfig.from_pretrained(name).to_dict()
    except Exception as error:  # transformers missing, or the hub's own errors
        raise MedpclipError(
            f"{where}: the config of its text tower {name!r} can't be had ({first_line(error)}); "
            "give model.pretrained a folder that has it, or choose a trunk with CLIP's own text tower"
        ) from None
    return config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MedpclipError(f"model.trunk {str(path)!r}: unreadable ({error}); mend the JSON") from None
