"""A run goes on from another's weights: with other data, another resolution, another loss."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from open_clip.model import resize_pos_embed
from safetensors.torch import load_file, save_file

from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig, RegionCLIP
from medpclip.models.fusions import FUSION_KINDS
from medpclip.models.load import build_model, load_model
from medpclip.models.prompts import Prompts

FUSION = FusionConfig(prompt_dim=16)


def save(model: RegionCLIP, run: Path) -> Path:
    folder = run / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": model.preprocess.std}
    meta = {"config": {"model": asdict(model.config)}, "architecture": model.architecture, "preprocess": preprocess}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def moved(config: ModelConfig) -> RegionCLIP:
    """A model with no parameter at its start."""
    model = build_model(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def checkpoint(micro_trunk: Path, tmp_path: Path) -> Path:
    return save(moved(ModelConfig(str(micro_trunk), logit_bias=-10.0, fusion=FUSION)), tmp_path / "run")


def outputs(model: RegionCLIP) -> torch.Tensor:
    side = model.preprocess.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    prompts = Prompts.empty(2, 1, 1, model.mask_grid)
    prompts.boxes[:] = torch.tensor([0.1, 0.2, 0.7, 0.9])
    prompts.box_valid[:] = True
    with torch.no_grad():
        image, region = model.eval().encode_regions(pixels, prompts)
    return torch.cat([image, region[:, 0]])


@pytest.mark.parametrize("where", ["run", "checkpoint"])
def test_the_same_model(checkpoint: Path, where: str) -> None:
    folder = checkpoint if where == "checkpoint" else checkpoint.parents[1]
    again = build_model(ModelConfig(pretrained=str(folder), logit_bias=-10.0, fusion=FUSION))
    assert again.training and again.preprocess.mean == (0.1, 0.2, 0.3)
    before = load_model(checkpoint)
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert torch.equal(outputs(again), outputs(before))


def test_a_checkpoint_from_before_some_of_fusions_keys(micro_trunk: Path, tmp_path: Path) -> None:
    """It has what there was at the time, and no place."""
    old = FusionConfig(prompt_dim=16, parts=["start", "keys", "values", "logits"])
    checkpoint = save(moved(ModelConfig(str(micro_trunk), logit_bias=-10.0, fusion=old)), tmp_path / "run")
    before = outputs(load_model(checkpoint))
    meta = json.loads((checkpoint / "meta.json").read_text())
    for key in ("parts", "glimpse", "glimpse_context"):
        del meta["config"]["model"]["fusion"][key]
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    assert torch.equal(outputs(load_model(checkpoint)), before)
    again = build_model(ModelConfig(pretrained=str(checkpoint), logit_bias=-10.0, fusion=old))
    assert torch.equal(outputs(again), before)
    for other, words in (
        (replace(old, glimpse=2), r"its fusion.glimpse is 0, model.fusion.glimpse is 2; take the same"),
        (
            FUSION,
            r"its fusion.parts is \['start', 'keys', .*, model.fusion.parts is \['start', 'place', .*take the same",
        ),
    ):
        with pytest.raises(MedpclipError, match=words):
            build_model(ModelConfig(pretrained=str(checkpoint), fusion=other))


@pytest.mark.parametrize("kind", FUSION_KINDS)
def test_every_kind_is_read_back(kind: str, micro_trunk: Path, tmp_path: Path) -> None:
    model = moved(ModelConfig(str(micro_trunk), fusion=FusionConfig(kind, 16)))  # type: ignore[arg-type]
    folder = save(model, tmp_path / "run")
    again = load_model(folder)
    assert type(again.fusion) is type(model.fusion) and again.fusion.window == model.fusion.window
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_higher_resolution_and_on_from_there(checkpoint: Path, tmp_path: Path) -> None:
    larger = build_model(ModelConfig(pretrained=str(checkpoint), image_size=96, logit_bias=-10.0, fusion=FUSION))
    weights = load_file(checkpoint / "model.safetensors")
    state = {"visual.positional_embedding": weights["clip.visual.positional_embedding"].clone()}
    resize_pos_embed(state, larger.clip)
    for name, tensor in larger.state_dict().items():
        if name == "clip.visual.positional_embedding":
            assert (tensor - state["visual.positional_embedding"]).abs().max() <= 1e-6
        else:  # the fusion's too: none of it knows the grid
            assert torch.equal(tensor, weights[name]), name
    assert larger.grid == (6, 6) and larger.preprocess.image_size == 96
    second = save(larger, tmp_path / "larger")
    assert torch.equal(outputs(load_model(second)), outputs(larger))
    third = build_model(ModelConfig(pretrained=str(second), logit_bias=-10.0, fusion=FUSION))
    assert third.preprocess.image_size == 96 and torch.equal(outputs(third), outputs(larger))
    assert load_model(save(third, tmp_path / "third")).preprocess.image_size == 96


def test_the_other_loss(checkpoint: Path, micro_trunk: Path, tmp_path: Path) -> None:
    without = build_model(ModelConfig(pretrained=str(checkpoint), fusion=FUSION))
    assert without.clip.logit_bias is None and without.region_logit_bias is None
    back = build_model(ModelConfig(pretrained=str(save(without, tmp_path / "b")), logit_bias=-3.0, fusion=FUSION))
    assert back.clip.logit_bias.item() == -3.0 and back.region_logit_bias is not None
    assert back.region_logit_bias.item() == -3.0


def test_what_has_to_agree(checkpoint: Path, micro_trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MedpclipError, match=r"its fusion.prompt_dim is 16, model.fusion.prompt_dim is 256; take the same"
    ):
        build_model(ModelConfig(pretrained=str(checkpoint)))
    other = tmp_path / "other.json"
    architecture = json.loads(micro_trunk.read_text())
    other.write_text(json.dumps(architecture | {"quick_gelu": True}))
    with pytest.raises(MedpclipError, match=r"\(quick_gelu: True, False\); set model.trunk to null"):
        build_model(ModelConfig(str(other), str(checkpoint), fusion=FUSION))
    build_model(ModelConfig(str(micro_trunk), str(checkpoint), fusion=FUSION))
    weights = load_file(checkpoint / "model.safetensors")
    name = "fusion.start.weight"
    save_file({key: tensor for key, tensor in weights.items() if key != name}, checkpoint / "model.safetensors")
    with pytest.raises(MedpclipError, match=rf"model\.safetensors: lacks tensor '{name}'"):
        build_model(ModelConfig(pretrained=str(checkpoint), fusion=FUSION))
    (checkpoint / "meta.json").unlink()
    with pytest.raises(MedpclipError, match="nor a run with one under checkpoints/; train first"):
        build_model(ModelConfig(pretrained=str(checkpoint.parents[1]), fusion=FUSION))
