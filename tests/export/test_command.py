"""`medpclip export clip-vision`, from its words to the folder."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpclip.errors import MedpclipError
from medpclip.export import command

TRUNK = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def export(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["export", "clip-vision", *map(str, words)])
    return args.run(args)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint of a tiny model."""
    from safetensors.torch import save_file

    from medpclip.config import to_mapping
    from medpclip.models import FusionConfig, ModelConfig
    from medpclip.models.load import CHECKPOINTS, META, WEIGHTS, build_model

    (tmp_path / "tiny-export.json").write_text(json.dumps(TRUNK))
    config = ModelConfig(trunk=str(tmp_path / "tiny-export.json"), fusion=FusionConfig(prompt_dim=16))
    folder = tmp_path / "run" / CHECKPOINTS / "step-00000001"
    folder.mkdir(parents=True)
    model = build_model(config)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / WEIGHTS)
    preprocess = {"mean": model.preprocess.mean, "std": model.preprocess.std}
    meta = {"config": {"model": to_mapping(config)}, "architecture": model.architecture, "preprocess": preprocess}
    (folder / META).write_text(json.dumps(meta))
    return tmp_path / "run"


def test_a_run_becomes_a_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'export'")
    Image.fromarray(np.full((20, 50, 3), 90, np.uint8)).save(tmp_path / "wide.png")
    assert export(run, "--out", tmp_path / "tower", "--images", tmp_path / "wide.png", tmp_path) == 0
    assert "largest difference of hidden_states[-2]" in capsys.readouterr().out
    report = json.loads((tmp_path / "tower" / "export.json").read_text())
    assert report["model"] == "tiny-export" and str(tmp_path) not in json.dumps(report)


def test_real_images_agree(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'export'")
    root = os.environ.get("MEDPCLIP_DATA")
    if not root:
        pytest.skip("MEDPCLIP_DATA is not set")
    found = sorted(path for path in Path(root).rglob("*") if path.suffix in (".jpg", ".png"))
    assert export(run, "--out", tmp_path / "tower", "--images", *found[:: max(1, len(found) // 12)]) == 0
    report = json.loads((tmp_path / "tower" / "export.json").read_text())
    assert report["differences"]["pixels_padded"] < 3 and report["differences"]["hidden"] < 1e-4


def test_bad_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    (tmp_path / "empty").mkdir()
    for name, message in (("none.png", "no such file"), ("empty", "no image in"), ("broken.png", "can't be read")):
        with pytest.raises(MedpclipError, match=f"{name}: {message}"):
            export("ViT-B-32", "--out", tmp_path / "tower", "--images", tmp_path / name)
    assert not (tmp_path / "tower").exists()
