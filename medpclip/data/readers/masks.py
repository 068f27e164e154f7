"""Mask files as numbers or colours, and arrays of numbers as regions, for the readers of masks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageChops

from medpclip.data.pictures import DECODING_ERRORS, DEEP_MODES, ORIENTATION_TAG
from medpclip.data.readers.base import Fault, RawRegion, RawSample, UnusableError

_ONE_CHANNEL = ("1", "L", "P", *DEEP_MODES)
_TABLE_SIZE = 1 << 20  # numbers below it are counted in a table; sorting them would take far longer
_FEW = 20  # up to so many numbers, looking for one after the other is faster than for all at once


@dataclass(frozen=True, kw_only=True)
class ComponentOptions:
    """Options that readers of masks share.

    Attributes:
        components: whether each connected component is a region of its own.
        connectivity: whether pixels that touch by a corner belong together (8) or not (4).
        min_pixels: the smallest component that isn't a speck; specks are quarantined, with their count.
    """

    components: bool = False
    connectivity: Literal[4, 8] = 8
    min_pixels: int = 1

    def __post_init__(self) -> None:
        if self.min_pixels < 1:
            raise ValueError(f"'min_pixels' is {self.min_pixels}; expected 1 or more")


# Files


def read_indices(path: Path, file: str) -> np.ndarray:
    """The stored numbers of a one-channel mask, integers (height, width): of a palette image its indices.

    Raises:
        UnusableError: the file can't be decoded, or holds colours or fractions.
    """
    picture = _open(path, file)
    if picture.mode not in _ONE_CHANNEL:
        reason = "mask has colours where numbers were expected"
        raise UnusableError(Fault(file, "", reason, f"mode {picture.mode}", images=1))
    numbers = whole_numbers(_numbers(picture))
    if numbers is None:
        raise UnusableError(Fault(file, "", "mask has fractions where whole numbers were expected", images=1))
    return numbers


def read_grey(path: Path, file: str) -> np.ndarray:
    """The brightness of a mask, (height, width): of a palette or colour image the largest of its channels.

    Alpha is dropped. Values of more than 8 bits stay as they are.

    Raises:
        UnusableError: the file can't be decoded.
    """
    picture = _open(path, file)
    if picture.mode in ("1", "LA"):
        picture = picture.convert("L")
    elif picture.mode not in _ONE_CHANNEL or picture.mode == "P":
        red, green, blue = picture.convert("RGB").split()
        return np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue))
    return _numbers(picture)


def read_colours(path: Path, file: str) -> np.ndarray:
    """The colours of a mask, uint8 (height, width, 3), whether it has a palette, channels or grey; alpha is dropped.

    Raises:
        UnusableError: the file can't be decoded, or holds numbers of more than 8 bits.
    """
    picture = _open(path, file)
    if picture.mode in DEEP_MODES:
        reason = "mask has numbers where colours were expected"
        raise UnusableError(Fault(file, "", reason, f"mode {picture.mode}", images=1))
    return np.asarray(picture.convert("RGB"))


def read_alpha(path: Path, file: str) -> np.ndarray:
    """The opacity of a mask, uint8 (height, width).

    Raises:
        UnusableError: the file can't be decoded, or has no alpha channel.
    """
    picture = _open(path, file)
    if not picture.has_transparency_data:
        raise UnusableError(Fault(file, "", "mask has no alpha channel", f"mode {picture.mode}", images=1))
    return np.asarray(picture.convert("RGBA"))[:, :, 3]


def whole_numbers(values: np.ndarray) -> np.ndarray | None:
    """An array of a mask as integers; None where it holds fractions, or no numbers at all."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = values.astype(np.int64)
        return rounded if np.array_equal(rounded, values) else None
    return values if values.dtype.kind in "iu" else None


def _numbers(picture: Image.Image) -> np.ndarray:
    values = np.asarray(picture)
    return values.astype(np.uint8) if values.dtype == bool else values


