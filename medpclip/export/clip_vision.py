"""Export of the image tower as a folder that `transformers.CLIPVisionModel.from_pretrained` loads, with no code of ours.

LLaVA, LLaVA-Med and vLLM take such a folder as their vision tower. The files are written directly, for two reasons:
transformers needn't be installed, and version 5 of its `save_pretrained` leaves out the prefix "vision_model." without
which version 4 loads none of the tensors. With the prefix both load all of them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
from open_clip.transformer import LayerScale, QuickGELU, VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from medpclip.errors import MedpclipError
from medpclip.export.folder import REPORT, whole_folder
from medpclip.export.verify import Differences, verify_clip_vision
from medpclip.models.preprocess import Preprocess
from medpclip.models.trunk import check_plain


@dataclass(frozen=True)
class ExportReport:
    """What `export_clip_vision` did.

    Attributes:
        out: the folder.
        differences: from the source model, as transformers computes the exported one; None where it isn't installed.
    """

    out: Path
    differences: Differences | None


def export_clip_vision(
    clip: open_clip.CLIP,
    preprocess: Preprocess,
    out: Path,
    *,
    images: Sequence[np.ndarray] = (),
    name: str = "model",
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write the image tower of `clip` to the folder `out`, load it back with transformers, and compare.

    Args:
        clip: an open_clip model whose tower is a plain ViT; neither changed nor moved.
        preprocess: its image preprocessing.
        out: the folder to make; an earlier export there is replaced.
        images: uint8 (height, width, 3), to compare on beside random pixels and drawn images; not square ones too.
        name: what to call the model in messages and in the folder's README.
        tolerance: largest difference allowed, relative to the largest value compared (or to 1, if that is larger).

    Raises:
        MedpclipError: if CLIPVisionModel can't express the tower, `out` can't be written, or a difference is above the
            tolerance; `out` is then as it was before.
    """
    visual = copy.deepcopy(check_plain(clip.visual, name)).cpu().float().eval()
    config = vision_config(visual, name)
    weights = vision_weights(visual)
    with whole_folder(out) as folder:
        _write_json(folder / "config.json", config)
        _write_json(folder / "preprocessor_config.json", processor_config(preprocess))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it readable to its owner only
        differences = verify_clip_vision(visual, preprocess, folder, images, tolerance)
        (folder / "README.md").write_text(_readme(name, preprocess), encoding="utf-8")
        _write_json(folder / REPORT, _report(name, visual, preprocess, differences, tolerance))
    return ExportReport(out, differences)


def vision_config(visual: VisionTransformer, name: str) -> dict[str, Any]:
    """`config.json` of a CLIPVisionModel that computes what `visual` does.

    Raises:
        MedpclipError: naming what of the tower a CLIPVisionModel doesn't have.
    """
    if isinstance(visual.ln_pre, nn.Identity):
        raise _inexpressible(name, "has no layer norm before its blocks (no_ln_pre)")
    if visual.patch_size[0] != visual.patch_size[1]:
        raise _inexpressible(name, f"has patches that aren't square ({visual.patch_size})")
    blocks = visual.transformer.resblocks
    activations = {_activation(block.mlp.gelu, name) for block in blocks}
    norms = [module for module in visual.modules() if isinstance(module, nn.LayerNorm)]
    epsilons = {norm.eps for norm in norms}
    if len(activations) > 1 or len(epsilons) > 1:
        raise _inexpressible(name, "mixes activations or layer norms of several kinds")
    if any(norm.weight is None or norm.bias is None for norm in norms):
        raise _inexpressible(name, "has layer norms without scale or shift")
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": visual.conv1.out_channels,
        "intermediate_size": blocks[0].mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "num_channels": visual.conv1.in_channels,
        "image_size": visual.image_size[0],
        "patch_size": visual.patch_size[0],
        "projection_dim": visual.output_dim,
        "hidden_act": activations.pop(),
        "layer_norm_eps": epsilons.pop(),
        "attention_dropout": 0.0,
        "torch_dtype": "float32",
    }


