"""Checkpoints: whole or not there.

    RUN/checkpoints/step-00000500/
        model.safetensors    all weights
        engine/              the optimizer's state and the generator's
        meta.json            config, step, samples, seed, data manifests' hashes, versions

A checkpoint is written beside and renamed, with meta.json last; readers are in `medpclip.models.load`.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import open_clip
import torch
from safetensors.torch import save_file

from medpclip import __version__
from medpclip.config import to_mapping
from medpclip.data.shards import MANIFEST, dump_json, file_sha256, write_atomically
from medpclip.errors import MedpclipError
from medpclip.models.load import CHECKPOINTS, META, WEIGHTS, load_weights, read_meta
from medpclip.train.config import TrainConfig
from medpclip.train.engine import Engine

# What may differ between a run and its continuation: none of it changes the course.
_FREE = ("out", "device", "checkpoint", "tracking")


def save_checkpoint(engine: Engine, config: TrainConfig, step: int) -> Path:
    """Write the state after `step` steps, and remove checkpoints beyond `keep`."""
    folder = config.out / CHECKPOINTS / f"step-{step:08d}"
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "engine").mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in engine.model.state_dict().items()}
    try:
        save_file(weights, temporary / WEIGHTS)
        engine.save(temporary / "engine")
        write_atomically(temporary / META, dump_json(_meta(config, step)))
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise MedpclipError(f"{folder}: can't be written ({error}); make room: earlier checkpoints are kept") from None
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    for old in sorted(folder.parent.glob("step-*"))[: -config.checkpoint.keep]:
        shutil.rmtree(old)
    return folder


def resume(engine: Engine, config: TrainConfig, folder: Path) -> int:
    """Put the engine where the checkpoint left it; returns its step.

    Raises:
        MedpclipError: the run's configuration or data is not the checkpoint's, so that going on would be another run.
    """
    meta = read_meta(folder)
    then, now = _flat(meta["config"]), _flat(to_mapping(config))
    for key in sorted(then.keys() | now.keys()):
        if key.split(".")[0] not in _FREE and key != "data.workers" and then.get(key) != now.get(key):
            raise MedpclipError(
                f"{folder / META}: key '{key}' was {then.get(key)!r}, is now {now.get(key)!r}; "
                "resume with the run's own config.yaml, or choose another 'out'"
            )
    if meta["data"] != data_hashes(config):
        raise MedpclipError(f"{folder / META}: key 'data': the shards are not those the run began with; restore them")
    load_weights(engine.model, folder)
    engine.load(folder / "engine")
    return int(meta["step"])


def data_hashes(config: TrainConfig) -> dict[str, str]:
    """SHA-256 of each folder's manifest, which holds its shards' hashes."""
    return {str(i): file_sha256(Path(folder) / MANIFEST) for i, folder in enumerate(config.data.shards)}


def _meta(config: TrainConfig, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "samples": step * config.batch_size,
        "config": to_mapping(config),
        "data": data_hashes(config),
        "versions": {
            "medpclip": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "numpy": numpy.__version__,
        },
    }


def _flat(mapping: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; lists count as values."""
    if not isinstance(mapping, dict):
        return {prefix: list(mapping) if isinstance(mapping, Sequence) and not isinstance(mapping, str) else mapping}
    out: dict[str, Any] = {}
    for key, value in mapping.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out
