"""Whatever can be evaluated is loaded, named without its path, and known by its weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medpclip.config import to_mapping
from medpclip.errors import MedpclipError
from medpclip.evaluation.embedding.embedders import make_embedders
from medpclip.evaluation.embedding.features import Features
from medpclip.evaluation.results.result import weights_sha256
from medpclip.evaluation.subject import Subject, evaluating, load_subject
from medpclip.export.clip_vision import export_clip_vision
from medpclip.files import file_sha256
from medpclip.models.load import META, WEIGHTS, build_model
from medpclip.models.region_clip import ModelConfig, RegionCLIP


def build(trunk: Path, seed: int = 1) -> RegionCLIP:
    torch.manual_seed(seed)
    model = build_model(ModelConfig(trunk=str(trunk))).eval()
    with torch.no_grad():
        model.region_logit_scale.fill_(3.0)
    return model


def write_run(folder: Path, model: RegionCLIP) -> Path:
    checkpoint = folder / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    save_file(model.state_dict(), checkpoint / WEIGHTS)
    meta = {
        "step": 3,
        "config": {"model": to_mapping(model.config)},
        "architecture": model.architecture,
        "preprocess": {"mean": model.preprocess.mean, "std": model.preprocess.std},
    }
    (checkpoint / META).write_text(json.dumps(meta))
    return checkpoint


def test_a_run_is_prompted_and_named_by_its_folders(micro_trunk: Path, tmp_path: Path) -> None:
    model = build(micro_trunk)
    checkpoint = write_run(tmp_path / "secret" / "myrun", model)
    subject = load_subject(str(tmp_path / "secret" / "myrun"))
    assert subject.facts.name == "myrun/step-00000003" and subject.facts.step == 3 and subject.checkpoint == checkpoint
    assert subject.facts.weights_sha256 == file_sha256(checkpoint / WEIGHTS) and subject.prompted
    assert subject.scales == pytest.approx((np.exp(model.clip.logit_scale.item()), np.exp(3.0)), rel=1e-5)
    assert subject.identity() == load_subject(str(checkpoint)).identity() and "secret" not in subject.identity()
    with pytest.raises(MedpclipError, match="no moving average"):
        load_subject(str(checkpoint), ema=True)


def test_settings_that_change_embeddings_of_the_same_weights_have_another_identity(
    micro_trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", build(micro_trunk))
    before = load_subject(str(tmp_path / "run"))
    name = before.cache_name()
    again = load_subject(str(tmp_path / "run"))
    assert again.facts.settings_sha256 == before.facts.settings_sha256
    assert again.model is not None
    again.model.config.fusion.glimpse_context *= 2
    other = Subject.of_model(again.model, before.facts, True)
    assert other.facts.settings_sha256 != before.facts.settings_sha256 and other.cache_name() != name
    assert other.facts.weights_sha256 == before.facts.weights_sha256
    hashes = {"vocab.txt": "0" * 64}
    monkeypatch.setattr("medpclip.evaluation.subject.tokenizer_hashes", lambda tokenizer: hashes)
    assert load_subject(str(tmp_path / "run")).cache_name() != name


def test_a_clip_of_others_is_not_prompted(micro_trunk: Path, tmp_path: Path) -> None:
    model = build(micro_trunk)
    file = tmp_path / "secret" / "weights.safetensors"
    file.parent.mkdir()
    save_file(model.clip.state_dict(), file)
    subject = load_subject(f"{micro_trunk}:{file}")
    assert subject.facts.name == "micro-16:weights.safetensors" and not subject.prompted
    assert subject.facts.weights_sha256 == weights_sha256(None, model.clip.state_dict()) and subject.facts.step is None
    image = torch.rand(2, 3, 64, 64)
    with evaluating(subject.tower):
        assert torch.equal(subject.encode_image(image), model.encode_image(image))
    names = Features(subject, shown=False).comparators
    assert "crop" in names and "prompted" not in names and "prompted_crop" not in names
    assert "prompted" in make_embedders(model, prompted=True)


def test_random_weights_are_the_same_every_time(micro_trunk: Path) -> None:
    one, two, other = (load_subject(str(micro_trunk), seed=seed).facts.weights_sha256 for seed in (0, 0, 1))
    assert one == two != other
    assert load_subject("medpclip-tiny-16").facts.name == "medpclip-tiny-16"


def test_a_hugging_face_folder_says_what_transformers_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=shared | {"hidden_size": 64, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406},
        vision_config=shared | {"hidden_size": 64, "num_attention_heads": 1, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path / "hidden" / "clip")
    subject = load_subject(str(tmp_path / "hidden" / "clip"))
    assert subject.facts.name == "clip" and not subject.prompted
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = subject.encode_image(image)
        wanted = theirs.get_image_features(pixel_values=image)
    wanted = getattr(wanted, "pooler_output", wanted)
    np.testing.assert_allclose(found, torch.nn.functional.normalize(wanted, dim=-1), atol=1e-5)


def test_an_exported_tower_embeds_images_alone(micro_trunk: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = build(micro_trunk)
    export_clip_vision(model.clip, model.preprocess, tmp_path / "tower")
    subject = load_subject(str(tmp_path / "tower"))
    assert subject.facts.name == "tower" and subject.model is None and subject.width == 32
    assert subject.preprocess == model.preprocess and len(subject.facts.weights_sha256) == 64
    assert str(tmp_path) not in subject.identity()
    config = json.loads((tmp_path / "tower" / "config.json").read_text())
    (tmp_path / "tower" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    assert load_subject(str(tmp_path / "tower")).cache_name() != subject.cache_name()  # of the same weights
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = subject.encode_image(image)
        projected = torch.nn.functional.normalize(found @ model.visual.proj, dim=-1)  # type: ignore[operator]
        np.testing.assert_allclose(projected, model.encode_image(image), atol=1e-5)
    features = Features(subject, shown=False)
    assert features.comparators == ("unprompted",)
    with pytest.raises(MedpclipError, match="tower: has no text tower"):
        features.texts(["a"])
    (tmp_path / "tower" / "export.json").write_text("{}")
    with pytest.raises(MedpclipError, match=r"export\.json: keys 'mean' and 'std'"):
        load_subject(str(tmp_path / "tower"))
    (tmp_path / "tower" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(MedpclipError, match="transformers can't load the tower .*; export it again") as caught:
        load_subject(str(tmp_path / "tower"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/run", "no/such/run: no such file or folder"),
        ("medpclip-tiny-17", "did you mean 'medpclip-tiny-16'"),
        ("{tmp}/file.safetensors", "of which architecture are these weights"),
        ("{tmp}", "neither a run or checkpoint of medpclip, nor a folder with"),
        ("medpclip-tiny-16:no-tag", "no such file or folder, nor a tag"),
    ],
)
def test_what_is_no_model_is_one_line(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file.safetensors").write_bytes(b"")
    with pytest.raises(MedpclipError) as caught:
        load_subject(name.format(tmp=tmp_path))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(MedpclipError, match="--ema: .* is no run or checkpoint"):
        load_subject(name.format(tmp=tmp_path), ema=True)
