"""Several sources as one corpus, with weights.

A mixture is a folder whose sub-folders are folders of shards, and may hold `mixture.json`:

    {"schema": 1, "sources": {"bccd_blood": {"weight": 2.0}, "kvasir_polyp": {"weight": 0.5}}}

A weight says how often an epoch has each sample of the source: 2.0 is twice, 0.5 every other epoch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpclip.data.shards import MANIFEST, shard_folders
from medpclip.errors import MedpclipError
from medpclip.files import dump_json, write_atomically

MIXTURE = "mixture.json"
_SCHEMA = 1


def write_mixture(out: Path, weights: Mapping[str, float]) -> None:
    """Write `out`/mixture.json, whole or not at all.

    Args:
        out: a folder whose sub-folders are folders of shards.
        weights: sub-folder's name -> weight; each is finished, and has a weight of more than 0.

    Raises:
        MedpclipError: no source, a weight that is none, a folder without shards, or `out` can't be written.
    """
    if not weights:
        raise MedpclipError(f"{out / MIXTURE}: no source is named; name at least one folder of shards")
    for name, weight in weights.items():
        _check_weight(weight, out / MIXTURE, name)
        _check_folder(out, name)
    content = {"schema": _SCHEMA, "sources": {name: {"weight": float(weights[name])} for name in sorted(weights)}}
    try:
        write_atomically(out / MIXTURE, dump_json(content))
    except OSError as error:
        raise MedpclipError(f"{out / MIXTURE}: can't be written ({error.strerror}); choose another folder") from None


def read_mixture(folder: Path) -> list[tuple[Path, float]]:
    """Folders of shards and their weights: those that mixture.json names, else all, each with a weight of 1.

    Args:
        folder: a mixture, a folder of folders of shards, or a folder of shards itself.

    Raises:
        MedpclipError: it is none of these, or its mixture.json is broken.
    """
    folder = Path(folder)
    path = folder / MIXTURE
    if (folder / MANIFEST).is_file() or not path.is_file():
        return [(found, 1.0) for found in shard_folders(folder)]
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise MedpclipError(f"{path}: can't be read ({error.strerror}); check its permissions") from None
    except ValueError as error:
        raise MedpclipError(f"{path}: broken JSON ({error}); write it again") from None
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise MedpclipError(f"{path}: key 'schema' is not {_SCHEMA}; write the mixture again, or update medpclip")
    sources: Any = content.get("sources")
    if not isinstance(sources, dict) or not sources:
        raise MedpclipError(f"{path}: key 'sources' is missing or empty; name at least one folder with its weight")
    out = []
    for name, facts in sorted(sources.items()):
        weight = facts.get("weight") if isinstance(facts, dict) else None
        _check_weight(weight, path, name)
        out.append((_check_folder(folder, name), float(weight)))  # type: ignore[arg-type]
    return out


def _check_weight(weight: Any, path: Path, name: str) -> None:
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight <= 0:
        raise MedpclipError(f"{path}: key 'sources.{name}.weight' is {weight!r}, expected a number above 0")


def _check_folder(folder: Path, name: str) -> Path:
    if Path(name).name != name or name in ("", ".", ".."):
        raise MedpclipError(f"{folder / MIXTURE}: key 'sources.{name}' is no folder's name; name one directly below")
    if not (folder / name / MANIFEST).is_file():
        raise MedpclipError(
            f"{folder / MIXTURE}: key 'sources.{name}': {folder / name} holds no finished shards; build them, or drop it"
        )
    return folder / name
