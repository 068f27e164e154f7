"""Checkpoints: whole or not there.

    RUN/checkpoints/step-00000500/
        model.safetensors    all weights
        ema.safetensors      their moving average, where the run has one
        engine/              the optimizer's state
        tokenizer/           where the text tower isn't CLIP's own
        meta.json            config, architecture, step, samples, what it was trained on, where, by which code

Everything is whole and named by parameter, whatever engine, sharding and number of ranks wrote it, and nothing is pickled.
There are no random states: what a step draws is a function of its number. A checkpoint is written beside, flushed to disk
and renamed; readers are in `medpclip.models.load`.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import medpclip
from medpclip.data.loading.dataset import data_sources
from medpclip.data.loading.loader import check_state, loader_state
from medpclip.data.shards import MANIFEST, ShardFolder, read_manifest
from medpclip.distributed import World
from medpclip.errors import MedpclipError
from medpclip.evaluation.code import code_sha256
from medpclip.evaluation.results.exposure import read_trained_on
from medpclip.files import dump_json, file_sha256, flush_to_disk, write_atomically
from medpclip.models.load import (
    CHECKPOINTS,
    EMA,
    META,
    WEIGHTS,
    checkpoints,
    find_checkpoint,
    is_checkpoint,
    read_meta,
)
from medpclip.models.tokenizer import Tokenizer, save_tokenizer
from medpclip.train.config import CheckpointConfig, TrainConfig, public_config
from medpclip.train.engines import Engine

STATE = "engine/optimizer.safetensors"

# What may differ between a run and its continuation: none of it changes what is computed, beyond rounding.
_FREE = ("out", "device", "checkpoint", "tracking", "supervision", "evaluation", "engine", "micro_batch_size")
# The same within `data`; the loader's own state says whether the number of workers matters, and the manifests' hashes
# say whether the shards are the same, wherever they lie now.
_FREE_DATA = ("workers", "max_unreadable", "urls", "shards")


def save_checkpoint(
    engine: Engine, config: TrainConfig, step: int, world: World, notes: Mapping[str, Any] | None = None
) -> Path:
    """Write the state after `step` steps, and remove checkpoints beyond `keep`. All ranks call it; rank 0 writes.

    Args:
        engine, config, world: of the run.
        step: how many are done.
        notes: more for meta.json, as JSON: what the loop needs when it goes on.

    Raises:
        MedpclipError: it can't be written, as on a full disk; earlier checkpoints are as they were.
    """
    folder = config.out / CHECKPOINTS / f"step-{step:08d}"
    weights, average, state = engine.weights(), engine.average(), engine.state()
    error = None
    if world.is_first:
        assert weights is not None and state is not None
        files = {WEIGHTS: weights, STATE: state} | ({EMA: average} if average is not None else {})
        try:
            _write(
                folder,
                files,
                engine.model.tokenizer,
                _meta(engine, config, step, world) | dict(notes or {}),
                config.checkpoint,
            )
        except MedpclipError as problem:
            error = problem
    world.agree(error)
    return folder


def _write(
    folder: Path,
    files: Mapping[str, dict[str, Tensor]],
    tokenizer: Tokenizer,
    meta: dict[str, Any],
    config: CheckpointConfig,
) -> None:
    temporary = folder.with_name(f".{folder.name}.part")
    try:
        _sweep(folder.parent)
        (temporary / "engine").mkdir(parents=True)
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
            (temporary / name).chmod(0o644)  # safetensors' own mode keeps colleagues out
        save_tokenizer(tokenizer, temporary)
        write_atomically(temporary / META, dump_json(meta))
        for path in (*temporary.rglob("*"), temporary):
            flush_to_disk(path)
        _retire(folder)  # a checkpoint of the same step
        os.replace(temporary, folder)
        flush_to_disk(folder.parent)
        for old in _expendable(folder.parent, config):
            _retire(old)
        _sweep(folder.parent)
    except (OSError, SafetensorError) as error:  # a full disk is the latter where safetensors writes
        shutil.rmtree(temporary, ignore_errors=True)
        raise MedpclipError(
            f"{folder}: can't be written ({error}); make room, then --resume: earlier checkpoints are kept"
        ) from None


def _expendable(folder: Path, config: CheckpointConfig) -> list[Path]:
    """Checkpoints that are neither among the newest nor to stay for ever."""
    every = config.keep_every_steps
    old = checkpoints(folder.parent)[: -config.keep]
    return [path for path in old if every is None or int(path.name.removeprefix("step-")) % every]


def resume(
    engine: Engine, config: TrainConfig, folder: Path, world: World, allow_other_environment: bool = False
) -> int:
    """Put the engine where the checkpoint left it; returns its step. Every rank reads the files.

    Args:
        engine: of a model built as `config` says.
        config: of the run that goes on.
        folder: the checkpoint's.
        world: the ranks.
        allow_other_environment: go on with another device or other versions, where rounding may differ, or with other
            ranks where they would draw other random numbers or see other samples.

    Raises:
        MedpclipError: the run's configuration, data or environment is not the checkpoint's, so that going on would be
            another run.
    """
    meta = read_meta(folder)
    then, now = _flat(meta["config"]), _flat(public_config(config))
    for key in sorted(then.keys() | now.keys()):
        names = key.split(".")
        free = names[0] in _FREE or (names[0] == "data" and names[1] in _FREE_DATA)
        if not free and then.get(key) != now.get(key):
            raise MedpclipError(
                f"{folder / META}: key '{key}' was {then.get(key)!r}, is now {now.get(key)!r}; "
                "resume with the run's own config.yaml, or choose another 'out'"
            )
    if meta.get("data") != data_hashes(config):
        raise MedpclipError(f"{folder / META}: key 'data': the shards are not those the run began with; restore them")
    if not allow_other_environment:
        check_state(meta.get("loader", {}), config.data, world.size, config.micro_batch_size)
        _check_environment(meta, engine, folder)
        _check_partition(meta, engine, config, world, folder)
    weights, average, state, problem = {}, None, {}, None
    try:
        weights, state = _read(folder / WEIGHTS), _read(folder / STATE)
        average = _read(folder / EMA) if config.ema_decay is not None else None
    except MedpclipError as error:
        problem = error
    world.agree(problem)  # before the engine exchanges anything
    try:
        engine.load(weights, average, state)
    except MedpclipError as error:
        raise MedpclipError(f"{folder}: {error}") from None
    return int(meta["step"])


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MedpclipError(f"{path}: unreadable ({error}); resume from another checkpoint") from None


def _check_partition(meta: dict[str, Any], engine: Engine, config: TrainConfig, world: World, folder: Path) -> None:
    """A step's samples and texts don't depend on how ranks and micro-batches share it; dropout does."""
    then = (meta.get("world"), meta["config"].get("micro_batch_size"))
    drops = any(isinstance(module, nn.Dropout) and module.p and module.training for module in engine.model.modules())
    if drops and then != (world.size, config.micro_batch_size):
        raise MedpclipError(
            f"{folder / META}: ran on {then[0]} ranks with micro_batch_size {then[1]}, now on {world.size} with "
            f"{config.micro_batch_size}, and the model has dropout, which would be another; resume as it ran, or add "
            "--resume-anyway"
        )


def data_hashes(config: TrainConfig) -> dict[str, str]:
    """SHA-256 of each folder's manifest, which holds its shards' hashes; a weight beside it, where it isn't 1."""
    sources = data_sources(config.data)
    hashes = {str(i): file_sha256(source.folder / MANIFEST) for i, source in enumerate(sources)}
    return hashes | {f"weight.{i}": repr(source.weight) for i, source in enumerate(sources) if source.weight != 1}


