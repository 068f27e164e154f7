"""Hugging Face folders of CLIP (`model_type` clip), turned into open_clip's architecture and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from medpclip.errors import MedpclipError
from medpclip.models.pretrained.hugging_face import (
    Taken,
    normalisation,
    residual_blocks,
    tower_configs,
    tower_settings,
)
from medpclip.models.pretrained.source import Pretrained, read_object

# transformers' CLIPVisionConfig and CLIPTextConfig, for what a config.json leaves out.
_SHARED: dict[str, Any] = {"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu", "num_hidden_layers": 12}
_DEFAULTS = {
    "vision_config": _SHARED
    | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32},
    "text_config": _SHARED
    | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408}
    | {"max_position_embeddings": 77, "eos_token_id": 49407},
}
_PROJECTION = 512
_OWN_TOKENIZER = "clip"  # that it is a Hugging Face one, and no name of a folder
_LEGACY_EOS = 2  # configs with this id pool at the highest id instead


def read_clip_folder(folder: Path) -> Pretrained:
    """A CLIP of `config.json` and `model.safetensors` (or `pytorch_model.bin`, or shards of either).

    Raises:
        MedpclipError: a file is missing or broken, or the model isn't what open_clip can compute.
    """
    path = folder / "config.json"
    vision, text = tower_configs(path, _DEFAULTS)
    activations = {vision["hidden_act"], text["hidden_act"]}
    if len(activations) > 1 and "quick_gelu" in activations:
        raise MedpclipError(f"{path}: key 'hidden_act' differs between the towers; open_clip computes both alike")
    embed_dim = read_object(path).get("projection_dim") or _PROJECTION
    architecture: dict[str, Any] = {
        "embed_dim": embed_dim,
        "quick_gelu": "quick_gelu" in activations,
        "vision_cfg": tower_settings(vision, str(path))
        | {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": _head_width(vision, path),
        },
        "text_cfg": tower_settings(text, str(path))
        | {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
        }
        | _pooling(text),
    }
    tokenizer_folder = None
    if not _has_clip_vocabulary(folder, text["vocab_size"]):
        architecture["text_cfg"]["hf_tokenizer_name"] = _OWN_TOKENIZER
        tokenizer_folder = folder
    mean, std = normalisation(folder, Pretrained.mean, Pretrained.std)
    tensors = _tensors(Taken(folder), vision["num_hidden_layers"], text["num_hidden_layers"])
    return Pretrained(architecture, str(folder), tensors, mean, std, tokenizer_folder)


def _tensors(taken: Taken, vision_layers: int, text_layers: int) -> dict[str, Tensor]:
    image, text = "vision_model.embeddings", "text_model.embeddings"
    tensors = {
        "visual.class_embedding": taken.take(f"{image}.class_embedding"),
        "visual.conv1.weight": taken.take(f"{image}.patch_embedding.weight"),
        "visual.positional_embedding": taken.take(f"{image}.position_embedding.weight"),
        **taken.affine("visual.ln_pre", "vision_model.pre_layrnorm"),  # transformers' spelling
        **residual_blocks(taken, "visual.transformer", "vision_model", vision_layers),
        **taken.affine("visual.ln_post", "vision_model.post_layernorm"),
        "visual.proj": taken.take("visual_projection.weight").t(),
        "token_embedding.weight": taken.take(f"{text}.token_embedding.weight"),
        "positional_embedding": taken.take(f"{text}.position_embedding.weight"),
        **residual_blocks(taken, "transformer", "text_model", text_layers),
        **taken.affine("ln_final", "text_model.final_layer_norm"),
        "text_projection": taken.take("text_projection.weight").t(),
        "logit_scale": taken.take("logit_scale"),
    }
    taken.check()
    return tensors


def _head_width(tower: dict[str, Any], path: Path) -> int:
    width, heads = tower["hidden_size"], tower["num_attention_heads"]
    if heads < 1 or width % heads:
        raise MedpclipError(
            f"{path}: key 'num_attention_heads' is {heads}, which doesn't divide {width}; copy it again"
        )
    return int(width // heads)


def _pooling(text: dict[str, Any]) -> dict[str, Any]:
    """Where the text's embedding is read: at the end-of-text token, mostly the highest id of all."""
    if text["eos_token_id"] in (_LEGACY_EOS, text["vocab_size"] - 1):
        return {}
    return {"pool_type": "eos", "eos_id": text["eos_token_id"]}


def _has_clip_vocabulary(folder: Path, size: int) -> bool:
    """Whether the folder's vocabulary is CLIP's own, which open_clip brings along. One without files is, if of its size."""
    own = open_clip.SimpleTokenizer()
    if (folder / "vocab.json").is_file():
        given: Any = read_object(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        given = (read_object(folder / "tokenizer.json").get("model") or {}).get("vocab")
    else:
        return size == own.vocab_size
    special = set(own.all_special_ids)  # both projects spell these two tokens in their own way
    plain = {token: index for token, index in own.encoder.items() if index not in special}
    return isinstance(given, dict) and {token: i for token, i in given.items() if i not in special} == plain
