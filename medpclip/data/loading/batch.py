"""From the bytes of samples to a `Batch`: the same for both readers.

Images are decoded one by one; everything that concerns regions is done for the whole batch at once. Only what is used
is checked, quickly; where anything is amiss, the full check of `medpclip.data.schema` says what. A sample that can't be
used is counted, and its place is taken by the batch's next good one, drawn anew: batches keep their size, and what is
in them stays a function of (seed, epoch, number).
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor

from medpclip.data.loading.augment import DRAWS, draw_colours, draw_window
from medpclip.data.loading.config import DataConfig
from medpclip.data.loading.decode import decode, reduction, render
from medpclip.data.loading.draws import stream_keys, uniforms
from medpclip.data.loading.facts import Facts, image_facts, look, region_facts
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.left_out import left_out
from medpclip.data.loading.prompting import empty_arrays
from medpclip.data.loading.regions import RegionTable
from medpclip.data.loading.sampling import Pointed, choose, draws_per_region, sample_prompts
from medpclip.data.loading.strips import Strips
from medpclip.data.loading.windows import CutWindows, WindowSpec, place_windows
from medpclip.data.pictures import PictureError
from medpclip.data.schema import SCHEMA_VERSION, Sample
from medpclip.errors import MedpclipError

_KEPT_BYTES = 2**23  # a picture that is larger is decoded again for its windows, so that a batch of them fits memory

# What broken facts raise where they are used.
_AMISS = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)


@dataclass
class Record:
    """A sample as it lies in its shard.

    Attributes:
        key: the member's name.
        where: how messages name it: shard and key.
        image, extension: the encoded picture.
        facts: the JSON.
        stream: key of its random numbers.
    """

    key: str
    where: str
    image: bytes
    extension: str
    facts: bytes
    stream: int


class UnreadableSampleError(Exception):
    """A sample that can't be used: `reason` is a fixed phrase, the message names shard and key."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Batch:
    """Attributes:
    images: (B, S, S, 3) uint8.
    colours: (B, 2) float32: gain and offset that augmentation drew; applied on the device, by `Preprocess.to_pixels`.
    prompts: the fields of `medpclip.models.Prompts`, as tensors, for B images and R regions each.
    image_facts: what is known of each image.
    region_facts: what is known of each image's regions, up to R of them; the rest is padding.
    keys: the samples' keys.
    windows: of the regions, where they are asked for.
    whole: (B,) bool: whether an image's last prompt is one of the whole image; it then is no region.
    skipped: why samples could not be used, and how many; others of the batch stand in their places.
    faults: the same one by one, with shard and key.
    """

    images: Tensor
    colours: Tensor
    prompts: dict[str, Tensor]
    image_facts: list[Facts]
    region_facts: list[list[Facts]]
    keys: list[str]
    windows: CutWindows | None = None
    whole: Tensor | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass
class _Opened:
    """A record whose facts are read and whose window is drawn.

    Attributes:
        whole: whether it is asked about as a whole, too.
        picture: at its own resolution, where it is kept for the regions' windows.
    """

    record: Record
    facts: dict[str, Any]
    window: Window
    colours: tuple[float, float]
    whole: bool
    picture: np.ndarray | None = None


