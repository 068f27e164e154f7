"""Sample schema 1: what one image, its regions and its texts look like in a shard.

The JSON beside an image in a shard is `Sample.to_json()`. Habits are COCO's: pixel coordinates with the origin at the
image's top left corner, `bbox` as [x, y, width, height], masks as COCO run lengths (column-major, compressed counts).
Keys this version doesn't know survive a round trip in `extra`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from medpclip.errors import MedpclipError

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")


@dataclass
class Region:
    """One annotated area of an image. At least one of `bbox`, `segmentation` and `points` is given.

    Attributes:
        id: number of the region, unique within its image.
        category: the lexicon term for what is there, or the recipe's own word where the lexicon has none.
        bbox: [x, y, width, height] in pixels, inside the image, width and height > 0.
        segmentation: COCO run lengths {"size": [height, width], "counts": str}.
        points: [[x, y], ...] in pixels; a point lies inside the region.
        iscrowd: 1 where one annotation covers a group of objects (COCO).
        source_format: the reader that found it, as "voc" or "label_mask".
        attributes: what else is stated of it, as {"side": "left"}; values are strings or numbers.
    """

    id: int
    category: str
    bbox: list[float] | None = None
    segmentation: dict[str, Any] | None = None
    points: list[list[float]] | None = None
    iscrowd: int = 0
    source_format: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def mask(self) -> np.ndarray | None:
        """The decoded mask, bool (height, width), or None where the region has none.

        Raises:
            MedpclipError: broken run lengths, or ones that cover no pixel.
        """
        if self.segmentation is None:
            return None
        try:
            height, width = self.segmentation["size"]
            runs = run_lengths(self.segmentation["counts"], height * width)
        except (KeyError, TypeError, ValueError) as error:
            raise MedpclipError(f"region {self.id} ({self.category}): {error}; rebuild the shard") from None
        # Runs of 0 and 1 in turn, down the columns.
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


@dataclass
class Sample:
    """One 2-D image with what is known of it. Unknown scalars are None, never a guess.

    Attributes:
        key: the member name in the shard: a salted hash, never the name of the source's file.
        group: salted hash of the patient or study (of the image, where neither is known); no group is in two splits.
        spacing: [sy, sx] millimetres per pixel.
        volume: {"id", "index", "count", "axis"} for a slice of a volume.
        intensity: how the source's values became 8 bits, as {"window": [lo, hi], "bits": 12}.
        labels: image-level facts, as {"finding": "pneumonia"}; values are strings, numbers, or lists of strings that
            all hold, of which there may be none.
        annotated_terms: the terms that were annotated exhaustively in this image, so that absence means absence.
    """

    key: str
    source: str
    split: str
    group: str
    modality: str
    width: int
    height: int
    anatomy: str | None = None
    spacing: list[float] | None = None
    volume: dict[str, Any] | None = None
    intensity: dict[str, Any] | None = None
    captions: list[str] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    annotated_terms: list[str] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON object for a shard, in a fixed key order; `key` is the member's name and is left out."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("key", "regions", "extra")}
        regions = [{f.name: getattr(r, f.name) for f in fields(r) if f.name != "extra"} | r.extra for r in self.regions]
        return {"schema": SCHEMA_VERSION} | plain | {"regions": regions} | self.extra

    @classmethod
    def from_json(cls, data: Any, key: str, where: str) -> Sample:
        """Read and validate the JSON of a shard.

        Args:
            data: the parsed JSON.
            key: the member's name.
            where: how error messages name the place, as "train-000000.tar: 0f3a".

        Raises:
            MedpclipError: naming `where`, the key at fault and what was expected.
        """
        if not isinstance(data, Mapping):
            raise MedpclipError(f"{where}: the JSON is {_kind(data)}, not an object; rebuild the shard")
        version = data.get("schema")
        if version != SCHEMA_VERSION:
            raise MedpclipError(
                f"{where}: schema is {version!r}, this medpclip reads {SCHEMA_VERSION}; rebuild the shards or update"
            )
        known = {f.name for f in fields(cls)} - {"key", "extra"}
        given = {k: v for k, v in data.items() if k in known}
        missing = {"source", "split", "group", "modality", "width", "height"} - given.keys()
        if missing:
            raise MedpclipError(f"{where}: key {min(missing)!r} is missing; rebuild the shard")
        extra = {k: v for k, v in data.items() if k not in known and k != "schema"}
        regions = given.pop("regions", [])
        if not isinstance(regions, list):
            raise MedpclipError(f"{where}: key 'regions' is {_kind(regions)}, not a list; rebuild the shard")
        sample = cls(
            key=key, **given, extra=extra, regions=[_region_from_json(r, i, where) for i, r in enumerate(regions)]
        )
        sample.validate(where)
        return sample

    def validate(self, where: str) -> None:
        """Raise `MedpclipError` at the first thing that breaks the schema."""
        for name in ("source", "split", "group", "modality"):
            _expect(isinstance(getattr(self, name), str), where, name, getattr(self, name), "a string")
        _expect(isinstance(self.anatomy, (str, type(None))), where, "anatomy", self.anatomy, "a string or null")
        _expect(self.split in SPLITS, where, "split", self.split, "one of " + ", ".join(SPLITS))
        for name in ("width", "height"):
            value = getattr(self, name)
            _expect(_integer(value) and value > 0, where, name, value, "a positive integer")
        spacing = self.spacing is None or (_numbers(self.spacing, 2) and min(self.spacing) > 0)
        _expect(spacing, where, "spacing", self.spacing, "[sy, sx] in millimetres, or null")
        for name in ("volume", "intensity"):
            value = getattr(self, name)
            _expect(value is None or _is_object(value), where, name, value, "an object or null")
        for name in ("captions", "annotated_terms"):
            value = getattr(self, name)
            _expect(_strings(value), where, name, value, "a list of strings")
        single = {k: v for k, v in self.labels.items() if not _strings(v)} if _is_object(self.labels) else None
        _expect(_facts(single), where, "labels", self.labels, "an object of strings, numbers and lists of strings")
        _expect_no_shadow(self.extra, Sample, where, "extra")
        _expect(isinstance(self.regions, list), where, "regions", self.regions, "a list")
        seen: set[int] = set()
        for i, region in enumerate(self.regions):
            _expect(_integer(region.id), where, f"regions[{i}].id", region.id, "an integer")
            _expect(region.id not in seen, where, f"regions[{i}].id", region.id, "unique within the image")
            seen.add(region.id)
            _expect(region.iscrowd in (0, 1), where, f"regions[{i}].iscrowd", region.iscrowd, "0 or 1")
            name, value = f"regions[{i}].attributes", region.attributes
            _expect(_facts(value), where, name, value, "an object of strings and numbers")
            _expect_no_shadow(region.extra, Region, where, f"regions[{i}].extra")
            problem = region_problem(region, self.width, self.height)
            if problem:
                raise MedpclipError(f"{where}: regions[{i}]: {problem}; rebuild the shard")


def region_problem(region: Region, width: int, height: int) -> str | None:
    """What is wrong with a region of a `width` x `height` image, or None.

    Readers quarantine a region with this reason; the validator raises it. The words before the first ": " are the kind
    of problem and never quote the annotation, so they may be counted in shareable files; the rest is private detail.
    """
    if not isinstance(region.category, str) or not region.category:
        return f"category is not a term: {region.category!r}"
    if region.bbox is None and region.segmentation is None and not region.points:
        return "has neither box, mask nor points"
    if region.bbox is not None:
        if not _numbers(region.bbox, 4):
            return f"box is not four finite numbers: {region.bbox!r}, expected [x, y, width, height]"
        x, y, w, h = region.bbox
        if w <= 0 or h <= 0:
            return f"box is degenerate: {region.bbox}, width and height must be > 0"
        # Half a pixel of slack: published boxes are often rounded outwards.
        if x < -0.5 or y < -0.5 or x + w > width + 0.5 or y + h > height + 0.5:
            return f"box reaches outside the image: {region.bbox}, the image is {width}x{height}"
    if region.segmentation is not None:
        if not isinstance(region.segmentation, Mapping) or not {"size", "counts"} <= region.segmentation.keys():
            return "mask is not run lengths: expected 'size' and 'counts'"
        size = region.segmentation["size"]
        if not _numbers(size, 2) or list(size) != [height, width]:
            return f"mask is of another size than the image: {size!r}, expected [{height}, {width}]"
        try:
            run_lengths(region.segmentation["counts"], height * width)
        except ValueError as error:
            return str(error)
    if not isinstance(region.points, (list, type(None))):
        return f"points are not a list: {region.points!r}, expected [[x, y], ...]"
    for point in region.points or []:
        if not _numbers(point, 2):
            return f"point is not two finite numbers: {point!r}, expected [x, y]"
        if not (0 <= point[0] <= width and 0 <= point[1] <= height):
            return f"point lies outside the image: {point}, the image is {width}x{height}"
    return None


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO run lengths with string counts of a bool or 0/1 mask (height, width)."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def run_lengths(counts: Any, pixels: int) -> np.ndarray:
    """A compressed COCO string as run lengths, int64 (N,): of 0, of 1, of 0, ... in turn. Checked to the last character.

    pycocotools trusts what it is given, and makes masks of memory that isn't its own from a broken string. The format
    (its C source, rleToString): five bits per character, lowest first, from "0" up; the sixth bit says that more
    follow, the last one's fifth bit is the sign; from the fourth number on, the difference to the number two before.

    Args:
        counts: the string.
        pixels: of the mask.

    Raises:
        ValueError: "reason: detail" as `region_problem` has it: not such a string, of another size, or without a pixel.
    """
    if not isinstance(counts, str):
        raise ValueError("mask is not run lengths: expected 'counts' as a compressed string")
    # Half a surrogate pair, which JSON may hold, has no code in UTF-32; no character beyond ASCII is one of the 64.
    bits = np.frombuffer(counts.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not counts.isascii() or not bits.size or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise ValueError(f"run lengths are broken: not a compressed string, or cut off: {counts[:20]!r}")
    last = np.flatnonzero(bits < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    places = 5 * (np.arange(bits.size) - np.repeat(first, last - first + 1))
    if places.max() > 30:
        raise ValueError("run lengths are broken: a number is too long")
    runs = np.add.reduceat((bits & 31) << places, first) - np.where(bits[last] & 16, 32 << places[last], 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    if runs.min() < 0 or runs.sum() != pixels:
        raise ValueError(f"run lengths are broken: they cover {runs.sum()} pixels of {pixels}")
    if not runs[1::2].any():
        raise ValueError("mask is empty")
    return runs


def rle_bytes(segmentation: Mapping[str, Any]) -> dict[str, Any]:
    """A segmentation as pycocotools wants it: counts as bytes."""
    return {"size": list(segmentation["size"]), "counts": segmentation["counts"].encode("ascii")}


def _region_from_json(data: Any, index: int, where: str) -> Region:
    if not isinstance(data, Mapping):
        raise MedpclipError(f"{where}: regions[{index}] is {_kind(data)}, not an object; rebuild the shard")
    known = {f.name for f in fields(Region)} - {"extra"}
    for name in ("id", "category"):
        if name not in data:
            raise MedpclipError(f"{where}: regions[{index}]: key {name!r} is missing; rebuild the shard")
    given = {k: v for k, v in data.items() if k in known}
    return Region(**given, extra={k: v for k, v in data.items() if k not in known})


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _facts(value: Any) -> bool:
    """Names with strings or finite numbers."""
    return _is_object(value) and all(
        isinstance(v, str) or (isinstance(v, (int, float)) and _finite(v)) for v in value.values()
    )


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _expect_no_shadow(extra: Any, cls: type[Region] | type[Sample], where: str, name: str) -> None:
    """A key in `extra` that the schema has itself would replace the schema's value in the JSON."""
    _expect(_is_object(extra), where, name, extra, "an object")
    if extra:
        known = {f.name for f in fields(cls)} - {"key", "extra"} | ({"schema"} if cls is Sample else set())
        _expect(not known & extra.keys(), where, name, extra, "an object without the schema's own keys")


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == count
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and _finite(v) for v in value)
    )


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's whole numbers may be larger than any float
        return False


def _expect(condition: bool, where: str, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise MedpclipError(f"{where}: key {name!r} is {value!r}, expected {expected}; rebuild the shard")


def _kind(value: Any) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), f"a {type(value).__name__}")
