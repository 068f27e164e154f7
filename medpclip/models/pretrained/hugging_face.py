"""What Hugging Face folders of CLIP and SigLIP have in common: configs, normalisation, transformer blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medpclip.errors import MedpclipError
from medpclip.models.pretrained.source import Colour, colour, read_object
from medpclip.models.tensors import listed, read_folder

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LAYER_NORM_EPS = 1e-5  # of torch and open_clip


class Taken:
    """A folder's tensors, each of which has to be taken once under its Hugging Face name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        tensors = read_folder(folder, _WEIGHTS)
        # Buffers that older versions of transformers stored.
        self._left = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
        self._missing: list[str] = []

    def take(self, name: str) -> Tensor:
        """The tensor; an empty one in place of one that is missing."""
        if name not in self._left:
            self._missing.append(name)
            return torch.empty(0)
        return self._left.pop(name)

    def affine(self, ours: str, theirs: str) -> dict[str, Tensor]:
        """Weight and bias under another name."""
        return {f"{ours}.{part}": self.take(f"{theirs}.{part}") for part in ("weight", "bias")}

    def attention(self, theirs: str) -> dict[str, Tensor]:
        """Weight and bias of queries, keys and values in one, rows in this order."""
        return {
            part: torch.cat([self.take(f"{theirs}.{kind}_proj.{part}") for kind in "qkv"])
            for part in ("weight", "bias")
        }

    def check(self) -> None:
        """Refuse if a tensor was missing, or one is left.

        Raises:
            MedpclipError: naming them.
        """
        problems = [f"lacks {listed(self._missing)}"] if self._missing else []
        problems += [f"has {listed(sorted(self._left))}, unknown to the model"] if self._left else []
        if problems:
            raise MedpclipError(
                f"{self._folder}: {'; '.join(problems)}; the weights aren't of the model that config.json says: "
                "copy both from one place"
            )


def tower_configs(path: Path, defaults: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The towers' settings of a `config.json`, completed by transformers' defaults, which it may leave out.

    Raises:
        MedpclipError: broken, or a value of the wrong type.
    """
    content, towers = read_object(path), []
    for part, values in defaults.items():
        stated = [content.get(key) or {} for key in (part, f"{part}_dict")]  # older files have both
        if not all(isinstance(settings, dict) for settings in stated):
            raise MedpclipError(f"{path}: key '{part}' is no object; copy the file again")
        given = stated[0] | stated[1]
        tower = {key: default if given.get(key) is None else given[key] for key, default in values.items()}
        for key, default in values.items():
            kinds = (int, float) if isinstance(default, float) else type(default)
            value = tower[key]
            is_number = isinstance(value, (int, float))
            if not isinstance(value, kinds) or isinstance(value, bool) or (is_number and value <= 0):
                raise MedpclipError(f"{path}: key '{part}.{key}' is {tower[key]!r}; copy the file again")
        towers.append(tower)
    return tuple(towers)


def tower_settings(tower: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keys that open_clip's vision_cfg and text_cfg share; the activation but for quick_gelu, which is the model's."""
    width, inner = tower["hidden_size"], tower["intermediate_size"]
    ratio = inner / width
    settings: dict[str, Any] = {
        "width": width,
        "layers": tower["num_hidden_layers"],
        # open_clip takes int(width * ratio), which must not fall one short.
        "mlp_ratio": ratio if int(width * ratio) == inner else (inner + 0.5) / width,
    }
    if tower["layer_norm_eps"] != _LAYER_NORM_EPS:
        settings["norm_kwargs"] = {"eps": tower["layer_norm_eps"]}
    activation = tower["hidden_act"]
    if activation in ("gelu_pytorch_tanh", "gelu_new"):
        settings["act_kwargs"] = {"approximate": "tanh"}
    elif activation not in ("gelu", "quick_gelu"):
        raise MedpclipError(
            f"{where}: key 'hidden_act' is {activation!r}; expected quick_gelu, gelu or gelu_pytorch_tanh"
        )
    return settings


def residual_blocks(taken: Taken, ours: str, theirs: str, layers: int) -> dict[str, Tensor]:
    """open_clip's blocks of Hugging Face's encoder layers."""
    out: dict[str, Tensor] = {}
    for layer in range(layers):
        block, other = f"{ours}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}"
        rows = taken.attention(f"{other}.self_attn")
        out |= {f"{block}.attn.in_proj_{part}": tensor for part, tensor in rows.items()}
        out |= taken.affine(f"{block}.attn.out_proj", f"{other}.self_attn.out_proj")
        out |= taken.affine(f"{block}.ln_1", f"{other}.layer_norm1")
        out |= taken.affine(f"{block}.mlp.c_fc", f"{other}.mlp.fc1")
        out |= taken.affine(f"{block}.mlp.c_proj", f"{other}.mlp.fc2")
        out |= taken.affine(f"{block}.ln_2", f"{other}.layer_norm2")
    return out


def normalisation(folder: Path, mean: Colour, std: Colour) -> tuple[Colour, Colour]:
    """Mean and deviation of a folder's image processor; those given where it has none.

    Raises:
        MedpclipError: broken.
    """
    path = folder / "preprocessor_config.json"
    if path.is_file():
        settings = read_object(path)
    elif (path := folder / "processor_config.json").is_file():  # as transformers 5 writes it
        settings = read_object(path).get("image_processor") or {}
    else:
        return mean, std
    if settings.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        return colour(settings.get("image_mean") or mean), colour(settings.get("image_std") or std)
    except (TypeError, ValueError):
        raise MedpclipError(f"{path}: keys 'image_mean' and 'image_std' aren't three numbers each; mend it") from None