@dataclass
class BatchBuilder:
    """Builds batches.

    Attributes:
        config: how to draw.
        image_size: side of the images, in pixels.
        mask_grid: side of the grid for mask prompts.
        fill: the padding's colour.
        window: which square around each region to cut at the picture's own resolution; None for none.
    """

    config: DataConfig
    image_size: int
    mask_grid: int
    fill: tuple[int, ...]
    window: WindowSpec | None = None

    def build(self, records: Sequence[Record | UnreadableSampleError]) -> Batch:
        """The batch of some records, or of why one could not even be read.

        Raises:
            MedpclipError: none of them can be used.
        """
        with _without_garbage_collection():
            return self._build(list(records))

    def _build(self, places: list[Record | UnreadableSampleError]) -> Batch:
        images = np.empty((len(places), self.image_size, self.image_size, 3), np.uint8)
        opened: dict[int, _Opened] = {}
        faults: dict[str, str] = {}  # message -> reason
        todo = list(range(len(places)))
        rest: dict[str, Any] = {}
        while todo:
            broken = self._open(places, todo, images, opened)
            if not broken:
                try:
                    rest = self._regions([opened[place] for place in range(len(places))])
                    broken = self._add_windows(opened, rest)
                except _AMISS:
                    broken = _examine(opened)
                    if not broken:
                        raise  # a bug of ours
            faults |= {str(fault): fault.reason for fault in broken.values()}
            todo = _fill_in(places, opened, broken)
        return Batch(
            images=torch.from_numpy(images),
            colours=torch.tensor([opened[place].colours for place in range(len(places))], dtype=torch.float32),
            **rest,
            keys=[opened[place].record.key for place in range(len(places))],
            skipped=dict(Counter(faults.values())),
            faults=list(faults),
        )

    def _open(
        self,
        places: Sequence[Record | UnreadableSampleError],
        todo: Sequence[int],
        images: np.ndarray,
        opened: dict[int, _Opened],
    ) -> dict[int, UnreadableSampleError]:
        """Read facts and images of some places; what can't be used, by place."""
        broken: dict[int, UnreadableSampleError] = {}
        streams = [0 if isinstance(places[place], UnreadableSampleError) else places[place].stream for place in todo]  # type: ignore[union-attr]
        draws = uniforms(stream_keys(np.array(streams, np.uint64), 0), DRAWS + 1).tolist()
        for place, own in zip(todo, draws, strict=True):
            record = places[place]
            try:
                if isinstance(record, UnreadableSampleError):
                    raise record
                opened[place] = self._open_one(record, own, images[place])
            except UnreadableSampleError as fault:
                broken[place] = fault
        return broken

    def _open_one(self, record: Record, draws: list[float], out: np.ndarray) -> _Opened:
        try:
            facts = orjson.loads(record.facts)
        except ValueError as error:
            message = f"{record.where}: broken JSON ({error}); rebuild the shard"
            raise UnreadableSampleError("JSON can't be parsed", message) from None
        if not _looks_sound(facts):
            raise _schema_fault(facts, record)
        augmentation, may_flip = self.config.augmentation, facts.get("laterality") == "none"
        window = draw_window(facts["width"], facts["height"], may_flip, augmentation, self.image_size, draws)
        pixels, factor = _decode(record, facts, reduction(window, self.image_size))
        out[:] = render(pixels, factor, window, self.image_size, self.fill)
        kept = self.window is not None and factor == 1 and pixels.nbytes <= _KEPT_BYTES
        whole = draws[DRAWS] < self.config.prompts.whole
        return _Opened(record, facts, window, draw_colours(augmentation, draws), whole, pixels if kept else None)

    def _regions(self, opened: Sequence[_Opened]) -> dict[str, Any]:
        """What a batch says of regions, and of the images that they are in."""
        config = self.config
        samples = [o.facts for o in opened]
        table = RegionTable.read(samples, [o.window for o in opened])
        streams = np.array([o.record.stream for o in opened], np.uint64)
        keys = stream_keys(streams[table.image], table.number + 1)
        without = left_out(tuple(config.leave_out_terms))
        candidates = np.flatnonzero(table.visible() & ~without.regions(table))
        first = uniforms(keys[candidates], 1)[:, 0]
        chosen, rank = table.draw(candidates, first, config.balance, config.regions_per_image)
        whole = np.array([o.whole for o in opened], bool)
        stay = ~whole[table.image[chosen]] | (rank < config.regions_per_image - 1)
        chosen, rank = chosen[stay], rank[stay]
        draws = uniforms(keys[chosen], 1 + draws_per_region(config.prompts))[:, 1:]
        arrays = self._prompts(table, chosen, rank, draws, len(opened))
        for image in np.flatnonzero(whole).tolist():
            sample, window = samples[image], opened[image].window
            arrays["boxes"][image, -1] = window.unit_box([0, 0, sample["width"], sample["height"]])
            arrays["box_valid"][image, -1] = True
        shown = look(table)
        facts: list[list[Facts]] = [[] for _ in opened]
        for image, known in zip(table.image[chosen].tolist(), region_facts(samples, table, shown, chosen), strict=True):
            facts[image].append(known)
        return {
            "prompts": {name: torch.from_numpy(array) for name, array in arrays.items()},
            "image_facts": without.of_images(image_facts(samples, table, shown)),
            "region_facts": facts,
            "whole": torch.from_numpy(whole),
        }

    def _add_windows(self, opened: Mapping[int, _Opened], rest: dict[str, Any]) -> dict[int, UnreadableSampleError]:
        """Add the regions' windows, where they are asked for, to what `_regions` says; what can't be used, by place."""
        broken: dict[int, UnreadableSampleError] = {}
        if self.window is None:
            return broken
        counts = np.array([len(known) for known in rest["region_facts"]])
        given = np.arange(self.config.regions_per_image) < counts[:, None]
        given[rest["whole"].numpy(), -1] = True
        prompts = {name: tensor.numpy() for name, tensor in rest["prompts"].items()}
        windows = [opened[place].window for place in range(len(counts))]
        places = place_windows(windows, prompts, self.window, given)
        pixels = torch.empty((*given.shape, self.window.size, self.window.size, 3), dtype=torch.uint8)
        for place, own in enumerate(pixels.numpy()):
            one = opened[place]
            try:
                picture, scale, least = one.picture, 1, places.least_factor(place)
                if picture is None and least:
                    picture, scale = _decode(one.record, one.facts, min(least, 8))
                places.cut(place, picture, scale, self.fill, own)
            except UnreadableSampleError as fault:
                broken[place] = fault
        rest["windows"] = CutWindows(pixels, torch.from_numpy(places.rects))
        return broken

    def _prompts(
        self, table: RegionTable, chosen: np.ndarray, rank: np.ndarray, draws: np.ndarray, batch: int
    ) -> dict[str, np.ndarray]:
        sampling, width = self.config.prompts, self.config.regions_per_image
        windows, has_mask, boxes = table.windows.pick(chosen), table.has_mask[chosen], table.boxes[chosen]
        choice = choose(~np.isnan(boxes[:, 0]), has_mask, sampling, draws)
        # Only those whose mask matters are decoded.
        asked = np.flatnonzero(has_mask & (choice.mask | choice.point | choice.scribble | (windows.angle != 0)))
        strips = table.strips(chosen[asked])
        strips = Strips(strips.each(asked), strips.x, strips.top, strips.bottom, len(chosen))
        points = [table.stated[i].get("points") for i in chosen]
        pointed = Pointed(windows, boxes, strips, has_mask, points, table.sizes[chosen])
        arrays = empty_arrays(batch, width, sampling.points, self.mask_grid)
        flat = {name: array.reshape(batch * width, *array.shape[2:]) for name, array in arrays.items()}
        sample_prompts(pointed, choice, sampling, draws, flat, table.image[chosen] * width + rank)
        return arrays


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A batch's JSON is thousands of small objects without cycles, all gone at its end; they would set the collector
    off again and again, to go through all that torch keeps, for a third of the time that everything but decoding takes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _decode(record: Record, facts: Mapping[str, Any], factor: int) -> tuple[np.ndarray, int]:
    """A sample's picture, as `decode` gives it."""
    try:
        return decode(record.image, record.extension, facts["width"], facts["height"], factor)
    except PictureError as error:
        message = f"{record.where}: {error.detail}; rebuild the shard"
        raise UnreadableSampleError(error.reason, message) from None


