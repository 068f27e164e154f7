"""The run configurations are sound: all keys known, the model one that can be built, batches that come out even."""

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import yaml

from medpclip.config import load
from medpclip.models.load import build_model
from medpclip.train.config import TrainConfig
from medpclip.train.optimizer import parameter_groups

LAUNCH = Path(__file__).parents[2] / "launch"
# What each run is for: patches each way, and numbers of ranks on which it is to run.
RUNS = {
    "vit-b-16.yaml": ((14, 14), (8, 16, 32, 64)),
    "vit-l-14-336.yaml": ((24, 24), (8, 16, 32, 64)),
    "cpu-small.yaml": ((8, 8), (1, 2, 4)),
}
SAID = {"out", "model", "data", "loss", "optimizer", "engine", "precision", "steps", "batch_size", "micro_batch_size"}
SAID |= {"patch_drop", "seed", "checkpoint", "tracking"}


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.name)
def test_every_key_is_known(path: Path) -> None:
    load(TrainConfig, path)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_what_it_says(name: str) -> None:
    grid, worlds = RUNS[name]
    config = load(TrainConfig, LAUNCH / name)
    assert yaml.safe_load((LAUNCH / name).read_text()).keys() == SAID
    with torch.device("meta"):
        model = build_model(replace(config.model, pretrained=None))
    assert model.grid == grid
    scales = {group["scale"] for group in parameter_groups(model, config.optimizer, config.freeze)}
    assert {1.0, config.optimizer.fusion_lr_scale} <= scales
    assert max(scales) == config.optimizer.fusion_lr_scale * config.optimizer.gain_lr_scale
    assert config.micro_batch_size is not None and config.optimizer.warmup_steps * 5 < config.steps
    for world in worlds:
        assert config.batch_size % (world * config.micro_batch_size) == 0, world
    if config.model.pretrained is not None:
        assert config.model.pretrained in open_clip.list_pretrained_tags_by_model(config.model.trunk)
        tag = open_clip.get_pretrained_cfg(config.model.trunk, config.model.pretrained)
        architecture = open_clip.get_model_config(config.model.trunk)
        assert tag.get("quick_gelu", False) == architecture.get("quick_gelu", False)
