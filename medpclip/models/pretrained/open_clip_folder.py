"""open_clip's own folders, as `save_for_hf` writes them and BiomedCLIP and SigLIP are published.

`open_clip_config.json` has `model_cfg` and `preprocess_cfg`; beside it lie the weights, and where the text tower is a
Hugging Face model, its tokenizer's files and its `config.json`.
"""

from __future__ import annotations

from pathlib import Path

from medpclip.errors import MedpclipError
from medpclip.models.architecture import with_text_config
from medpclip.models.pretrained.source import Pretrained, colour, read_object
from medpclip.models.tensors import read_folder

CONFIG = "open_clip_config.json"
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def has_open_clip_weights(folder: Path) -> bool:
    """Whether weights under open_clip's names are there; repositories often have transformers' and timm's beside them."""
    return any((folder / f"{name}{end}").is_file() for name in _WEIGHTS for end in ("", ".index.json"))


def read_open_clip_folder(folder: Path) -> Pretrained:
    """Architecture, weights, normalisation and tokenizer; everything from this folder.

    Raises:
        MedpclipError: a file is missing or broken.
    """
    path = folder / CONFIG
    content = read_object(path)
    where = f"{path}: key 'model_cfg'"
    architecture = with_text_config(content.get("model_cfg", {}), folder, where)
    pixels = content.get("preprocess_cfg") or {}
    try:
        mean, std = colour(pixels.get("mean", Pretrained.mean)), colour(pixels.get("std", Pretrained.std))
    except (AttributeError, TypeError, ValueError):
        raise MedpclipError(f"{path}: key 'preprocess_cfg': mean or std aren't three numbers; copy it again") from None
    tensors = read_folder(folder, _WEIGHTS)
    needs_tokenizer = any(architecture["text_cfg"].get(key) for key in ("hf_tokenizer_name", "hf_model_name"))
    return Pretrained(architecture, str(folder), tensors, mean, std, folder if needs_tokenizer else None)
