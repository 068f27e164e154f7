"""Fixtures that several test files share."""

import json
from pathlib import Path

import pytest

MICRO = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 32, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def micro_trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An architecture file for a ViT so small that a training step takes milliseconds."""
    path = tmp_path_factory.mktemp("trunk") / "micro-16.json"
    path.write_text(json.dumps(MICRO))
    return path