def _looks_sound(facts: Any) -> bool:
    """Whether a sample's own facts have the types that its readers take for granted."""
    try:
        return (
            facts["schema"] == SCHEMA_VERSION
            and type(facts["width"]) is int
            and type(facts["height"]) is int
            and min(facts["width"], facts["height"]) > 0
            and all(type(facts[name]) is str for name in ("source", "split", "group", "modality"))
            and all(type(text) is str for text in facts.get("captions", ()))
            and all(type(term) is str for term in facts.get("annotated_terms", ()))
            and all(type(facts.get(name, "")) in (str, type(None)) for name in ("anatomy", "laterality"))
            and all(type(value) is not dict for value in facts.get("labels", {}).values())
            and all(type(v) is str for value in facts.get("labels", {}).values() if type(value) is list for v in value)
            and type(facts.get("regions", [])) is list
            and all(type(region.get("attributes", {})) is dict for region in facts.get("regions", ()))
        )
    except _AMISS:
        return False


def _schema_fault(facts: Any, record: Record) -> UnreadableSampleError:
    other = f"{record.where}: a fact is of another type than texts can be made of; rebuild the shard"
    return _check(facts, record) or UnreadableSampleError("JSON breaks the schema", other)


def _check(facts: Any, record: Record) -> UnreadableSampleError | None:
    """What the full check says."""
    try:
        Sample.from_json(facts, record.key, record.where)
    except MedpclipError as error:
        return UnreadableSampleError("JSON breaks the schema", str(error))
    return None


def _examine(opened: Mapping[int, _Opened]) -> dict[int, UnreadableSampleError]:
    """Those whose facts break the schema, by place."""
    checked = {place: _check(o.facts, o.record) for place, o in opened.items()}
    return {place: fault for place, fault in checked.items() if fault is not None}


def _fill_in(
    places: list[Record | UnreadableSampleError],
    opened: dict[int, _Opened],
    broken: Mapping[int, UnreadableSampleError],
) -> list[int]:
    """Put the batch's next good record, with other random numbers, in each broken one's place; returns those places."""
    for place in broken:
        opened.pop(place, None)
    if not opened:
        raise MedpclipError(f"{broken[min(broken)]} (none of a batch of {len(places)} samples can be used)")
    for place in sorted(broken):
        good = min(opened, key=lambda other: (other - place) % len(places))
        record = opened[good].record
        places[place] = replace(record, stream=int(stream_keys(record.stream, place)[0]))
    return sorted(broken)
