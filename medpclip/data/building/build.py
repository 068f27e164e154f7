"""A recipe and a source folder -> a folder of shards, or nothing.

Every image and region that a reader finds ends in a shard or in the quarantine; the counts are compared at the end. A
build converts chunks of entries, in any order and in as many processes and jobs as wanted, and then assembles the shards
from all chunks, so that the result doesn't depend on who converted what, or how often it was interrupted.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medpclip import __version__
from medpclip.data.building.assemble import assemble
from medpclip.data.building.convert import Converter
from medpclip.data.building.metadata import add_metadata
from medpclip.data.building.privacy import Salt
from medpclip.data.building.quarantine import private_folder
from medpclip.data.building.recipe import Recipe
from medpclip.data.building.spool import Plan, Spool, part_folder, spools
from medpclip.data.readers import Entry, Fault
from medpclip.data.shards import MANIFEST, read_manifest
from medpclip.errors import MedpclipError
from medpclip.progress import Progress

_FEWEST_CHUNKS = 32


def build(
    recipe: Recipe,
    source: Path,
    out: Path,
    salt: Salt,
    samples_per_shard: int = 1000,
    workers: int = 1,
    private: Path | None = None,
) -> dict[str, Any]:
    """Convert a source; the folder `out` appears whole or not at all.

    The private folder gets the quarantine and the log, and holds what an interrupted build has converted: the same call
    goes on from there. Samples lie in the order of their keys, which has nothing to do with
    the source's.

    Args:
        recipe: what to read and how.
        source: the folder that the recipe's paths are relative to.
        out: the folder to make; it must not exist, or be empty.
        salt: the lab's secret.
        samples_per_shard: where a new shard begins.
        workers: processes; the result doesn't depend on them.
        private: the private folder, by default `out`.private.

    Returns:
        The manifest.

    Raises:
        MedpclipError: `out` is in use, the source doesn't fit the recipe, or nothing of it is usable.
    """
    private = private_folder(out) if private is None else private
    if manifest := _finished(recipe, salt.fingerprint, out, list(spools(private))):
        return manifest
    with _lock(private):
        spool = convert_part(recipe, source, private, salt, workers)
        return _assemble(recipe, [spool], out, private, samples_per_shard)


def convert_part(
    recipe: Recipe, source: Path, private: Path, salt: Salt, workers: int = 1, part: int = 1, parts: int = 1
) -> Spool:
    """Convert one of `parts` equal parts of a source into a private folder, or what is left of it to do.

    Args:
        private: the folder; all parts may have the same one.
        part: which one, from 1.
        parts: into how many jobs the source is shared out; `merge` brings them together.

    Raises:
        MedpclipError: no such source, it doesn't fit the recipe, or a worker process died.
    """
    if not source.is_dir():
        raise MedpclipError(f"{source}: no such folder; check --source")
    if workers < 1:
        raise MedpclipError(f"--workers is {workers}; give 1 or more")
    converter = Converter(recipe, source, salt)
    scanned = converter.reader.scan()
    entries = sorted((item for item in scanned if isinstance(item, Entry)), key=lambda entry: entry.image)
    add_metadata(entries, recipe, source)
    # Small sources in smaller chunks, so that every worker gets some; parts and workers must not change them.
    size = min(converter.reader.batch, -(-len(entries) // _FEWEST_CHUNKS) or 1)
    chunks = [entries[i : i + size] for i in range(0, len(entries), size)]
    plan = Plan(recipe.name, recipe.sha256(), salt.fingerprint, __version__, _entries_hash(scanned), len(chunks), parts)
    spool = Spool(part_folder(private, part, parts))
    mine = range(part - 1, len(chunks), parts)
    name = recipe.name if parts == 1 else f"{recipe.name}, part {part} of {parts}"
    total = sum(len(chunks[i]) for i in mine)
    with _lock(spool.folder):
        spool.begin(plan, [item for item in scanned if isinstance(item, Fault)])
        todo = [chunk for chunk in mine if not spool.has(chunk)]
        if done := total - sum(len(chunks[i]) for i in todo):
            print(f"{name}: going on after {done} of {total} images", file=sys.stderr)
        with Progress(name, total, done=done) as progress:
            for chunk in _convert_chunks(_Job(converter, chunks, spool), todo, workers):
                progress.advance(len(chunks[chunk]))
    return spool


def merge(recipe: Recipe, private: Sequence[Path], out: Path, samples_per_shard: int = 1000) -> dict[str, Any]:
    """Assemble the shards from parts that jobs converted; the same bytes as of one build.

    Args:
        recipe: what the parts were converted by.
        private: the private folders that hold the parts; the first one gets the quarantine and the log.
        out: the folder to make.
        samples_per_shard: where a new shard begins.

    Raises:
        MedpclipError: a part is missing or of another build, salt or recipe.
    """
    found = [spool for folder in dict.fromkeys(private) for spool in spools(folder)]
    if manifest := _finished(recipe, found[0].plan().salt if found else "", out, found):
        return manifest
    with _lock(private[0]):
        return _assemble(recipe, found, out, private[0], samples_per_shard)


def _finished(recipe: Recipe, salt: str, out: Path, leftovers: Sequence[Spool]) -> dict[str, Any] | None:
    """The manifest, if an earlier call made `out` and was killed before it had cleaned up.

    Raises:
        MedpclipError: `out` holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if leftovers and (out / MANIFEST).exists():
        manifest = read_manifest(out)
        if (manifest.get("recipe", {}).get("sha256"), manifest.get("salt")) == (recipe.sha256(), salt):
            for spool in leftovers:
                shutil.rmtree(spool.folder)
            return manifest
    raise MedpclipError(f"{out}: exists and is not an empty folder; choose another --out or delete it")


