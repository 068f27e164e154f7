"""What `model.pretrained` means: a folder, a file, or a tag."""

from __future__ import annotations

from pathlib import Path

import open_clip

from medpclip.errors import MedpclipError
from medpclip.models.architecture import check_architecture, difference, read_architecture
from medpclip.models.pretrained.clip_folder import read_clip_folder
from medpclip.models.pretrained.open_clip_folder import CONFIG as OPEN_CLIP_CONFIG
from medpclip.models.pretrained.open_clip_folder import has_open_clip_weights, read_open_clip_folder
from medpclip.models.pretrained.siglip_folder import read_siglip_folder
from medpclip.models.pretrained.source import Pretrained, colour, read_object
from medpclip.models.tensors import first_line, read_tensors

DEFAULT_TRUNK = "ViT-B-16"
_HUGGING_FACE = {"clip": read_clip_folder, "siglip": read_siglip_folder}


def find_pretrained(trunk: str | None, pretrained: str | None) -> Pretrained:
    """The architecture, and the weights if `pretrained` names some.

    Args:
        trunk: `model.trunk`; None for the folder's own, or ViT-B-16 where `pretrained` is no folder.
        pretrained: `model.pretrained`: a folder in Hugging Face's format (CLIP, SigLIP) or open_clip's, a file of
            weights, an open_clip tag, or None.

    Raises:
        MedpclipError: there is no such thing, it can't be read, or it isn't the architecture that `trunk` says.
    """
    if pretrained is not None and Path(pretrained).is_dir():
        found = _read_folder(Path(pretrained))
        if trunk is not None:
            check_agreement(found, trunk)
        return found
    trunk = trunk or DEFAULT_TRUNK
    where = f"model.trunk {trunk!r}"
    if pretrained is None:
        return Pretrained(read_architecture(trunk), where)
    if Path(pretrained).is_file():
        tensors = read_tensors(Path(pretrained), "give safetensors, or a torch file of tensors alone")
        return Pretrained(read_architecture(trunk), f"model.pretrained {pretrained!r}", tensors)
    return _read_tag(trunk, pretrained)


def _read_folder(folder: Path) -> Pretrained:
    config = folder / "config.json"
    kind = str(read_object(config).get("model_type")) if config.is_file() else ""
    if (folder / OPEN_CLIP_CONFIG).is_file() and (kind not in _HUGGING_FACE or has_open_clip_weights(folder)):
        return read_open_clip_folder(folder)
    if not config.is_file():
        raise MedpclipError(
            f"model.pretrained '{folder}': neither a run or checkpoint of medpclip, nor a folder with "
            f"{OPEN_CLIP_CONFIG} or config.json; give the folder that has one of them"
        )
    if kind not in _HUGGING_FACE:
        raise MedpclipError(
            f"{config}: key 'model_type' is {kind!r}, expected one of {', '.join(_HUGGING_FACE)}; "
            "give a model of image and text, or its folder in open_clip's format"
        )
    return _HUGGING_FACE[kind](folder)


def check_agreement(found: Pretrained, trunk: str) -> None:
    """Refuse weights of another architecture than `model.trunk` says; their resolution may differ.

    Raises:
        MedpclipError: naming the first key that differs.
    """
    check_architecture(found.architecture, found.source)
    differs = difference(read_architecture(trunk), found.architecture)
    if differs is not None:
        raise MedpclipError(
            f"model.trunk {trunk!r} isn't the architecture of {found.source} ({differs}); "
            "set model.trunk to null to take that one"
        )


def _read_tag(trunk: str, pretrained: str) -> Pretrained:
    """The weights of one of open_clip's tags, downloaded unless the hub's cache has them."""
    architecture = read_architecture(trunk)
    tags = open_clip.list_pretrained_tags_by_model(trunk)
    if pretrained not in tags:
        known = ", ".join(tags) or "none"
        raise MedpclipError(
            f"model.pretrained {pretrained!r}: no such file or folder, nor a tag of {trunk} (tags: {known}); "
            "give a file or folder of weights, a tag, or null"
        )
    tag = open_clip.get_pretrained_cfg(trunk, pretrained)
    if tag.get("quick_gelu", False) != architecture.get("quick_gelu", False):
        # open_clip only warns, and computes with another activation than the weights were trained with.
        raise MedpclipError(
            f"model.pretrained {pretrained!r}: its activation isn't that of {trunk}; take the trunk of this name "
            "with or without '-quickgelu'"
        )
    try:
        file = Path(open_clip.download_pretrained(tag))
    except Exception as error:  # the hub's own errors, offline ones too
        raise MedpclipError(
            f"model.pretrained {pretrained!r}: can't be downloaded ({first_line(error)}); give a file of weights"
        ) from None
    return Pretrained(
        architecture,
        f"model.pretrained {pretrained!r}",
        read_tensors(file, "remove it from the hub's cache, or give a file of weights"),
        colour(tag.get("mean") or Pretrained.mean),
        colour(tag.get("std") or Pretrained.std),
    )
