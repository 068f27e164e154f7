"""Models are what open_clip would build, and a checkpoint needs nothing but itself."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig, RegionCLIP
from medpclip.models.load import build_model, load_model


def save(model: RegionCLIP, folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    preprocess = {"mean": model.preprocess.mean, "std": model.preprocess.std}
    meta = {"config": {"model": asdict(model.config)}, "architecture": model.architecture, "preprocess": preprocess}
    (folder / "meta.json").write_text(json.dumps(meta | changes))
    return folder


def embed(model: RegionCLIP) -> torch.Tensor:
    images = torch.randn(2, 3, *model.visual.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.cat([model.eval().encode_image(images), model.encode_text(model.tokenizer(["a", "b c"]))])


@pytest.fixture
def trunk(tmp_path: Path, micro_trunk: Path) -> Path:
    """Of another activation than open_clip's default, to see that it is kept."""
    path = tmp_path / "trunk" / "mine.json"
    path.parent.mkdir()
    path.write_text(json.dumps(json.loads(micro_trunk.read_text()) | {"quick_gelu": True}))
    return path


@pytest.mark.parametrize(("size", "bias"), [(None, None), (32, -10.0)])
def test_it_is_the_model_that_open_clip_makes(trunk: Path, size: int | None, bias: float | None) -> None:
    torch.manual_seed(3)
    ours = build_model(ModelConfig(str(trunk), image_size=size, logit_bias=bias, fusion=FusionConfig(prompt_dim=16)))
    shutil.copy(trunk, trunk.with_name("as-open-clip-has-it.json"))
    open_clip.add_model_config(trunk.with_name("as-open-clip-has-it.json"))
    torch.manual_seed(3)
    options = {} if bias is None else {"init_logit_bias": bias}
    theirs = open_clip.create_model("as-open-clip-has-it", nonscalar_logit_scale=True, force_image_size=size, **options)
    assert str(ours.clip) == str(theirs)  # modules and their settings, the activation too
    mine, other = ours.clip.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    tokenizer = open_clip.get_tokenizer("as-open-clip-has-it")
    assert torch.equal(ours.tokenizer(["a scan of a liver"]), tokenizer(["a scan of a liver"]))
    assert ours.tokenizer(["x"]).shape == (1, 16)


def test_a_checkpoint_needs_no_trunk_file(trunk: Path, tmp_path: Path) -> None:
    model = build_model(ModelConfig(str(trunk), image_size=32, fusion=FusionConfig(prompt_dim=16)))
    folder = save(model, tmp_path / "checkpoint", preprocess={"mean": [0.5, 0.25, 0.5], "std": [0.5, 0.5, 0.5]})
    trunk.write_text("another file by now")
    trunk.unlink()
    again = load_model(folder)
    assert torch.equal(embed(again), embed(model))
    assert again.preprocess.mean == (0.5, 0.25, 0.5) and again.preprocess.image_size == 32


@pytest.mark.parametrize("kind", ["region_tokens", "conditioned"])
def test_checkpoints_from_before_places_load(kind: str, micro_trunk: Path, tmp_path: Path) -> None:
    """With parts that the checkpoint names, and where it names none."""
    old = ["start", "keys", "values", "logits"]
    fusion = FusionConfig(kind=kind, parts=old) if kind == "region_tokens" else FusionConfig(kind=kind)
    model = build_model(ModelConfig(str(micro_trunk), fusion=fusion))
    for parts in (old, None):
        folder = save(model, tmp_path / f"{kind}-{parts is None}")
        meta = json.loads((folder / "meta.json").read_text())
        meta["config"]["model"]["fusion"]["parts"] = parts
        if parts is None:
            del meta["config"]["model"]["fusion"]["parts"]
        (folder / "meta.json").write_text(json.dumps(meta))
        again = load_model(folder)
        assert again.state_dict().keys() == model.state_dict().keys() and torch.equal(embed(again), embed(model))
        if kind == "region_tokens":
            assert again.config.fusion.parts == old and again.fusion.place is None


