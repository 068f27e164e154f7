"""One step's losses."""

from pathlib import Path

import pytest
import torch

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import DataConfig, RegionDataset, make_loader
from medpclip.data.phantom import write_phantoms
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import build_model
from medpclip.train import step
from medpclip.train.config import LossConfig


def test_the_contrast_is_in_float32_under_autocast(
    tmp_path: Path, micro_trunk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantoms(tmp_path / "shards", images=8, seed=0, workers=1)
    model = build_model(ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16)))
    data = RegionDataset(DataConfig([tmp_path / "shards"], workers=0), 64, model.mask_grid, (0, 0, 0), 0)
    inputs = step.prepare(next(make_loader(data, 8)), Lexicon.load(), data.config.texts, (0,))
    seen = []
    real = step._logits
    monkeypatch.setattr(step, "_logits", lambda *args: seen.append(real(*args)) or seen[-1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(1, 3, 64, 64)).image.dtype == torch.bfloat16
        parts = step.losses(model, inputs, LossConfig(), torch.device("cpu"))
    assert [logits.dtype for logits in seen] == [torch.float32] * 2
    assert parts.region.dtype == torch.float32
    # And not rounded to bfloat16 on the way.
    assert (seen[1].bfloat16().float() != seen[1]).float().mean() > 0.9


def test_the_model_sees_the_drawn_colours(tmp_path: Path, micro_trunk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_phantoms(tmp_path / "shards", images=8, seed=0, workers=1)
    model = build_model(ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16)))
    data = RegionDataset(DataConfig([tmp_path / "shards"], workers=0), 64, model.mask_grid, (0, 0, 0), 0)
    batch = next(make_loader(data, 8))
    inputs = step.prepare(batch, Lexicon.load(), data.config.texts, (0,))
    shown = []
    monkeypatch.setattr(step, "_contrast", lambda *args: None)
    model.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    step.losses(model, inputs, LossConfig(), torch.device("cpu"))
    assert torch.equal(shown[0], model.preprocess.to_pixels(batch.images, batch.colours))
    assert not torch.equal(shown[0], model.preprocess.to_pixels(batch.images))
