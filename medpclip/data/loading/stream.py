"""The streaming reader: shards read from front to back, over a pipe, from an object store or from disk.

webdataset opens the shards and takes them apart (public interface only; this is the one file that imports it). The
order is ours, and known before anything is read, since the manifest says how many samples each shard has: an epoch's
shards in random order, dealt out to all workers of all ranks, each worker drawing from a bounded buffer. So a run goes
on at any batch: the order is gone through in numbers, reading begins at the first shard that has a sample left, and what
was already given away is passed over. That costs the reading of at most the shards that were in the buffer.

A shard's address is its path, or `data.urls`' pattern. A "pipe:" address is a shell command; it is run because the
user's own configuration says so, and never because a manifest does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from medpclip.data.loading.batch import Batch, BatchBuilder, Record, UnreadableSampleError
from medpclip.data.loading.config import DataConfig
from medpclip.data.loading.dataset import data_sources, sample_streams
from medpclip.data.loading.order import EpochPlan, Item, shuffled
from medpclip.data.loading.windows import WindowSpec
from medpclip.data.shards import IMAGE_EXTENSIONS, MANIFEST, read_manifest
from medpclip.errors import MedpclipError

_BUFFER = 4  # what a random stream is for; see `dataset` and `order`


class StreamingDataset(IterableDataset[Any]):
    """Training batches from streamed shards. `make_loader` says where to begin and whose batches they are.

    Args: as `RegionDataset`.

    Raises:
        MedpclipError: no manifest, no such split, or webdataset is missing.
    """

    def __init__(
        self,
        config: DataConfig,
        image_size: int,
        mask_grid: int,
        fill: tuple[int, ...],
        seed: int,
        window: WindowSpec | None = None,
    ) -> None:
        _import_webdataset()
        self.config, self.seed = config, seed
        self.builder = BatchBuilder(config, image_size, mask_grid, fill, window)
        self.urls: list[str] = []
        self.counts: list[int] = []
        sources = data_sources(config)
        of_source = []
        for source in sources:
            manifest = read_manifest(source.folder)
            if config.split not in manifest["splits"]:
                has = ", ".join(manifest["splits"]) or "none"
                raise MedpclipError(
                    f"{source.folder}/{MANIFEST}: no split {config.split!r} (it has: {has}); name one of those"
                )
            shards = [shard for shard in manifest["shards"] if shard["split"] == config.split]
            pattern = config.urls.get(source.folder.name)
            self.urls += [
                pattern.replace("{}", shard["name"]) if pattern else str(Path(source.folder).resolve() / shard["name"])
                for shard in shards
            ]
            self.counts += [shard["samples"] for shard in shards]
            of_source.append(len(shards))
        self.starts = np.cumsum([0, *self.counts])
        self.plan = EpochPlan(tuple(of_source), tuple(source.weight for source in sources), seed)  # of shards
        self.batch_size, self.start, self.rank, self.world = 1, 0, 0, 1

    def __len__(self) -> int:
        """Samples of all sources."""
        return int(self.starts[-1])

    def begin(self, batch_size: int, start: int, rank: int, world: int) -> None:
        """Set where the next iteration begins, and check that all workers of all ranks can go on alike.

        Raises:
            MedpclipError: too few or uneven shards.
        """
        self.batch_size, self.start, self.rank, self.world = batch_size, start, rank, world
        self._check_shares()

    @property
    def workers(self) -> int:
        """How many streams this rank reads: without a worker, the training process reads one."""
        return max(1, self.config.workers)

    def _check_shares(self) -> None:
        streams, shards = self.world * self.workers, len(self.plan)
        who = f"{self.world} rank{'s' * (self.world > 1)} x {self.workers} worker{'s' * (self.workers > 1)}"
        if shards < streams:
            raise MedpclipError(
                f"key 'data.workers': an epoch has {shards} shards for {who}; use fewer workers or ranks, "
                "data.reader indexed, or build the corpus with fewer samples per shard"
            )
        sizes = sorted(set(self.counts))
        if not self.config.trim and (shards % streams or len(sizes) > 1):
            why = f"{shards} shards" if shards % streams else f"shards of {sizes[0]} to {sizes[-1]} samples"
            raise MedpclipError(
                f"key 'data.trim': {why} can't be shared out evenly to {who}; set data.trim to leave out the excess of "
                "each epoch, use data.reader indexed, or other numbers"
            )
        least = self.plan_of(0)
        if not least:
            raise MedpclipError(
                f"key 'batch_size' is {self.batch_size}, more than the samples that each of {who} has in an epoch; "
                "lower it, or use fewer workers or ranks"
            )

    def plan_of(self, epoch: int) -> int:
        """Batches of each stream in an epoch: what the one with the fewest samples can give."""
        shards, _ = self.plan.draws(epoch)
        streams = self.world * self.workers
        counts = np.array(self.counts)[shards]
        return int(min(counts[i::streams].sum() for i in range(streams))) // self.batch_size

    def __iter__(self) -> Iterator[Batch | MedpclipError]:
        """One stream's batches without end. What can't go on is handed on, as a value, and ends it."""
        info = get_worker_info()
        # The loader takes from its workers in turn, from the first one on, wherever the run begins.
        worker = ((info.id if info else 0) + self.start) % self.workers
        number = -(-max(0, self.start - worker) // self.workers)  # this stream's own
        epoch = 0
        while number >= (batches := self.plan_of(epoch)):
            number, epoch = number - batches, epoch + 1
        try:
            while True:
                yield from self._epoch(epoch, worker, number)
                number, epoch = 0, epoch + 1
        except MedpclipError as error:
            yield error

    def _epoch(self, epoch: int, worker: int, first: int) -> Iterator[Batch]:
        """The stream's batches of an epoch, from batch `first` on."""
        stream, streams = self.rank * self.workers + worker, self.world * self.workers
        shards, copies = (part[stream::streams] for part in self.plan.draws(epoch))
        rng = np.random.default_rng((self.seed, _BUFFER, epoch, stream))
        order = shuffled([self.counts[shard] for shard in shards], self.config.shuffle_buffer, rng)
        given = [next(order) for _ in range(first * self.batch_size)]
        reading = _Reading([self.urls[shard] for shard in shards], [self.counts[shard] for shard in shards], given)
        for _ in range(first, self.plan_of(epoch)):
            drawn = [next(order) for _ in range(self.batch_size)]
            items = [Item(epoch, int(self.starts[shards[s]]) + row, int(copies[s])) for s, row in drawn]
            keys = sample_streams(self.seed, items)
            yield self.builder.build([reading.take(*place, key) for place, key in zip(drawn, keys, strict=True)])


