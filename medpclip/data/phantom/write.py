"""Phantom shards: drawn by several processes, the same bytes whatever their number."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medpclip.data.phantom.kinds import PAIRS
from medpclip.data.phantom.ranges import HELD_OUT_RANGES, TRAIN_RANGES
from medpclip.data.phantom.scene import SOURCE, draw_sample
from medpclip.data.schema import SPLITS, Sample
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError
from medpclip.progress import Progress

_MIN_HELD_OUT = 40
_CHUNK = 16
Task = tuple[int, str, int, int]


def write_phantoms(out: Path, images: int = 4000, seed: int = 0, workers: int = 1) -> dict[str, Any]:
    """Draw phantoms into a new folder of shards.

    The folder appears whole or not at all. The bytes depend on `images` and `seed` only.

    Args:
        out: the folder to make; it must not exist, or be empty.
        images: how many training images; validation gets a tenth as many and test three twentieths, both at least 40.
        seed: non-negative; another seed draws other images.
        workers: processes; the result doesn't depend on them.

    Returns:
        The manifest.

    Raises:
        MedpclipError: `out` is in use, or an argument is out of range.
    """
    out = Path(out)
    _check(out, images, seed, workers)
    tasks = [task for split, count in split_counts(images).items() for task in _tasks(seed, split, count)]
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        with ShardWriter(temporary / out.name) as writer:
            drawn = _draw_all(tasks, workers)
            with Progress("phantoms", len(tasks)) as progress:
                for sample, image in drawn:
                    writer.add(sample, image, "jpg")
                    progress.advance()
            manifest = writer.finish(
                recipe={"name": SOURCE, "images": images, "seed": seed},
                pairs=PAIRS,
                ranges={"train": asdict(TRAIN_RANGES), "held_out": asdict(HELD_OUT_RANGES)},
            )
        os.replace(temporary / out.name, out)
    except OSError as error:
        raise MedpclipError(
            f"{out}: cannot write there ({error.strerror}); choose another folder or make room"
        ) from None
    except BrokenProcessPool:
        raise MedpclipError(f"{out}: a drawing process died (out of memory?); try again with fewer workers") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def split_counts(images: int) -> dict[str, int]:
    """How many images each split gets."""
    return {"train": images, "val": max(_MIN_HELD_OUT, images // 10), "test": max(_MIN_HELD_OUT, images * 3 // 20)}


def _check(out: Path, images: int, seed: int, workers: int) -> None:
    if images < 1:
        raise MedpclipError(f"images is {images}; give a positive number")
    if seed < 0:
        raise MedpclipError(f"seed is {seed}; give a number >= 0")
    if workers < 1:
        raise MedpclipError(f"workers is {workers}; give a positive number")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise MedpclipError(f"{out}: exists and is not an empty folder; choose another folder or delete it")


def _tasks(seed: int, split: str, count: int) -> list[Task]:
    """One task per image; patients have one to three images each."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split), 2])))
    groups = np.repeat(np.arange(count), rng.integers(1, 4, count))[:count]
    return [(seed, split, index, int(group)) for index, group in enumerate(groups)]


def _draw_all(tasks: list[Task], workers: int) -> Iterator[tuple[Sample, bytes]]:
    """Draw in order. Processes are spawned: a fork of a program with torch's threads could hang."""
    if workers == 1:
        yield from map(_draw, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_draw, tasks, chunksize=_CHUNK)


def _draw(task: Task) -> tuple[Sample, bytes]:
    return draw_sample(*task)
