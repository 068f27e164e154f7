"""A recipe and a source folder -> a folder of shards, or nothing.

Every image and region that a reader finds ends in a shard or in the quarantine; the counts are compared at the end. A
build converts chunks of entries, in any order and in as many processes and jobs as wanted, and then assembles the shards
from all chunks, so that the result doesn't depend on who converted what, or how often it was interrupted.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medpclip import __version__
from medpclip.data.building.assemble import ASSEMBLED, assemble, assembled
from medpclip.data.building.convert import Converter
from medpclip.data.building.metadata import add_metadata
from medpclip.data.building.privacy import Salt
from medpclip.data.building.quarantine import private_folder
from medpclip.data.building.recipe import Recipe
from medpclip.data.building.splits import Splitter
from medpclip.data.building.spool import Plan, Spool, part_folder, spools, stamp
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
    goes on from there. Samples lie in the order of their keys, which has nothing to do with the source's.

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
    _check_shard_size(samples_per_shard)
    if manifest := _finished(out, private):
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
    without_row = add_metadata(entries, recipe, source)
    # Small sources in smaller chunks, so that every worker gets some; parts and workers must not change them.
    size = min(converter.reader.batch, -(-len(entries) // _FEWEST_CHUNKS) or 1)
    count = -(-len(entries) // size)
    what = _entries_hash(scanned, converter.splitter)
    plan = Plan(recipe.name, recipe.sha256(), salt.fingerprint, __version__, what, count, parts)
    # The other parts' entries, which may hold long texts, are let go.
    chunks = {i: entries[i * size : (i + 1) * size] for i in range(part - 1, count, parts)}
    faults = [item for item in scanned if isinstance(item, Fault)] + without_row
    del entries, scanned
    spool = Spool(part_folder(private, part, parts))
    name = recipe.name if parts == 1 else f"{recipe.name}, part {part} of {parts}"
    total = sum(map(len, chunks.values()))
    _make_private(private)
    with _lock(spool.folder):
        spool.begin(plan, faults)
        there = {chunk for chunk in chunks if spool.has(chunk)}
        good = {chunk for chunk in there if spool.stamp(chunk) == stamp(chunks[chunk], source)}
        todo = [chunk for chunk in chunks if chunk not in good]
        if changed := sum(len(chunks[chunk]) for chunk in there - good):
            print(f"{name}: files of {changed} converted images have changed; they are converted anew", file=sys.stderr)
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
    _check_shard_size(samples_per_shard)
    if manifest := _finished(out, private[0]):
        return manifest
    found = [spool for folder in dict.fromkeys(private) for spool in spools(folder)]
    with _lock(private[0]):
        return _assemble(recipe, found, out, private[0], samples_per_shard)


def _finished(out: Path, private: Path) -> dict[str, Any] | None:
    """The manifest, if an earlier call made `out` and was killed before it had cleaned up; this one cleans up then.

    Raises:
        MedpclipError: `out` holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if (out / MANIFEST).exists() and (folders := assembled(private, out / MANIFEST)) is not None:
        _clean_up(folders, private)
        return read_manifest(out)
    raise MedpclipError(f"{out}: exists and is not an empty folder; choose another --out or delete it")


def _assemble(
    recipe: Recipe, found: Sequence[Spool], out: Path, private: Path, samples_per_shard: int
) -> dict[str, Any]:
    manifest = assemble(recipe, found, out, private, samples_per_shard)
    _clean_up([spool.folder for spool in found], private)
    return manifest


def _clean_up(folders: Sequence[Path], private: Path) -> None:
    """Delete the chunks of shards that are finished, and then the note that says so."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=not folder.exists())
    (private / ASSEMBLED).unlink(missing_ok=True)


def _check_shard_size(samples: int) -> None:
    if samples < 1:
        raise MedpclipError(f"--samples-per-shard is {samples}; give 1 or more")


class _Job:
    """What every process needs to convert a chunk."""

    def __init__(self, converter: Converter, chunks: Mapping[int, list[Entry]], spool: Spool) -> None:
        self.converter, self.chunks, self.spool = converter, chunks, spool

    def __call__(self, chunk: int) -> int:
        entries = self.chunks[chunk]
        before = stamp(entries, self.converter.source)
        converted = self.converter.convert(entries)
        try:
            self.spool.write(chunk, converted, before)
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


def _entries_hash(scanned: list[Entry | Fault], splitter: Splitter) -> str:
    """A hash of what there is to convert: other files, metadata, published splits or faults are another build."""
    digest = hashlib.sha256(splitter.listed().encode())
    for item in scanned:
        if isinstance(item, Entry):
            # Types beside JSON's, if a reader has any, count by their name: their text may differ from run to run.
            said = json.dumps(item.metadata, skipkeys=True, default=lambda value: type(value).__name__)
            line = f"{item.image}\0{said}"
        else:
            line = f"{item.file}\0{item.key}\0{item.reason}"
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise MedpclipError(f"{folder}: can't be written ({error.strerror}); choose another --out") from None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps a second process from working in the same private folder at the same time."""
    _make_private(folder)
    descriptor = os.open(folder, os.O_RDONLY)
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
            except OSError as error:  # as on some network file systems
                print(f"{folder}: can't be locked ({error.strerror}); start no second build there", file=sys.stderr)
                break
        yield
    finally:
        os.close(descriptor)


def _watch_parent(parent: int) -> None:
    """Ends this worker when its parent was killed and can't tell it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