def _open(path: Path, file: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            if picture.getexif().get(ORIENTATION_TAG, 1) in range(2, 9):
                raise UnusableError(Fault(file, "", "mask is turned by its EXIF orientation", images=1))
            if getattr(picture, "n_frames", 1) > 1:
                raise UnusableError(Fault(file, "", "mask file has several frames", images=1))
            picture.load()
            return picture
    except DECODING_ERRORS as error:
        raise UnusableError(Fault(file, "", "mask file can't be decoded", str(error), images=1)) from None


# Regions


def add_label_map(
    sample: RawSample,
    numbers: np.ndarray,
    labels: Mapping[int, str],
    ignore: Collection[int],
    unnamed: str | None,
    file: str,
    options: ComponentOptions,
) -> None:
    """Add the regions of a label map to a sample: of each number that `labels` names, and of unknown ones.

    Args:
        sample: gets regions and faults.
        numbers: integers (height, width). 0 is background unless `labels` names it.
        labels: number -> the source's label.
        ignore: numbers that mean nothing.
        unnamed: the label of all other numbers, each of which is an instance; None: they are faults.
        file: the mask's file, as faults name it.
        options: whether components are regions of their own.
    """
    for value, corner, part in each_value(numbers, {0, *ignore} - labels.keys()):
        key = f"value {value}"
        label = labels.get(value)
        if label is None and unnamed is None:
            reason = "number in the mask has no label in the recipe"
            sample.faults.append(Fault(file, key, reason, regions=1))
        else:
            add_mask(sample, part, corner, numbers.shape, label or str(unnamed), file, key, options)


def add_mask(
    sample: RawSample,
    mask: np.ndarray,
    corner: tuple[int, int],
    size: tuple[int, ...],
    label: str,
    file: str,
    key: str,
    options: ComponentOptions,
) -> None:
    """Add one mask to a sample, as one region or, with `options.components`, as one for each component.

    Args:
        sample: gets regions and faults.
        mask: bool (h, w), the whole picture or a part of it.
        corner: (top, left) of the part in the picture.
        size: (height, width) of the picture.
        label: the source's.
        file: the mask's file, and
        key: where in it, as regions and faults name them.
        options: whether components are regions of their own.
    """
    if not options.components:
        sample.regions.append(RawRegion(label, file, key, rle=encode_part(mask, corner, size)))
        return
    parts, specks = crop_components(mask, options.connectivity, options.min_pixels)
    for i, (inner, part) in enumerate(parts):
        rle = encode_part(part, (corner[0] + inner[0], corner[1] + inner[1]), size)
        sample.regions.append(RawRegion(label, file, ", ".join(filter(None, (key, f"component {i}"))), rle=rle))
    if specks:
        detail = f"{specks} of fewer than {options.min_pixels} pixels"
        sample.faults.append(Fault(file, key, "component is smaller than min_pixels", detail, regions=specks))


def each_value(numbers: np.ndarray, skip: Collection[int] = ()) -> Iterator[tuple[int, tuple[int, int], np.ndarray]]:
    """The numbers of a label map in rising order, each with the corner (top, left) and the mask of its bounding box.

    Args:
        numbers: integers (height, width).
        skip: numbers to leave out.
    """
    values = [value for value in _distinct(numbers).tolist() if value not in skip]
    if len(values) <= _FEW:
        for value in values:
            mask = numbers == value
            box = bounding_box(mask)
            yield value, (box[0].start, box[1].start), mask[box]
        return
    from scipy import ndimage

    if _countable(numbers):
        table = np.zeros(int(numbers.max()) + 1, np.int32)
        table[values] = np.arange(1, len(values) + 1)
        ranks = table[numbers]
    else:
        ranks = np.searchsorted(values, numbers).astype(np.int32) + 1
        ranks[np.isin(numbers, values, invert=True)] = 0
    for rank, (value, box) in enumerate(zip(values, ndimage.find_objects(ranks), strict=True), 1):
        yield value, (box[0].start, box[1].start), ranks[box] == rank


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around what is true in a mask (height, width); empty where nothing is."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    across = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(mask[across].any(axis=0))
    return across, slice(int(columns[0]), int(columns[-1]) + 1)


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """The numbers of an array (height, width), rising."""
    if numbers.dtype == np.uint8:
        return np.flatnonzero(Image.fromarray(numbers).histogram())
    return np.flatnonzero(np.bincount(numbers.ravel())) if _countable(numbers) else np.unique(numbers)


def _countable(numbers: np.ndarray) -> bool:
    """Whether numbers index a table of bearable size."""
    return bool(numbers.size and numbers.min() >= 0 and numbers.max() < _TABLE_SIZE)


def crop_components(
    mask: np.ndarray, connectivity: int, min_pixels: int
) -> tuple[list[tuple[tuple[int, int], np.ndarray]], int]:
    """The components of a bool mask (height, width), and how many of fewer than `min_pixels` pixels were left out.

    Each component, in scan order, is the corner (top, left) and the mask of its bounding box.
    """
    from scipy import ndimage

    numbers, count = ndimage.label(mask, structure=ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    kept = []
    for number, (box, size) in enumerate(zip(ndimage.find_objects(numbers), sizes, strict=True), 1):
        if size >= min_pixels:
            kept.append(((box[0].start, box[1].start), numbers[box] == number))
    return kept, count - len(kept)


def encode_part(part: np.ndarray, corner: tuple[int, int], size: tuple[int, ...]) -> dict[str, Any]:
    """COCO run lengths of a picture that is empty but for one part: what `encode_mask` gives for the whole.

    Takes time by the part's pixels, not the picture's, so that a thousand cells of a large picture cost little.

    Args:
        part: bool or 0/1 (h, w).
        corner: (top, left) of the part.
        size: (height, width) of the picture.
    """
    height, width = size
    box = bounding_box(part)
    part, top, left = part[box], corner[0] + box[0].start, corner[1] + box[1].start
    rows, columns = part.shape
    assert 0 <= top <= height - rows and 0 <= left <= width - columns, (part.shape, corner, size)
    framed = np.zeros((columns, rows + 2), bool)  # a column in a row, with an empty pixel at either end
    framed[:, 1:-1] = part.T
    column, row = np.divmod(np.flatnonzero(framed[:, 1:] != framed[:, :-1]), rows + 1)
    return encode_edges((column + left) * height + top + row, height, width)


def encode_edges(edges: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """COCO run lengths from where runs of a mask begin and end, in turn, counted down the columns.

    Args:
        edges: integers (2 n,), rising, each at most height * width. Where a run begins at the end of the one before (at
            the head of the next column, say), they are one.
        height: of the picture.
        width: of the picture.
    """
    from pycocotools import mask as coco_mask

    joined = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    pixels = height * width
    ends = [pixels] if not edges.size or edges[-1] != pixels else []
    counts = np.diff(np.concatenate([[0], edges, ends])).astype(np.uint32)
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
