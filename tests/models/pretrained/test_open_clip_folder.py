"""Folders as BiomedCLIP and SigLIP are published give what open_clip computes with them, with nothing fetched.

Tolerance: the same modules compute on the same numbers, so equal to the bit but for the normalisation's place.
"""

import json
import socket
from dataclasses import asdict
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import _create_vision_transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig, RegionCLIP
from medpclip.models.load import build_model, load_model
from medpclip.models.tokenizer import FolderTokenizer, save_tokenizer

TOLERANCE = 1e-6
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "scan", "of", "the", "liver", "spleen", "##s", "no", "mass"]
TEXTS = ["a scan of the liver", "Spleens", "no mass, unknown"]


@register_model
def medpclip_test_vit_cls(pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
    """timm's own test models take any resolution at each call, which the published ones don't."""
    size = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return _create_vision_transformer("test_vit", pretrained=pretrained, **size, **kwargs)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was to be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def write_biomedclip(folder: Path) -> open_clip.CustomTextCLIP:
    """As BiomedCLIP's repository: a timm ViT with a CLS token, BERT without its pooling layer."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=32,
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"_name_or_path": "/home/someone/bert"}))
    model_cfg = {
        "embed_dim": 20,
        "vision_cfg": {
            "timm_model_name": "medpclip_test_vit_cls",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": {
            "hf_model_name": "someone/bert-on-a-hub",
            "hf_tokenizer_name": "someone/bert-on-a-hub",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 10,
        },
    }
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": pixels}))
    torch.manual_seed(0)
    local = json.loads(json.dumps(model_cfg))
    local["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    theirs = open_clip.CustomTextCLIP(**local).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    stored = theirs.state_dict() | {"text.transformer.embeddings.position_ids": torch.arange(32)[None]}  # as older ones
    torch.save(stored, folder / "open_clip_pytorch_model.bin")
    return theirs


def ours(folder: Path, **config: object) -> RegionCLIP:
    fusion = FusionConfig(prompt_dim=16)
    return build_model(ModelConfig(pretrained=str(folder), fusion=fusion, **config)).eval()  # type: ignore[arg-type]


def pixels_of(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_biomedclip(tmp_path: Path) -> None:
    theirs, model = write_biomedclip(tmp_path / "bio"), ours(tmp_path / "bio")
    tokens = model.tokenizer(TEXTS)
    assert torch.equal(tokens, open_clip.get_tokenizer(f"local-dir:{tmp_path / 'bio'}")(TEXTS))
    assert tokens.shape == (3, 10) and tokens[1].tolist() == [2, 9, 10, 3, 0, 0, 0, 0, 0, 0]
    with torch.no_grad():
        image, text = theirs.encode_image(pixels_of(64), normalize=True), theirs.encode_text(tokens, normalize=True)
        assert (model.encode_image(pixels_of(64)) - image).abs().max() <= TOLERANCE
        assert (model.encode_text(tokens) - text).abs().max() <= TOLERANCE
    assert model.preprocess.mean == (0.1, 0.2, 0.3) and model.preprocess.std == (0.4, 0.5, 0.6)


def save(model: RegionCLIP, config: ModelConfig, folder: Path) -> Path:
    """A checkpoint, as training writes it."""
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    save_tokenizer(model.tokenizer, folder)
    given = {"pretrained": config.pretrained, "image_size": config.image_size, "fusion": asdict(config.fusion)}
    pixels = {"mean": model.preprocess.mean, "std": model.preprocess.std}
    meta = {"config": {"model": given}, "architecture": model.architecture, "preprocess": pixels}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def test_a_checkpoint_needs_nothing_of_the_folder(tmp_path: Path) -> None:
    write_biomedclip(tmp_path / "bio")
    model = ours(tmp_path / "bio", image_size=96)
    tokens, config = model.tokenizer(TEXTS), model.config
    (tmp_path / "bio").rename(tmp_path / "moved")
    again = load_model(save(model, config, tmp_path / "checkpoint"))
    assert torch.equal(again.tokenizer(TEXTS), tokens)
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
        assert torch.equal(again.encode_image(pixels_of(96)), model.encode_image(pixels_of(96)))
    assert isinstance(model.tokenizer, FolderTokenizer) and isinstance(again.tokenizer, FolderTokenizer)
    assert again.tokenizer.files == model.tokenizer.files  # so do checkpoints of checkpoints
    written = b"".join(path.read_bytes() for path in (tmp_path / "checkpoint").rglob("*.json"))
    assert b"/home/someone" not in written
    assert str(tmp_path).encode() not in b"".join(again.tokenizer.files.values())
    for path in (tmp_path / "checkpoint" / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(MedpclipError, match=r"tokenizer: no vocabulary \(tokenizer\.json"):
        load_model(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer").rmdir()
    with pytest.raises(MedpclipError, match=r"tokenizer: no such folder, and the text tower needs it"):
        load_model(tmp_path / "checkpoint")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "bio"
    write_biomedclip(folder)
    tensors = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    name = "text.transformer.encoder.layer.1.output.dense.bias"
    del tensors[name]
    torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(MedpclipError, match=f"bio: lacks tensor '{name}'; take weights of this very architecture"):
        ours(folder)
    (folder / "config.json").unlink()
    with pytest.raises(
        MedpclipError, match=r"bio/config\.json: unreadable .*copy config.json of the text tower someone/"
    ):
        ours(folder)


def test_a_higher_resolution_of_a_timm_vit(tmp_path: Path) -> None:
    theirs, model = write_biomedclip(tmp_path / "bio"), ours(tmp_path / "bio", image_size=96)
    theirs.visual.set_input_size(96)
    with torch.no_grad():
        image = theirs.encode_image(pixels_of(96), normalize=True)
        assert (model.encode_image(pixels_of(96)) - image).abs().max() <= TOLERANCE
    assert model.preprocess.image_size == 96 and model.grid == (6, 6)
    with pytest.raises(MedpclipError, match="model.image_size is 100, no multiple of the 16 pixels of a patch"):
        ours(tmp_path / "bio", image_size=100)


@pytest.mark.parametrize("custom", [False, True])
def test_plain_clip_with_and_without_a_text_module(tmp_path: Path, micro_trunk: Path, custom: bool) -> None:
    model_cfg = json.loads(micro_trunk.read_text()) | {"custom_text": custom, "init_logit_bias": -10}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    settings = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    theirs = open_clip.CLIP(**settings)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    model = ours(tmp_path)
    assert hasattr(model.clip, "text") == custom
    tokens = model.tokenizer(TEXTS)
    with torch.no_grad():
        text = theirs.eval().encode_text(tokens, normalize=True)
        assert (model.encode_text(tokens) - text).abs().max() <= TOLERANCE
    assert model.clip.logit_bias is None and model.region_logit_bias is None
    theirs.logit_bias.data.fill_(-7.0)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    assert ours(tmp_path, logit_bias=-10.0).clip.logit_bias.item() == -7.0
    weights = load_file(tmp_path / "open_clip_model.safetensors")
    del weights["logit_bias"]
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    assert ours(tmp_path, logit_bias=-10.0).clip.logit_bias.item() == -10.0