def code_hash() -> str:
    """SHA-256 of the package's code, as results have it."""
    return code_sha256()


def _meta(engine: Engine, config: TrainConfig, step: int, world: World) -> dict[str, Any]:
    model = engine.model
    assert model.architecture is not None  # build_model gives it
    return {
        "step": step,
        "samples": step * config.batch_size,
        "config": public_config(config),
        "architecture": dict(model.architecture),
        "preprocess": {"mean": list(model.preprocess.mean), "std": list(model.preprocess.std)},
        "data": data_hashes(config),
        "loader": loader_state(config.data, step, world.size, config.micro_batch_size),
        "world": world.size,
        "trained_on": trained_on(config),
        "device": _device_name(engine.device),
        "versions": _versions(),
        "code": code_hash(),
    }


def trained_on(config: TrainConfig) -> dict[str, list[str]] | None:
    """What an evaluation needs to tell seen from unseen: splits, sources, and the terms of regions.

    What the checkpoint has seen that the run began with counts, too. None where that doesn't say what it saw.
    """
    sources, terms = set[str](), set[str]()
    for folder in (source.folder for source in data_sources(config.data)):
        manifest = read_manifest(folder)
        recipe = manifest.get("recipe")
        name = recipe.get("name") if isinstance(recipe, dict) else None
        # A folder that neither a recipe nor the phantoms made may not name its source, but its samples do.
        sources.add(name if isinstance(name, str) else ShardFolder(folder, config.data.split).sample(0).source)
        terms |= manifest["splits"][config.data.split]["category"].keys()
    seen = {
        "splits": [config.data.split],
        "sources": sorted(sources),
        "terms": sorted(terms - set(config.data.leave_out_terms)),
        "manifests": [sha for name, sha in data_hashes(config).items() if name.isdecimal()],
    }
    if config.model.pretrained is None or not _is_ours(config.model.pretrained):
        return seen
    # As it was when the run began: the folder may have gone away since.
    before = _seen_before(config.model.pretrained)
    return before and {key: sorted({*values, *before[key]}) for key, values in seen.items()}


