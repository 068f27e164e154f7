"""A Hugging Face folder of CLIP gives what transformers computes with it.

Tolerance: both sum the same float32 products in another order (one matrix for queries, keys and values instead of three),
which moves unit vectors by about 1e-7 in a model this small; 1e-5 is far above that, and far below what a wrong
activation, epsilon or transposed projection does.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig, RegionCLIP
from medpclip.models.load import build_model
from medpclip.models.pretrained.clip_folder import _DEFAULTS, read_clip_folder
from medpclip.models.tokenizer import FolderTokenizer

TOLERANCE = 1e-5
FUSION = FusionConfig(prompt_dim=16)
SMALL = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}


def write(
    folder: Path, activation: str = "quick_gelu", eos: int = 2, eps: float = 1e-5, **options: object
) -> CLIPModel:
    torch.manual_seed(0)
    text = SMALL | {"hidden_size": 24, "hidden_act": activation, "layer_norm_eps": eps, "eos_token_id": eos}
    text |= {"max_position_embeddings": 12}
    vision = SMALL | {"image_size": 48, "patch_size": 16, "hidden_act": activation, "layer_norm_eps": eps}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)).eval()
    for parameter in model.parameters():  # biases and norms that start at 0 and 1 would hide what is mixed up
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder, **options)
    return model


def ours(folder: Path, **config: object) -> RegionCLIP:
    return build_model(ModelConfig(pretrained=str(folder), fusion=FUSION, **config)).eval()  # type: ignore[arg-type]


def embeddings(model: CLIPModel, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=pixels)
    return out.image_embeds, out.text_embeds


def inputs(side: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 49000, (3, 12), generator=generator)
    tokens[0, 5:] = tokens[1, 9:] = tokens[2, 11:] = 49407
    return torch.randn(2, 3, side, side, generator=generator), tokens


@pytest.mark.parametrize(
    ("activation", "eos", "eps"),
    [("quick_gelu", 2, 1e-5), ("gelu", 49407, 1e-5), ("gelu_pytorch_tanh", 49407, 1e-3)],
)
def test_embeddings_are_those_of_transformers(tmp_path: Path, activation: str, eos: int, eps: float) -> None:
    theirs = write(tmp_path / "clip", activation, eos, eps)
    model, (pixels, tokens) = ours(tmp_path / "clip"), inputs()
    image, text = embeddings(theirs, pixels, tokens)
    with torch.no_grad():
        assert (model.encode_image(pixels) - image).abs().max() < TOLERANCE
        assert (model.encode_text(tokens) - text).abs().max() < TOLERANCE
    assert model.clip.logit_scale.shape == (1,) and model.clip.logit_scale.item() == theirs.logit_scale.item()
    assert model.preprocess.image_size == 48


def test_another_end_of_text_is_pooled_at(tmp_path: Path) -> None:
    theirs = write(tmp_path / "clip", eos=7)
    model, (pixels, tokens) = ours(tmp_path / "clip"), inputs()
    tokens[:, 4] = 7
    with torch.no_grad():
        assert (model.encode_text(tokens) - embeddings(theirs, pixels, tokens)[1]).abs().max() < TOLERANCE


def test_shards_and_half_precision_and_torch_files(tmp_path: Path) -> None:
    theirs = write(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    shutil.copytree(tmp_path / "whole", tmp_path / "bin")
    torch.save(load_file(tmp_path / "bin" / "model.safetensors"), tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    first = ours(tmp_path / "whole").clip.state_dict()
    for name in ("shards", "bin"):
        other = ours(tmp_path / name).clip.state_dict()
        assert all(torch.equal(first[key], other[key]) for key in first)
    theirs.half().save_pretrained(tmp_path / "half")
    half = ours(tmp_path / "half").clip.state_dict()
    assert all(t.dtype == torch.float32 and torch.equal(t, first[k].half().float()) for k, t in half.items())


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_normalisation_is_the_folders(tmp_path: Path, name: str) -> None:
    write(tmp_path / "clip")
    assert ours(tmp_path / "clip").preprocess.mean[0] == pytest.approx(0.48145466)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    nested = {"image_processor": settings} if name.startswith("processor") else settings
    (tmp_path / "clip" / name).write_text(json.dumps(nested))
    assert ours(tmp_path / "clip").preprocess.mean == (0.1, 0.2, 0.3)
    assert ours(tmp_path / "clip").preprocess.std == (0.4, 0.5, 0.6)
    settings["do_normalize"] = False  # type: ignore[assignment]
    (tmp_path / "clip" / name).write_text(json.dumps(nested))
    assert ours(tmp_path / "clip").preprocess.mean == (0.0, 0.0, 0.0)
    assert np.all(np.array(ours(tmp_path / "clip").preprocess.std) == 1)
    settings["do_normalize"], settings["image_mean"] = True, [1.0]  # type: ignore[assignment]
    (tmp_path / "clip" / name).write_text(json.dumps(nested))
    with pytest.raises(MedpclipError, match=f"{name}: keys 'image_mean' and 'image_std' aren't three numbers"):
        ours(tmp_path / "clip")


def test_what_a_config_leaves_out_is_as_in_transformers(tmp_path: Path) -> None:
    for part, kind in (("vision_config", CLIPVisionConfig), ("text_config", CLIPTextConfig)):
        assert {key: getattr(kind(), key) for key in _DEFAULTS[part]} == _DEFAULTS[part]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "text_config_dict": {"hidden_size": 8.5}}))
    with pytest.raises(MedpclipError, match=r"config\.json: key 'text_config.hidden_size' is 8\.5"):
        read_clip_folder(tmp_path)


def test_a_higher_resolution(tmp_path: Path) -> None:
    """Against open_clip: transformers interpolates positions without antialiasing, with another cubic."""
    write(tmp_path / "clip")
    model, (pixels, _) = ours(tmp_path / "clip", image_size=96), inputs(96)
    assert model.grid == (6, 6) and model.preprocess.image_size == 96
    found = read_clip_folder(tmp_path / "clip")
    vision = found.architecture["vision_cfg"] | {"image_size": 96}
    theirs = open_clip.CLIP(**dict(found.architecture) | {"vision_cfg": vision})
    tensors = dict(found.tensors or {})
    resize_pos_embed(tensors, theirs)
    theirs.load_state_dict(tensors)
    with torch.no_grad():
        assert (model.encode_image(pixels) - theirs.eval().encode_image(pixels, normalize=True)).abs().max() < 1e-6


def test_tokenizers(tmp_path: Path) -> None:
    """CLIP's own vocabulary needs no file of the folder; another one is the folder's."""
    folder = tmp_path / "clip"
    write(folder)
    own = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # as Hugging Face spells them
    vocabulary = {names.get(token, token): index for token, index in own.encoder.items()}
    merges = [" ".join(pair) for pair in own.bpe_ranks]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    first = ours(folder).tokenizer
    assert isinstance(first, open_clip.SimpleTokenizer)
    tokens = first(["a scan of the left kidney"])
    first_word, second_word = "a</w>", "scan</w>"
    vocabulary[first_word], vocabulary[second_word] = vocabulary[second_word], vocabulary[first_word]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    other = ours(folder).tokenizer
    assert isinstance(other, FolderTokenizer)
    swapped = other(["a scan of the left kidney"])
    assert swapped.shape == (1, 12) and swapped[0, 1:3].tolist() == tokens[0, [2, 1]].tolist()
    assert swapped[0, 3:8].tolist() == tokens[0, 3:8].tolist()


def test_faults_name_file_and_tensor(tmp_path: Path) -> None:
    write(tmp_path / "clip")
    tensors = load_file(tmp_path / "clip" / "model.safetensors")
    name = "text_model.encoder.layers.1.self_attn.q_proj.weight"
    for fault, message in (
        (
            tensors.keys() - {name},
            f"clip: lacks tensor '{name}'; the weights aren't of the model that config.json says",
        ),
        ({*tensors, "surplus"}, "clip: has tensor 'surplus', unknown to the model"),
    ):
        save_file({k: tensors.get(k, torch.zeros(1)) for k in fault}, tmp_path / "clip" / "model.safetensors")
        with pytest.raises(MedpclipError, match=message) as error:
            ours(tmp_path / "clip")
        assert "\n" not in str(error.value)
    save_file(tensors | {"logit_scale": torch.zeros(3)}, tmp_path / "clip" / "model.safetensors")
    with pytest.raises(MedpclipError, match=r"tensor 'logit_scale' is \(3,\), the model's \(1,\)"):
        ours(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(MedpclipError, match=r"model\.safetensors: can't be read"):
        ours(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.raises(MedpclipError, match=r"clip: no weights \(model\.safetensors, pytorch_model\.bin\)"):
        ours(tmp_path / "clip")
    torch.save({"code": ours}, tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(MedpclipError, match=r"pytorch_model\.bin: is no torch file of tensors alone"):
        ours(tmp_path / "clip")


def test_a_stated_trunk_has_to_agree(tmp_path: Path, micro_trunk: Path) -> None:
    write(tmp_path / "clip")
    with pytest.raises(
        MedpclipError, match=r"isn't the architecture of .*clip \(embed_dim: 32, 20\); set model.trunk to"
    ):
        ours(tmp_path / "clip", trunk=str(micro_trunk))
    mine = tmp_path / "mine.json"
    architecture = dict(read_clip_folder(tmp_path / "clip").architecture)
    mine.write_text(json.dumps(architecture))
    assert ours(tmp_path / "clip", trunk=str(mine)).grid == (3, 3)
    architecture["vision_cfg"] |= {"patch_size": 8, "image_size": 24}
    mine.write_text(json.dumps(architecture))
    with pytest.raises(MedpclipError, match=r"\(vision_cfg.patch_size: 8, 16\)"):
        ours(tmp_path / "clip", trunk=str(mine))


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": [1]},
        {"text_config": {"hidden_size": 0}},
        {"vision_config": {"num_attention_heads": 5}},
        {"vision_config": {"hidden_act": "relu"}},
        {"vision_config": {"patch_size": None, "image_size": -3}},
        {"vision_config": {"layer_norm_eps": "small"}},
        {"vision_config": {"hidden_act": "gelu"}},
        {"projection_dim": "wide"},
    ],
)
def test_broken_configs(tmp_path: Path, config: dict[str, object]) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"} | config))
    with pytest.raises(MedpclipError) as error:
        ours(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_folder_of_both_formats_with_weights_of_one(tmp_path: Path) -> None:
    write(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_config.json").write_text("{}")
    assert ours(tmp_path / "clip").grid == (3, 3)
    (tmp_path / "clip" / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(MedpclipError, match=r"open_clip_config\.json: key 'model_cfg': no model config of open_clip's"):
        ours(tmp_path / "clip")


def test_other_folders(tmp_path: Path) -> None:
    with pytest.raises(
        MedpclipError, match=r"neither a run or checkpoint of medpclip, nor a folder with open_clip_config"
    ):
        ours(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(MedpclipError, match=r"key 'model_type' is 'bert', expected one of clip, siglip"):
        ours(tmp_path)
