"""Tensors of weights: from files, and into modules; all of them or none, and never anything pickled."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medpclip.errors import MedpclipError

_SHOWN = 4  # names in a message


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of one file on the CPU: safetensors, or a torch file, from which only tensors are unpickled.

    A mapping under "state_dict" and the prefix "module." of data-parallel training are unwrapped.

    Raises:
        MedpclipError: it can't be read, or holds something else.
    """
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError:  # torch's message tells how to run what is in there
        raise MedpclipError(f"{path}: is no torch file of tensors alone; {remedy}") from None
    except Exception as error:  # safetensors', the zip reader's, or the file system's
        raise MedpclipError(f"{path}: can't be read ({first_line(error)}); {remedy}") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise MedpclipError(f"{path}: is no mapping of names to tensors; {remedy}")
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def read_folder(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the first of `names` that the folder has, in one file or in shards that NAME.index.json lists.

    Raises:
        MedpclipError: none of them is there, or a shard is missing or unreadable.
    """
    remedy = "copy it again from where the model is published"
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_tensors(folder / name, remedy)
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            for shard in _shards(index):
                if not (folder / shard).is_file():
                    raise MedpclipError(f"{folder / shard}: no such file, but {index.name} lists it; {remedy}")
                tensors |= read_tensors(folder / shard, remedy)
            return tensors
    raise MedpclipError(f"{folder}: no weights ({', '.join(names)}); copy them there from where the model is published")


def _shards(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MedpclipError(f"{index}: unreadable ({first_line(error)}); copy it again") from None
    for shard in shards:
        if Path(shard).name != shard:
            raise MedpclipError(f"{index}: names the shard {shard!r}, which is no file of this folder; copy it again")
    return shards


def assign(module: nn.Module, tensors: Mapping[str, Tensor], source: str, remedy: str) -> None:
    """Give a module all its tensors, cast to its own types.

    Raises:
        MedpclipError: naming tensors that are missing, unknown or of another shape; the module is as it was.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - own.keys())
    shapes = [
        f"tensor {name!r} is {tuple(tensors[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    problems = [
        *([f"lacks {listed(missing)}"] if missing else []),
        *([f"has {listed(unknown)}, unknown to the model"] if unknown else []),
        *shapes[:_SHOWN],
        *([f"{len(shapes) - _SHOWN} more of other shapes"] if len(shapes) > _SHOWN else []),
    ]
    if problems:
        raise MedpclipError(f"{source}: {'; '.join(problems)}; {remedy}")
    module.load_state_dict(dict(tensors))


def listed(names: Sequence[str]) -> str:
    """Names of tensors for a message: how many, and the first of them."""
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"tensor {shown}" if len(names) == 1 else f"{len(names)} tensors ({shown}{', ...' * (len(names) > _SHOWN)})"


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