def note_first_stage(config: TrainConfig) -> None:
    """Read what the checkpoint saw that the run begins with, for `trained_on` to know while the run lasts."""
    if config.model.pretrained is not None and _is_ours(config.model.pretrained):
        _seen_before(config.model.pretrained)


@functools.cache
def _is_ours(pretrained: str) -> bool:
    return is_checkpoint(Path(pretrained))


@functools.cache
def _seen_before(pretrained: str) -> dict[str, list[str]] | None:
    """What a checkpoint says that it was trained on; read once."""
    folder = find_checkpoint(Path(pretrained))
    block = read_trained_on(read_meta(folder), f"{folder / META}")
    return None if block is None else asdict(block)


def _versions() -> dict[str, str]:
    return {
        "medpclip": medpclip.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "open_clip": open_clip.__version__,
        "numpy": numpy.__version__,
    }


def _device_name(device: torch.device) -> str:
    """Of which kind, not which one: cpu, or a GPU's model."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def _check_environment(meta: dict[str, Any], engine: Engine, folder: Path) -> None:
    """Refuse where the same steps may round differently."""
    versions = meta["versions"] if isinstance(meta.get("versions"), dict) else {}
    now = {"medpclip": medpclip.__version__, "torch": str(torch.__version__), "device": _device_name(engine.device)}
    then = {"medpclip": versions.get("medpclip"), "torch": versions.get("torch"), "device": meta.get("device")}
    for name in now:
        if then[name] != now[name]:
            raise MedpclipError(
                f"{folder / META}: {name} was {then[name]!r}, is now {now[name]!r}, so the run would not go on exactly; "
                "resume where it ran, or add --resume-anyway"
            )


def _retire(folder: Path) -> None:
    """Rename a checkpoint, so that it no longer counts as one; it is removed by the next `_sweep`."""
    if folder.exists():
        os.replace(folder, folder.with_name(f".{folder.name}.old.part"))


def _sweep(folder: Path) -> None:
    """Remove what interrupted saves left."""
    for leftover in folder.glob(".step-*.part"):
        shutil.rmtree(leftover)


def _flat(mapping: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; lists count as values."""
    if not isinstance(mapping, dict):
        return {prefix: list(mapping) if isinstance(mapping, Sequence) and not isinstance(mapping, str) else mapping}
    out: dict[str, Any] = {}
    for key, value in mapping.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out