def vision_weights(visual: VisionTransformer) -> dict[str, Tensor]:
    """The tower's tensors under CLIPVisionModel's names. A LayerScale is multiplied into the linear layer before it."""
    weights = {
        "embeddings.class_embedding": visual.class_embedding,
        "embeddings.patch_embedding.weight": visual.conv1.weight,
        "embeddings.position_embedding.weight": visual.positional_embedding,
        **_affine("pre_layrnorm", visual.ln_pre),  # transformers' spelling
        **_affine("post_layernorm", visual.ln_post),
    }
    for index, block in enumerate(visual.transformer.resblocks):
        layer = f"encoder.layers.{index}"
        rows = zip(block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True)
        for part, (weight, bias) in zip("qkv", rows, strict=True):
            weights[f"{layer}.self_attn.{part}_proj.weight"] = weight
            weights[f"{layer}.self_attn.{part}_proj.bias"] = bias
        weights |= _affine(f"{layer}.self_attn.out_proj", block.attn.out_proj, block.ls_1)
        weights |= _affine(f"{layer}.layer_norm1", block.ln_1)
        weights |= _affine(f"{layer}.mlp.fc1", block.mlp.c_fc)
        weights |= _affine(f"{layer}.mlp.fc2", block.mlp.c_proj, block.ls_2)
        weights |= _affine(f"{layer}.layer_norm2", block.ln_2)
    return {f"vision_model.{key}": tensor.detach().float().clone().contiguous() for key, tensor in weights.items()}


def processor_config(preprocess: Preprocess) -> dict[str, Any]:
    """`preprocessor_config.json`: on an image that was padded to square, the same picture as `preprocess` makes."""
    size = preprocess.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _affine(name: str, module: Any, scale: nn.Module | None = None) -> dict[str, Tensor]:
    weight, bias = module.weight, module.bias
    if isinstance(scale, LayerScale):
        weight, bias = scale.gamma[:, None] * weight, scale.gamma * bias
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _activation(module: nn.Module, name: str) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    raise _inexpressible(name, f"has the activation {type(module).__name__}")


def _inexpressible(name: str, problem: str) -> MedpclipError:
    return MedpclipError(f"model {name!r}: its image tower {problem}; a CLIPVisionModel can't express that")


def _report(
    name: str, visual: VisionTransformer, preprocess: Preprocess, differences: Differences | None, tolerance: float
) -> dict[str, Any]:
    return {
        "format": "clip-vision",
        "model": name,
        "source_sha256": _fingerprint(visual.state_dict()),
        "image_size": preprocess.image_size,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "padding": {"to": "square", "image": "centred", "colour": list(preprocess.fill), "by": "the caller"},
        "versions": {
            package: _version(package) for package in ("medpclip", "torch", "open_clip_torch", "transformers")
        },
        "tolerance": tolerance,
        "differences": None if differences is None else asdict(differences),
    }


def _fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, in the names' order."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key} {tuple(state[key].shape)}\n".encode())
        digest.update(state[key].float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _readme(name: str, preprocess: Preprocess) -> str:
    return f"""# Vision tower of {name}

    from transformers import CLIPImageProcessor, CLIPVisionModel

    tower = CLIPVisionModel.from_pretrained("THIS FOLDER")
    processor = CLIPImageProcessor.from_pretrained("THIS FOLDER")

**Pad images to square first.** The model saw whole images, centred on a square of the colour {preprocess.fill} (RGB, the
mean of its normalisation) and resized to {preprocess.image_size} x {preprocess.image_size} pixels. The processor alone
would cut the sides off instead. LLaVA pads so with `image_aspect_ratio: pad`.

LLaVA reads `hidden_states[-2]`. How far it lies from the source model's is in `{REPORT}`.
"""
