"""Hugging Face folders of SigLIP (`model_type` siglip), turned into open_clip's architecture and names.

open_clip's image tower is then timm's, which has a name for each size of it and takes any resolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from medpclip.errors import MedpclipError
from medpclip.models.pretrained.hugging_face import (
    Taken,
    normalisation,
    residual_blocks,
    tower_configs,
    tower_settings,
)
from medpclip.models.pretrained.source import Pretrained

# transformers' SiglipVisionConfig and SiglipTextConfig, for what a config.json leaves out.
_SHARED: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
_DEFAULTS = {
    "vision_config": _SHARED | {"image_size": 224, "patch_size": 16},
    "text_config": _SHARED | {"vocab_size": 32000, "max_position_embeddings": 64},
}
_EPS = 1e-6  # of timm's ViTs
# (width, layers, heads, width of the MLP, patch size) -> timm's name.
TIMM_NAMES = {
    (768, 12, 12, 3072, 16): "vit_base_patch16_siglip_224",
    (768, 12, 12, 3072, 32): "vit_base_patch32_siglip_256",
    (1024, 24, 16, 4096, 16): "vit_large_patch16_siglip_256",
    (1152, 27, 16, 4304, 14): "vit_so400m_patch14_siglip_224",
    (1152, 27, 16, 4304, 16): "vit_so400m_patch16_siglip_256",
    (1536, 40, 16, 6144, 16): "vit_giantopt_patch16_siglip_256",
}
_HALF: tuple[float, float, float] = (0.5, 0.5, 0.5)


def read_siglip_folder(folder: Path) -> Pretrained:
    """A SigLIP of `config.json`, `model.safetensors` and its tokenizer's files.

    Raises:
        MedpclipError: a file is missing or broken, or timm has no such image tower.
    """
    path = folder / "config.json"
    vision, text = tower_configs(path, _DEFAULTS)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
    name = TIMM_NAMES.get(tuple(vision[key] for key in sizes))
    if name is None or vision["layer_norm_eps"] != _EPS or vision["hidden_act"] == "quick_gelu":
        raise MedpclipError(f"{path}: key 'vision_config' is no SigLIP that timm has; choose a published size")
    activation = tower_settings(vision, str(path)).get("act_kwargs")
    architecture = {
        "embed_dim": vision["hidden_size"],
        "custom_text": True,
        "vision_cfg": {"image_size": vision["image_size"], "timm_model_name": name}
        | {"timm_pool": "map", "timm_proj": "none"}
        # timm computes some with the exact GELU, and says nothing of it.
        | {"act_kwargs": activation or {"approximate": "none"}},
        "text_cfg": tower_settings(text, str(path))
        | {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "hf_tokenizer_name": "siglip",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "heads": text["num_attention_heads"],
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    }
    mean, std = normalisation(folder, _HALF, _HALF)
    tensors = _tensors(Taken(folder), vision["num_hidden_layers"], text["num_hidden_layers"])
    return Pretrained(architecture, str(folder), tensors, mean, std, folder)


def _tensors(taken: Taken, vision_layers: int, text_layers: int) -> dict[str, Tensor]:
    trunk, text = "visual.trunk", "text_model.embeddings"
    tensors = {
        **taken.affine(f"{trunk}.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        f"{trunk}.pos_embed": taken.take("vision_model.embeddings.position_embedding.weight")[None],
        **_timm_blocks(taken, trunk, vision_layers),
        **taken.affine(f"{trunk}.norm", "vision_model.post_layernorm"),
        **_attention_pool(taken, f"{trunk}.attn_pool", "vision_model.head"),
        "text.token_embedding.weight": taken.take(f"{text}.token_embedding.weight"),
        "text.positional_embedding": taken.take(f"{text}.position_embedding.weight"),
        **residual_blocks(taken, "text.transformer", "text_model", text_layers),
        **taken.affine("text.ln_final", "text_model.final_layer_norm"),
        **taken.affine("text.text_projection", "text_model.head"),
        "logit_scale": taken.take("logit_scale"),
        "logit_bias": taken.take("logit_bias"),
    }
    taken.check()
    return tensors


def _timm_blocks(taken: Taken, trunk: str, layers: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for layer in range(layers):
        block, other = f"{trunk}.blocks.{layer}", f"vision_model.encoder.layers.{layer}"
        rows = taken.attention(f"{other}.self_attn")
        out |= {f"{block}.attn.qkv.{part}": tensor for part, tensor in rows.items()}
        out |= taken.affine(f"{block}.attn.proj", f"{other}.self_attn.out_proj")
        for ours, theirs in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("mlp.fc1",) * 2, ("mlp.fc2",) * 2):
            out |= taken.affine(f"{block}.{ours}", f"{other}.{theirs}")
    return out


def _attention_pool(taken: Taken, ours: str, theirs: str) -> dict[str, Tensor]:
    """The head that pools by attention: torch's layer has queries, keys and values in one, timm's the queries apart."""
    out = {f"{ours}.latent": taken.take(f"{theirs}.probe")}
    for part in ("weight", "bias"):
        rows = taken.take(f"{theirs}.attention.in_proj_{part}")
        third = len(rows) // 3
        out |= {f"{ours}.q.{part}": rows[:third], f"{ours}.kv.{part}": rows[third:]}
    return (
        out
        | taken.affine(f"{ours}.proj", f"{theirs}.attention.out_proj")
        | taken.affine(f"{ours}.norm", f"{theirs}.layernorm")
        | taken.affine(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
        | taken.affine(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2")
    )