class _Reading:
    """Reads shards one after the other, as far as is asked, and keeps what was read until it is taken.

    Args:
        urls, counts: addresses of the shards, and how many samples each has.
        given: (shard, row) that were taken before, and will not be asked for.
    """

    def __init__(self, urls: list[str], counts: list[int], given: list[tuple[int, int]]) -> None:
        self.urls, self.counts = urls, counts
        self._given = set(given)
        left = np.array(counts) - np.bincount([shard for shard, _ in given], minlength=len(counts))
        begin = int(np.argmax(left > 0))  # shards before it are done with
        self._waiting: dict[tuple[int, int], _Member | UnreadableSampleError] = {}
        self._incoming = self._read(begin)

    def take(self, shard: int, row: int, stream: int) -> Record | UnreadableSampleError:
        """A sample's bytes, or why they can't be read."""
        while (shard, row) not in self._waiting:
            place, member = next(self._incoming)
            if place not in self._given:
                self._waiting[place] = member
        member = self._waiting.pop((shard, row))
        if isinstance(member, UnreadableSampleError):
            return member
        key, extension, image, facts = member
        return Record(key, f"{self.urls[shard]}: {key}", image, extension, facts, stream)

    def _read(self, begin: int) -> Iterator[tuple[tuple[int, int], _Member | UnreadableSampleError]]:
        for shard in range(begin, len(self.urls)):
            url, count = self.urls[shard], self.counts[shard]
            row, problem = 0, "it ends early"
            try:
                for member in _members(url):
                    if row >= count:
                        raise MedpclipError(
                            f"{url}: more than the {count} samples that its manifest says; copy it again"
                        )
                    yield (shard, row), member
                    row += 1
            except MedpclipError:
                raise
            except Exception as error:  # whatever a transport raises: its samples are counted as lost
                problem = " ".join(str(error.args[0] if error.args else type(error).__name__).split())
            for lost in range(row, count):
                message = f"{url}: sample {lost} of {count} can't be read ({problem}); copy the shard again"
                yield (shard, lost), UnreadableSampleError("shard can't be read", message)


_Member = tuple[str, str, bytes, bytes]


def _members(url: str) -> Iterator[_Member | UnreadableSampleError]:
    """Key, extension, image and JSON of each sample of a shard, in its order."""
    webdataset = _import_webdataset()
    for sample in webdataset.DataPipeline(webdataset.SimpleShardList([url]), webdataset.tarfile_to_samples()):
        extension = next((name for name in IMAGE_EXTENSIONS if name in sample), None)
        if extension is None or "json" not in sample:
            message = f"{url}: {sample['__key__']}: lacks its image or its JSON; build the shard again"
            yield UnreadableSampleError("sample is incomplete", message)
        else:
            yield sample["__key__"], extension, sample[extension], sample["json"]


def _import_webdataset() -> Any:
    try:
        import webdataset
    except ImportError:
        raise MedpclipError("data.reader streaming needs webdataset; install medpclip[train]") from None
    return webdataset
