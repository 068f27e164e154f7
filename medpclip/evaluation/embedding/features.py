"""Embeddings of images, regions and texts: asked for in any order, computed once, by any number of processes.

Work is cut into chunks whose composition follows from what is asked alone, not from the batch size, the number of workers
or processes, or the order of the requests. A chunk is computed by one process and kept as a whole (`Store`), so an
evaluation that is cut off goes on where it was, and gives the same figures.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medpclip.data.loading.prompting import RegionPrompt
from medpclip.distributed import World
from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import Item
from medpclip.evaluation.embedding.embedders import UNPROMPTED, Ask, make_embedders
from medpclip.evaluation.embedding.pictures import Awaited, Corrupted, Preparation, Prepared, Unit, prompt_digest
from medpclip.evaluation.embedding.store import Store
from medpclip.evaluation.subject import Subject, evaluating
from medpclip.progress import Progress

_ROWS, _IMAGES, _TEXTS = 512, 64, 256  # a chunk is full with so many embeddings, or images, or texts
_IMAGES_PER_SECOND = "images per second"
Compute = Callable[[Sequence[int], Progress], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Request:
    """An embedding that is wanted.

    Attributes:
        item: the image.
        prompt: the region, in unit coordinates of the padded square; None for the image itself.
        comparator: the way to embed it; "unprompted" is the image's embedding whatever the prompt.
        corruption: what is done to the picture first: name and severity, as `corruptions.corrupt` takes them.
    """

    item: Item
    prompt: RegionPrompt | None
    comparator: str = UNPROMPTED
    corruption: Corrupted = None


class Features:
    """What a model says, as L2-normalised vectors.

    Args:
        subject: the model, on its device; left in the mode (train or eval) in which it came.
        store: where embeddings are kept; None for memory alone. Several processes need one in a folder.
        world: the processes that share the work; each of them asks for the same in the same order.
        workers: threads that read, decode and cut while the model computes; 0 for none.
        batch_size: images in a forward.
        prompts_per_pass: prompts of one image in a forward.
        seed: of the pictures' corruptions.
        shown: whether to show progress.
        alive: called after every forward of a tower.

    Attributes:
        comparators: names that `embed` can answer.
        image_scale, region_scale: by which cosines are multiplied to be logits.
        mask_grid: side of the grid of mask prompts.

    Raises:
        MedpclipError: several processes without a folder to meet in.
    """

    def __init__(
        self,
        subject: Subject,
        store: Store | None = None,
        *,
        world: World | None = None,
        workers: int = 0,
        batch_size: int = 16,
        prompts_per_pass: int = 64,
        seed: int = 0,
        shown: bool = True,
        alive: Callable[[], None] | None = None,
    ) -> None:
        self.subject, self.store, self.world = subject, store or Store(), world or World()
        self.batch_size, self.prompts_per_pass = batch_size, prompts_per_pass
        self.shown, self.alive = shown and self.world.is_first, alive
        model = subject.model
        self.embedders = {} if model is None else make_embedders(model, subject.prompted)
        self.comparators: tuple[str, ...] = (UNPROMPTED, *self.embedders)
        self.image_scale, self.region_scale = subject.scales
        self.mask_grid = 1 if model is None else model.mask_grid
        self._preparation = Preparation(subject.preprocess, self.mask_grid, seed, workers)
        self._wanted = {name: e.window for name, e in self.embedders.items() if e.window is not None}
        self._identity = subject.identity().encode()
        self._computed: dict[str, tuple[int, float]] = {}
        if self.world.size > 1 and self.store.folder is None:
            raise MedpclipError("several processes meet in the cache; leave out --no-cache")

    @property
    def speed(self) -> dict[str, float]:
        """What this process has computed: "images per second" by the clock, of embedding images alone, and "regions per
        second: COMPARATOR" by the time that its windows and forwards took."""
        return {name: count / seconds for name, (count, seconds) in sorted(self._computed.items()) if seconds}

    def embed(self, requests: Sequence[Request], name: str = "embeddings") -> np.ndarray:
        """Float32 (n, D), L2-normalised, in the requests' order; rows of NaN where a comparator isn't at hand.

        Args:
            requests: what is wanted.
            name: what the progress bar says.

        Raises:
            MedpclipError: an unreadable picture, or a cache that can't be written.
        """
        keys, units = self._units(requests)
        chunks = list(_chunks(units))

        def compute(numbers: Sequence[int], bar: Progress) -> Iterator[np.ndarray]:
            began, done = time.perf_counter(), 0
            for chunk in self._preparation.ahead([chunks[i] for i in numbers], self._wanted):
                values = self._compute(chunk, bar)
                done += len(values)
                yield values
            if not any(unit.prompts for unit in units):
                self._timed(_IMAGES_PER_SECOND, done, time.perf_counter() - began)

        self._fill([[key for unit in chunk for key in unit.rows.values()] for chunk in chunks], compute, name)
        return self._gather(keys)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 (n, D), L2-normalised, in the texts' order.

        Raises:
            MedpclipError: the model has no text tower.
        """
        model = self.subject.model
        if model is None:
            raise MedpclipError(f"{self.subject.facts.name}: has no text tower, so no question can be put in words")
        keys: list[bytes | None] = []
        words: dict[bytes, str] = {}
        for text in texts:
            keys.append(key := self._key(b"text", text.encode()))
            words[key] = text
        order = sorted(words)
        chunks = [order[i : i + _TEXTS] for i in range(0, len(order), _TEXTS)]

        def compute(numbers: Sequence[int], bar: Progress) -> Iterator[np.ndarray]:
            for number in numbers:
                tokens = model.tokenizer([words[key] for key in chunks[number]]).to(self.subject.device)
                yield model.encode_text(tokens).float().cpu().numpy()
                self._done(bar, len(tokens))

        self._fill(chunks, compute, "texts", "text")
        return self._gather(keys)

    def _units(self, requests: Sequence[Request]) -> tuple[list[bytes | None], list[Unit]]:
        """Each request's key, and all that is asked by picture, in an order of its own."""
        digests: dict[int, bytes] = {}
        units: dict[bytes, Unit] = {}
        keys: list[bytes | None] = []
        for request in requests:
            comparator = request.comparator
            if comparator not in self.comparators:
                keys.append(None)
                continue
            prompt = None if comparator == UNPROMPTED else request.prompt
            assert prompt is not None or comparator == UNPROMPTED, f"{comparator} needs a prompt"
            if (digest := digests.get(id(prompt))) is None:
                digest = digests[id(prompt)] = prompt_digest(prompt)
            picture = self._preparation.digest(request.item, request.corruption)
            settings = comparator if prompt is None else self.embedders[comparator].settings
            keys.append(key := self._key(settings.encode(), picture, digest))
            unit = units.setdefault(picture, Unit(request.item, request.corruption))
            unit.rows[comparator, digest] = key
            if prompt is not None:
                unit.prompts[digest] = prompt
        for unit in units.values():
            unit.rows = dict(sorted(unit.rows.items(), key=lambda row: row[0][::-1]))  # the image itself first
        return keys, [units[picture] for picture in sorted(units)]

    def _key(self, *parts: bytes) -> bytes:
        digest = hashlib.sha256(self._identity)
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()

    def _fill(self, chunks: Sequence[Sequence[bytes]], compute: Compute, name: str, unit: str = "embedding") -> None:
        """Have all rows in the store; the processes compute the missing chunks by turns."""
        missing = self._missing(chunks)
        if self.world.size == 1:
            self._add(chunks, missing, compute, name, unit)
            return
        error: MedpclipError | None = None
        try:
            own = [i for i in missing if i % self.world.size == self.world.rank]
            self._add(chunks, own, compute, name, unit)
        except MedpclipError as found:
            error = found
        self.world.agree(error)
        for i in missing:
            self.store.fetch(chunks[i])
        # Another evaluation that writes into the same folder may have led a process to think that a chunk was there.
        self._add(chunks, self._missing(chunks), compute, name, unit)

    def _missing(self, chunks: Sequence[Sequence[bytes]]) -> list[int]:
        return [i for i, keys in enumerate(chunks) if not all(key in self.store for key in keys)]

    def _add(
        self, chunks: Sequence[Sequence[bytes]], numbers: Sequence[int], compute: Compute, name: str, unit: str
    ) -> None:
        if not numbers:
            return
        total = sum(len(chunks[i]) for i in numbers)
        with Progress(name, total, unit, shown=self.shown) as bar, evaluating(self.subject.tower):
            for i, values in zip(numbers, compute(numbers, bar), strict=True):
                if not np.isfinite(values).all():
                    raise MedpclipError(
                        f"{self.subject.facts.name}: gives {name} that aren't finite numbers; give weights that are whole"
                    )
                self.store.put(chunks[i], values)

    def _gather(self, keys: Sequence[bytes | None]) -> np.ndarray:
        out = np.full((len(keys), self.subject.width), np.nan, np.float32)
        for row, key in enumerate(keys):
            if key is not None:
                out[row] = self.store.row(key)
        return out

    def _compute(self, chunk: Sequence[Awaited], bar: Progress) -> np.ndarray:
        """A chunk's rows, (n, D), as its units list them."""
        first = np.cumsum([0, *(len(awaited.unit.rows) for awaited in chunk)])
        values = np.empty((first[-1], self.subject.width), np.float32)
        images = [(awaited, int(row)) for awaited, row in zip(chunk, first, strict=False) if awaited.unit.image]
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            pixels = self._pixels([awaited.prepared().square for awaited, _ in part])
            values[[row for _, row in part]] = self.subject.encode_image(pixels).float().cpu().numpy()
            self._done(bar, len(part))
        asks: dict[str, list[Ask]] = {}
        for image, (awaited, row) in enumerate(zip(chunk, first.tolist(), strict=False)):
            windows, prompts = awaited.prepared().windows, awaited.unit.prompts
            for number, (comparator, digest) in enumerate(awaited.unit.rows):
                if comparator != UNPROMPTED:
                    wanted = self._wanted.get(comparator)
                    window = None if wanted is None else windows[wanted, digest]
                    asks.setdefault(comparator, []).append(Ask(image, row + number, prompts[digest], window))
        if asks:
            prepared = [awaited.prepared() for awaited in chunk]
            pixels = self._pixels([picture.square for picture in prepared])
            for comparator, own in asks.items():
                self._regions(comparator, own, pixels, values, bar, prepared)
        return values

    def _regions(
        self,
        comparator: str,
        asks: Sequence[Ask],
        pixels: torch.Tensor,
        values: np.ndarray,
        bar: Progress,
        chunk: Sequence[Prepared],
    ) -> None:
        """Fill the rows of one comparator."""
        began = time.perf_counter()
        embedder = self.embedders[comparator]
        for batch in embedder.batches(asks, self.batch_size, self.prompts_per_pass):
            rows = [ask.row for row in batch for ask in row]
            values[rows] = embedder.embed(pixels, batch)
            self._done(bar, len(rows))
        seconds = time.perf_counter() - began
        if embedder.window is not None:
            cutting = sum(prepared.seconds.get(embedder.window, 0.0) for prepared in chunk)
            seconds += cutting / max(1, self._preparation.workers)
        self._timed(f"regions per second: {comparator}", len(asks), seconds)

    def _pixels(self, squares: Sequence[np.ndarray]) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack(squares))
        return self.subject.preprocess.to_pixels(stacked.to(self.subject.device))

    def _done(self, bar: Progress, count: int) -> None:
        bar.advance(count)
        if self.alive is not None:
            self.alive()

    def _timed(self, name: str, count: int, seconds: float) -> None:
        before = self._computed.get(name, (0, 0.0))
        self._computed[name] = (before[0] + count, before[1] + seconds)


def _chunks(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Units in a row until a chunk is full."""
    chunk: list[Unit] = []
    rows = 0
    for unit in units:
        if chunk and (len(chunk) == _IMAGES or rows + len(unit.rows) > _ROWS):
            yield chunk
            chunk, rows = [], 0
        chunk.append(unit)
        rows += len(unit.rows)
    if chunk:
        yield chunk
