"""Shards with a split of their own for each seed: whole groups, the same draw for all sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from plan import SOURCES, SPLIT

from medpclip.data.shards import MANIFEST
from medpclip.errors import MedpclipError
from medpclip.files import file_sha256

ROOT = Path(__file__).parents[2]


def shard_folders(out: Path, seed: int) -> dict[str, Path]:
    """Source -> its folder of shards."""
    return {name: out / f"data-seed{seed}" / name for name in SOURCES}


def build_shards(data: Path | None, out: Path, seed: int) -> None:
    """Build what is missing of a seed's shards.

    Raises:
        MedpclipError: something is missing and there is nothing to build it from, or the build failed.
    """
    folders = shard_folders(out, seed)
    missing = [name for name, folder in folders.items() if not (folder / MANIFEST).is_file()]
    if not missing:
        return
    if data is None:
        raise MedpclipError(f"{out}: lacks shards of seed {seed} ({', '.join(missing)}); give --data DIR")
    recipes = out / f"recipes-seed{seed}"
    recipes.mkdir(parents=True, exist_ok=True)
    for name in missing:
        recipe = yaml.safe_load((ROOT / "data_recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        recipe["split"] = {"seed": seed} | SPLIT
        (recipes / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        command = [sys.executable, "-m", "medpclip", "data", "build", str(recipes / f"{name}.yaml")]
        command += ["--source", str(data), "--out", str(folders[name])]
        done = subprocess.run(command, cwd=ROOT, env=one_core(), capture_output=True, text=True)
        if done.returncode:
            raise MedpclipError(f"{name}: {(done.stderr.strip() or 'the build failed').splitlines()[-1]}")


def manifest_hashes(out: Path, seed: int) -> dict[str, str]:
    """Source -> SHA-256 of its manifest."""
    return {name: file_sha256(folder / MANIFEST) for name, folder in shard_folders(out, seed).items()}


def one_core() -> dict[str, str]:
    """The environment of a process that keeps to one core."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