def _assemble(
    recipe: Recipe, found: Sequence[Spool], out: Path, private: Path, samples_per_shard: int
) -> dict[str, Any]:
    if samples_per_shard < 1:
        raise MedpclipError(f"samples per shard is {samples_per_shard}; give 1 or more")
    manifest = assemble(recipe, found, out, private, samples_per_shard)
    for spool in found:
        shutil.rmtree(spool.folder)
    return manifest


class _Job:
    """What every process needs to convert a chunk."""

    def __init__(self, converter: Converter, chunks: list[list[Entry]], spool: Spool) -> None:
        self.converter, self.chunks, self.spool = converter, chunks, spool

    def __call__(self, chunk: int) -> int:
        try:
            self.spool.write(chunk, self.converter.convert(self.chunks[chunk]))
        except OSError as error:
            raise MedpclipError(f"{self.spool.folder}: can't be written ({error.strerror}); make room there") from None
        return chunk


_job: _Job | None = None  # of a worker process: handed over by forking, since entries may be large


def _start_worker(job: _Job, parent: int) -> None:
    global _job
    _job = job
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _run_job(chunk: int) -> int:
    assert _job is not None
    return _job(chunk)


def _convert_chunks(job: _Job, todo: list[int], workers: int) -> Iterator[int]:
    """The numbers of chunks as they are done."""
    if workers == 1 or len(todo) < 2:
        yield from map(job, todo)
        return
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(todo)), fork, _start_worker, (job, os.getpid())) as pool:
        futures = [pool.submit(_run_job, chunk) for chunk in todo]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise MedpclipError(
                "a worker process was killed, often for want of memory; run the same command again with fewer "
                "--workers: it goes on from where it stopped"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _entries_hash(scanned: list[Entry | Fault]) -> str:
    """A hash of what there is to convert; other files, or other faults, are another build."""
    digest = hashlib.sha256()
    for item in scanned:
        line = item.image if isinstance(item, Entry) else f"{item.file}\0{item.key}\0{item.reason}"
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps a second process from working in the same private folder at the same time."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise MedpclipError(f"{folder}: can't be written ({error.strerror}); choose another --out") from None
    try:
        # Workers of a build that was killed a moment ago hold it until they notice.
        for wait in (0.5,) * 10 + (0.0,):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise MedpclipError(
                        f"{folder}: another process builds there just now; wait, or choose another --out"
                    ) from None
                time.sleep(wait)
        yield
    finally:
        os.close(descriptor)


def _watch_parent(parent: int) -> None:
    """Ends this worker when its parent was killed and can't tell it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
