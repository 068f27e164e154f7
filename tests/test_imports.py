"""What importing costs: nothing heavy before it is needed; and torchvision imports beside a CPU build of torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = [
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "deepspeed",
    "wandb",
    "tensorboard",
    "transformers",
    "pandas",
    "matplotlib",
    "scipy",
]


def loaded_after(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `code`."""
    program = f"{code}\nimport sys\nprint('LOADED', *(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("module", ["medpclip", "medpclip.config", "medpclip.errors", "medpclip.cli"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert loaded_after(f"import {module}") == set()


@pytest.mark.parametrize("words", [[], ["data"], ["train"], ["eval"], ["export"], ["export", "clip-vision"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = f"from medpclip.cli import main\ntry:\n    main({[*words, '--help']})\nexcept SystemExit as e:\n    assert not e.code"
    assert loaded_after(code) == set()


def test_the_package_offers_load_and_nothing_unknown() -> None:
    import medpclip

    assert {"load", "__version__"} <= set(dir(medpclip))
    assert callable(medpclip.load)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = medpclip.laod


def test_torchvision_imports_after_medpclip() -> None:
    """Where torchvision's library doesn't load, the hook has declared what it would; elsewhere it has done nothing."""
    code = """
import sys, medpclip
from medpclip import _torchvision_hook as hook
hook.install()
assert [type(finder).__name__ for finder in sys.meta_path].count("_DeclareMissingOperators") == 1
import torch, torchvision
assert bool(hook._declared) != torchvision.extension._has_ops()
assert torch.ops.torchvision.nms.default._schema.name == "torchvision::nms"
"""
    assert "torchvision" in loaded_after(code)
