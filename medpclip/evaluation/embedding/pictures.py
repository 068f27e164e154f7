"""Pictures on their way to a model: read, decoded, corrupted if asked, resized, and cut into regions' windows."""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice

import numpy as np

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import RegionPrompt, stack
from medpclip.data.loading.windows import WindowSpec, cut_windows
from medpclip.data.shards import ShardFolder
from medpclip.evaluation.corpus import Item, rng_for
from medpclip.evaluation.embedding.corruptions import corrupt
from medpclip.evaluation.task import Corruption
from medpclip.models.preprocess import Preprocess

Corrupted = tuple[Corruption, int] | None  # name and severity, see `corruptions`
CutWindow = tuple[np.ndarray, np.ndarray]  # pixels (s, s, 3) uint8 and rect (4,) float32
_AHEAD = 2  # chunks that are made ready while one is computed


@dataclass
class Unit:
    """One picture and all that is asked about it.

    Attributes:
        rows: (comparator, prompt's digest) -> the embedding's key; the image itself has an empty digest.
        prompts: digest -> prompt.
    """

    item: Item
    corruption: Corrupted = None
    rows: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    prompts: dict[bytes, RegionPrompt] = field(default_factory=dict)

    @property
    def image(self) -> bool:
        """Whether the image itself is asked about."""
        return any(not digest for _, digest in self.rows)


@dataclass
class Prepared:
    """A picture that is ready.

    Attributes:
        square: uint8 (S, S, 3), padded and resized.
        windows: (what is wanted, prompt's digest) -> the cut square.
        seconds: what is wanted -> how long cutting took.
    """

    square: np.ndarray
    windows: dict[tuple[WindowSpec, bytes], CutWindow] = field(default_factory=dict)
    seconds: dict[WindowSpec, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Awaited:
    """A picture that may not be ready yet.

    Attributes:
        prepared: waits for it; raises MedpclipError where it can't be read.
    """

    unit: Unit
    prepared: Callable[[], Prepared]


class Preparation:
    """Makes pictures ready, on threads if there are some.

    Args:
        preprocess: the model's.
        grid: side of the grid of mask prompts.
        seed: of the corruptions.
        workers: threads; 0 for none.
    """

    def __init__(self, preprocess: Preprocess, grid: int, seed: int, workers: int) -> None:
        self.preprocess, self.grid, self.seed, self.workers = preprocess, grid, seed, workers
        self._shards: dict[int, tuple[ShardFolder, dict[str, str]]] = {}
        self._own = threading.local()

    def digest(self, item: Item, corruption: Corrupted) -> bytes:
        """What a picture is known by: its shard's content and its key in it, and what is done to it."""
        if id(item.folder) not in self._shards:  # the folder is kept, so that its id stays its own
            shards = {shard["name"]: shard["sha256"] for shard in item.folder.manifest["shards"]}
            self._shards[id(item.folder)] = (item.folder, shards)
        row = item.folder.rows[item.index]
        changed = "" if corruption is None else f"{corruption[0]}\n{corruption[1]}\n{self.seed}"
        return hashlib.sha256(f"{self._shards[id(item.folder)][1][row.shard]}\n{row.key}\n{changed}".encode()).digest()

    def ahead(self, chunks: Sequence[Sequence[Unit]], wanted: Mapping[str, WindowSpec]) -> Iterator[list[Awaited]]:
        """The chunks with their pictures, in order; the next pictures are made ready meanwhile.

        Args:
            wanted: comparator -> what it wants of the pictures' own resolution, where it wants something.
        """
        if not self.workers:
            for chunk in chunks:
                yield [Awaited(unit, cache(partial(self._prepare, unit, wanted))) for unit in chunk]
            return
        pool = ThreadPoolExecutor(self.workers, "pictures")
        waiting: deque[list[Awaited]] = deque()
        coming = iter(chunks)
        try:
            while True:
                for chunk in islice(coming, _AHEAD + 1 - len(waiting)):
                    waiting.append([Awaited(unit, pool.submit(self._prepare, unit, wanted).result) for unit in chunk])
                if not waiting:
                    return
                yield waiting.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, unit: Unit, wanted: Mapping[str, WindowSpec]) -> Prepared:
        item = unit.item
        picture = replace(item, folder=self._folder(item.folder)).image()
        if unit.corruption is not None:
            name, severity = unit.corruption
            picture = corrupt(picture, name, severity, rng_for(self.seed, item.sample.key, name, severity))
        out = Prepared(self.preprocess.pad_resize(picture))
        asked: dict[WindowSpec, dict[bytes, None]] = {}
        for comparator, digest in unit.rows:
            if comparator in wanted:
                asked.setdefault(wanted[comparator], {})[digest] = None
        whole = Window.whole(item.sample.width, item.sample.height)
        for spec, digests in asked.items():
            began = time.perf_counter()
            arrays = stack([[unit.prompts[digest] for digest in digests]], self.grid)
            cut = cut_windows([picture], [whole], arrays, spec, self.preprocess.fill)
            pixels, rects = cut.pixels[0].numpy(), cut.rects[0].numpy()
            out.windows |= {(spec, digest): (pixels[r], rects[r]) for r, digest in enumerate(digests)}
            out.seconds[spec] = time.perf_counter() - began
        return out

    def _folder(self, folder: ShardFolder) -> ShardFolder:
        """The thread's own copy, since a folder of shards is for one thread at a time."""
        if not self.workers:
            return folder
        own: dict[int, ShardFolder] = self._own.__dict__.setdefault("folders", {})
        if id(folder) not in own:
            own[id(folder)] = copy.copy(folder)
        return own[id(folder)]


def prompt_digest(prompt: RegionPrompt | None) -> bytes:
    """What a prompt is known by; empty for none."""
    if prompt is None:
        return b""
    digest = hashlib.sha256()
    for array in (prompt.points, prompt.labels, prompt.box, prompt.mask):
        # Shapes and types set the parts apart, and a missing part from an empty one.
        digest.update(b"-" if array is None else f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return digest.digest()
