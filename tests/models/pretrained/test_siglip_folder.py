"""SigLIP, in Hugging Face's folder format and in open_clip's, gives what transformers and open_clip compute with it.

Tolerance: transformers sums the same float32 products in another order, which moves unit vectors by about 1e-7 in a model
this small; 1e-5 is far above that, and far below what another activation does.
"""

import json
import socket
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import _create_vision_transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig, RegionCLIP
from medpclip.models.load import build_model
from medpclip.models.pretrained import siglip_folder

TOLERANCE = 1e-5
NAME = "medpclip_test_vit_map"


@register_model
def medpclip_test_vit_map(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
    size = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    kwargs = {"global_pool": "map", "class_token": False} | kwargs
    return _create_vision_transformer("test_vit3", pretrained=pretrained, **size, **kwargs)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was to be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setitem(siglip_folder.TIMM_NAMES, (32, 2, 2, 64, 16), NAME)


def write_tokenizer(folder: Path) -> None:
    words = ["<pad>", "</s>", "<unk>", "a", "scan", "of", "the", "liver"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", unk_token="<unk>").save_pretrained(folder)


def write(folder: Path, activation: str = "gelu_pytorch_tanh") -> SiglipModel:
    torch.manual_seed(0)
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shared |= {"hidden_act": activation}
    config = SiglipConfig(
        text_config=shared | {"vocab_size": 8, "max_position_embeddings": 10},
        vision_config=shared | {"image_size": 64, "patch_size": 16},
    )
    model = SiglipModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def ours(folder: Path, **config: object) -> RegionCLIP:
    fusion = FusionConfig(prompt_dim=16)
    return build_model(ModelConfig(pretrained=str(folder), fusion=fusion, **config)).eval()  # type: ignore[arg-type]


def pixels_of(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_hugging_face(tmp_path: Path, activation: str) -> None:
    theirs, model = write(tmp_path / "siglip", activation), ours(tmp_path / "siglip", logit_bias=-10.0)
    tokens = model.tokenizer(["A scan, of the liver!", "a spleen"])
    assert tokens[0].tolist() == [3, 4, 5, 6, 7, 1, 1, 1, 1, 1]
    with torch.no_grad():
        out = theirs(input_ids=tokens, pixel_values=pixels_of(64))
        assert (model.encode_image(pixels_of(64)) - out.image_embeds).abs().max() < TOLERANCE
        assert (model.encode_text(tokens) - out.text_embeds).abs().max() < TOLERANCE
    assert model.clip.logit_bias.item() == pytest.approx(theirs.logit_bias.item())
    assert model.clip.logit_scale.item() == pytest.approx(theirs.logit_scale.item())
    assert model.preprocess.mean == model.preprocess.std == (0.5, 0.5, 0.5)
    assert ours(tmp_path / "siglip", image_size=96).grid == (6, 6)


def test_open_clip_folder(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    model_cfg = {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 64, "timm_model_name": NAME, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {"context_length": 10, "vocab_size": 8, "hf_tokenizer_name": "timm/nowhere", "width": 32}
        | {"tokenizer_kwargs": {"clean": "canonicalize"}, "heads": 2, "layers": 2, "no_causal_mask": True}
        | {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    theirs = open_clip.CustomTextCLIP(**{k: v for k, v in model_cfg.items() if k != "custom_text"}).eval()
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    model = ours(tmp_path)
    tokens = model.tokenizer(["a scan"])
    with torch.no_grad():
        image, text = theirs.encode_image(pixels_of(64), normalize=True), theirs.encode_text(tokens, normalize=True)
        assert (model.encode_image(pixels_of(64)) - image).abs().max() <= 1e-6
        assert (model.encode_text(tokens) - text).abs().max() <= 1e-6


def test_faults(tmp_path: Path) -> None:
    write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["vision_model.head.probe"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(MedpclipError, match=r"lacks tensor 'vision_model.head.probe'; the weights aren't of the model"):
        ours(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MedpclipError, match=r"config\.json: key 'vision_config' is no SigLIP that timm has"):
        ours(tmp_path)


def test_what_a_config_leaves_out_is_as_in_transformers() -> None:
    for part, kind in (("vision_config", SiglipVisionConfig), ("text_config", SiglipTextConfig)):
        defaults = siglip_folder._DEFAULTS[part]
        assert {key: getattr(kind(), key) for key in defaults} == defaults


@pytest.mark.parametrize("size", [size for size in siglip_folder.TIMM_NAMES if size[0] > 32])
def test_timm_has_the_published_sizes(size: tuple[int, ...]) -> None:
    width, layers, heads, inner, patch = size
    with torch.device("meta"):
        trunk = open_clip.timm_model.timm.create_model(siglip_folder.TIMM_NAMES[size])
    assert (trunk.embed_dim, len(trunk.blocks), trunk.blocks[0].attn.num_heads) == (width, layers, heads)
    assert trunk.blocks[0].mlp.fc1.out_features == inner and trunk.patch_embed.patch_size == (patch, patch)
    assert trunk.attn_pool is not None and trunk.cls_token is None