def test_a_file_never_stands_in_for_a_built_in_name(micro_trunk: Path, tmp_path: Path) -> None:
    for name in ("ViT-B-32", "medpclip-tiny-16"):
        shutil.copy(micro_trunk, tmp_path / f"{name}.json")
        with pytest.raises(MedpclipError, match=f"{name}.json': a built-in architecture has this name; rename"):
            build_model(ModelConfig(str(tmp_path / f"{name}.json")))
    build_model(ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16)))
    assert micro_trunk.stem not in open_clip.list_models()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "unreadable"),
        ("[]", "no model config"),
        ('{"embed_dim": 8}', "no model config"),
        ('{"embed_dim": 8, "vision_cfg": {"bogus": 1}, "text_cfg": {}}', "can't be built .*bogus"),
        ('{"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}, "multimodal_cfg": {"a": 1}}', "has a text decoder"),
        (
            '{"embed_dim": 8, "vision_cfg": {}, "text_cfg": {"hf_model_name": "no-one/nothing"}}',
            "config of its text tower 'no-one/nothing' can't be had .*give model.pretrained a folder",
        ),
    ],
)
def test_broken_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what the variable sets at the start
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(MedpclipError, match=message) as error:
        build_model(ModelConfig(str(tmp_path / "x.json")))
    assert "\n" not in str(error.value)


def test_broken_meta_and_weights(trunk: Path, tmp_path: Path) -> None:
    model = build_model(ModelConfig(str(trunk), fusion=FusionConfig(prompt_dim=16)))
    with pytest.raises(MedpclipError, match=r"meta\.json: key 'architecture': no model config"):
        load_model(save(model, tmp_path / "a", architecture=[1]))
    with pytest.raises(MedpclipError, match=r"meta\.json: key 'preprocess' is missing or broken"):
        load_model(save(model, tmp_path / "b", preprocess={"mean": 1}))
    (tmp_path / "w.pt").write_bytes(b"no weights")
    with pytest.raises(MedpclipError, match=r"w\.pt: is no torch file of tensors alone; give safetensors"):
        build_model(ModelConfig(str(trunk), pretrained=str(tmp_path / "w.pt")))


def test_pretrained_files_are_loaded(trunk: Path, tmp_path: Path) -> None:
    first = build_model(ModelConfig(str(trunk), fusion=FusionConfig(prompt_dim=16)))
    save_file(
        {name: tensor.contiguous() for name, tensor in first.clip.state_dict().items()}, tmp_path / "w.safetensors"
    )
    second = build_model(ModelConfig(str(trunk), str(tmp_path / "w.safetensors"), fusion=FusionConfig(prompt_dim=16)))
    assert torch.equal(embed(first), embed(second))


def test_weights_of_another_activation_are_refused() -> None:
    with pytest.raises(MedpclipError, match="its activation isn't that of ViT-B-32"):
        build_model(ModelConfig("ViT-B-32", "openai"))


def test_a_moving_average_is_asked_for_by_name(micro_trunk: Path, tmp_path: Path) -> None:
    """A checkpoint with one, made by a run; and a run without."""
    from medpclip.data.loading.loader import DataConfig
    from medpclip.data.phantom import write_phantoms
    from medpclip.train.config import TrainConfig
    from medpclip.train.loop import train

    write_phantoms(tmp_path / "shards", images=8, seed=1, workers=1)
    model = ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16))
    for name, decay in (("with", 0.5), ("without", None)):
        data = DataConfig([tmp_path / "shards"], workers=0)
        train(TrainConfig(tmp_path / name, data, model, steps=2, batch_size=4, ema_decay=decay, device="cpu"))
    weights, average = (load_model(tmp_path / "with", ema=ema).state_dict() for ema in (False, True))
    assert not torch.equal(weights["clip.visual.proj"], average["clip.visual.proj"])
    with pytest.raises(MedpclipError, match=r"ema\.safetensors: no moving average; train with ema_decay"):
        load_model(tmp_path / "without", ema=True)
