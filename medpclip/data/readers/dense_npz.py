"""Dense arrays: images and label maps in NumPy files, of pictures or of volumes (the layouts of MedSAM).

Conventions. A file is one `npz` with both arrays, `image_array` and `mask_array`, and perhaps `spacing_array`; or, where
`masks` is given, an `npy` with the image alone, beside an `npy` of the same name with the labels in the folder `masks`,
relative to the image's own (as "../gts").

- Labels (height, width) go with an image (height, width), (height, width, 3) or (height, width, 4: alpha is dropped).
- Labels (slices, height, width) go with (slices, height, width) or (slices, height, width, 3 or 4): one sample for each
  slice, "z 000" on; `slices` says whether slices without a label count too.

uint8 is taken as it is; of other numbers `range` becomes 0 to 255. Without `range`, fractions are taken for 0 to 1, as
MedSAM's preprocessing leaves them, and whole numbers are mapped from the 0.5th to the 99.5th percentile of the file.

Numbers of the labels mean what `values` says; 0 is background unless it is listed there, and those in `ignore` are
void. Others are instances of what `unnamed` says, each one region of its own, or faults: MedSAM's files count objects
and organs without naming them. With `components` each connected component is a region of its own.

The spacing in millimetres is in the order that `spacing_order` says: "xyz" as SimpleITK gives it and MedSAM saves it, or
"zyx"; two numbers are "xy" or "yx" in the same way.

A file that can't be read counts as one image. Source: Ma et al., Segment anything in medical images, Nature
Communications 15:654, 2024, and the data description of the CVPR 2024 challenge "Segment Anything in Medical Images on
Laptop".
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medpclip.data.pictures import encode_picture
from medpclip.data.pictures.intensity import percentile_range, window_to_8_bits
from medpclip.data.readers.arrays import MOST_PIXELS, read_npy, read_npz
from medpclip.data.readers.base import Entry, Fault, RawSample, Reader, UnusableError
from medpclip.data.readers.files import list_files
from medpclip.data.readers.masks import ComponentOptions, add_label_map, whole_numbers
from medpclip.errors import MedpclipError
from medpclip.files import file_sha256

_PERCENTILES = (0.5, 99.5)
_ROUNDING = 1e-3  # by which resampled fractions may leave 0 to 1


@dataclass(frozen=True, kw_only=True)
class DenseNpzOptions(ComponentOptions):
    """Options of the reader "dense_npz".

    Attributes:
        images: folder or pattern of the files with the images.
        masks: folder of the labels' files, relative to the image's own, for `npy` files; without it, `npz` files.
        image_array: name of the image's array in an npz file, as the next two.
        mask_array: name.
        spacing_array: name; it may be missing.
        spacing_order: order of the numbers in it, "xyz" or "zyx".
        values: number -> the source's label; YAML wants the numbers quoted.
        unnamed: label of the numbers that are neither in `values` nor in `ignore`; without it they are faults.
        ignore: numbers that mean "not annotated".
        slices: whether slices without a label count ("all") or not ("annotated").
        range: the values that become black and white, see the module.
    """

    images: str = "."
    masks: str | None = None
    image_array: str = "imgs"
    mask_array: str = "gts"
    spacing_array: str = "spacing"
    spacing_order: Literal["xyz", "zyx"] = "xyz"
    values: dict[str, str] = field(default_factory=dict)
    unnamed: str | None = None
    ignore: list[int] = field(default_factory=list)
    slices: Literal["annotated", "all"] = "annotated"
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.values and self.unnamed is None:
            raise ValueError("give 'values', the label of each number, as {\"1\": liver}, or 'unnamed'")
        for number in self.values:
            if not number.isdecimal():
                raise ValueError(f"'values' has the key '{number}'; expected the labels' numbers")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"'range' is {list(self.range)}; expected the lower value first")


class DenseNpzReader(Reader[DenseNpzOptions]):
    """Samples from dense arrays; the conventions are in the module's description."""

    name = "dense_npz"
    batch = 1

    def __init__(self, source: Path, options: DenseNpzOptions) -> None:
        super().__init__(source, options)
        self._labels = {int(number): label for number, label in options.values.items()}

    def scan(self) -> list[Entry | Fault]:
        options = self.options
        if options.masks is None:
            found = list_files(self.source, options.images, "options.images", (".npz",))
            return [Entry(self.relative(path), None) for path in found]
        images = list_files(self.source, options.images, "options.images", (".npy",))
        pairs = {image: self._folder(image) / image.name for image in images}
        # A folder above both, as ".", finds the labels' files too.
        images = [image for image in images if image not in set(pairs.values())]
        out: list[Entry | Fault] = []
        for image in images:
            if pairs[image].is_file():
                out.append(Entry(self.relative(image), pairs[image]))
            else:
                out.append(Fault(self.relative(image), "", "image without an annotation", images=1))
        folders = {pairs[image].parent for image in images}
        there = {path for folder in folders if folder.is_dir() for path in folder.glob("*.npy") if path.name[0] != "."}
        for path in sorted(there - {pairs[image] for image in images}):
            out.append(Fault(self.relative(path), "", "annotation without an image", regions=self._count(path)))
        return out

    def samples(self, entry: Entry) -> Iterator[RawSample]:
        images, numbers, spacing = self._load(entry)
        file = self.relative(entry.annotation) if entry.annotation is not None else entry.image
        depth = len(numbers) if numbers.ndim == 3 else None
        pixels, intensity = self._picture_maker(images, entry.image, numbers, file)
        digest = file_sha256(self.source / entry.image)
        for index in range(depth or 1):
            sample = RawSample(spacing=spacing)
            self._add(sample, numbers if depth is None else numbers[index], file)
            if depth is not None:
                if self.options.slices == "annotated" and not sample.regions and not sample.faults:
                    continue
                sample.part = f"z {index:03d}"
                sample.volume = {"index": index, "count": depth, "axis": "z"}
            own = hashlib.sha256(f"{digest} {sample.part}".encode()).hexdigest() if sample.part else digest
            sample.picture = encode_picture(pixels(None if depth is None else index), own, intensity)
            yield sample

    def _load(self, entry: Entry) -> tuple[np.ndarray, np.ndarray, list[float] | None]:
        """Images, labels and spacing of a file, of shapes that fit together."""
        options = self.options
        path = self.source / entry.image
        file, spacing = entry.image, None
        if entry.annotation is None:
            names = (options.image_array, options.mask_array)
            arrays = read_npz(path, entry.image, names, (options.spacing_array,))
            images, stored = arrays[options.image_array], arrays[options.mask_array]
            spacing = self._spacing(arrays.get(options.spacing_array))
        else:
            file = self.relative(entry.annotation)
            images, stored = read_npy(path, entry.image), read_npy(entry.annotation, file)
        if images.dtype.kind not in "iuf":
            raise UnusableError(Fault(entry.image, "", "array holds objects instead of numbers", str(images.dtype), 1))
        numbers = self._numbers(stored, file)
        plain = images.shape[:-1] if images.ndim == numbers.ndim + 1 and images.shape[-1] in (1, 3, 4) else images.shape
        if plain != numbers.shape:
            detail = f"images {images.shape}, labels {numbers.shape}"
            reason = "mask is of another size than the image"
            raise UnusableError(Fault(file, "", reason, detail, images=1, regions=self._regions(numbers, file)))
        if images.ndim == numbers.ndim + 1:
            images = images[..., 0] if images.shape[-1] == 1 else images[..., :3]
        return images, numbers, spacing

    def _numbers(self, stored: np.ndarray, file: str) -> np.ndarray:
        if stored.ndim not in (2, 3) or not stored.size or stored.shape[-1] * stored.shape[-2] > MOST_PIXELS:
            raise UnusableError(Fault(file, "", "array is not a picture or volume", f"shape {stored.shape}", images=1))
        numbers = whole_numbers(stored)
        if numbers is None:
            reason = "mask has fractions where whole numbers were expected"
            raise UnusableError(Fault(file, "", reason, str(stored.dtype), images=1))
        return numbers

    def _picture_maker(self, images: np.ndarray, image: str, numbers: np.ndarray, file: str) -> tuple[Any, Any]:
        """A function from a slice's index (None for a picture) to its pixels, uint8, and how values became 8 bits."""
        if images.dtype == np.uint8 and self.options.range is None:
            return (lambda index: np.ascontiguousarray(images if index is None else images[index])), None
        bounds, percentiles = self.options.range, {}
        if bounds is None and images.dtype.kind == "f":
            bounds = (0.0, 1.0)
            low, high = float(images.min()), float(images.max())  # NaN fits nowhere
            if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
                reason, detail = "image's fractions are not between 0 and 1", f"{low} to {high}"
                raise UnusableError(Fault(image, "", reason, detail, 1, self._regions(numbers, file)))
        elif bounds is None:
            bounds = percentile_range(images, *_PERCENTILES)
            percentiles = {"percentiles": list(_PERCENTILES)}
        assert bounds is not None  # whole numbers are finite
        low, high = bounds
        intensity = {"window": [low, high], **percentiles, "bits": images.dtype.itemsize * 8}
        return (lambda index: window_to_8_bits(images if index is None else images[index], low, high)), intensity

    def _spacing(self, stored: np.ndarray | None) -> list[float] | None:
        """[sy, sx], None where the file states none that makes sense."""
        if stored is None or stored.dtype.kind not in "iuf" or stored.ndim != 1 or stored.size not in (2, 3):
            return None
        numbers = [float(number) for number in stored]
        sx, sy = numbers[:2] if self.options.spacing_order == "xyz" else numbers[:-3:-1]
        return [sy, sx] if all(np.isfinite(number) and number > 0 for number in (sx, sy)) else None

    def _add(self, sample: RawSample, numbers: np.ndarray, file: str) -> None:
        options = self.options
        add_label_map(sample, numbers, self._labels, options.ignore, options.unnamed, file, options)

    def _regions(self, numbers: np.ndarray, file: str) -> int:
        """How many regions labels hold, over all slices."""
        sample = RawSample()
        for plane in numbers if numbers.ndim == 3 else [numbers]:
            self._add(sample, plane, file)
        return len(sample.regions) + sum(fault.regions for fault in sample.faults)

    def _count(self, path: Path) -> int:
        """How many regions a file of labels without an image holds."""
        try:
            file = self.relative(path)
            return self._regions(self._numbers(read_npy(path, file), file), file)
        except UnusableError as unusable:
            return unusable.fault.regions

    def _folder(self, image: Path) -> Path:
        """The folder of an image's labels."""
        assert self.options.masks is not None
        folder = Path(os.path.normpath(image.parent / self.options.masks))
        if not folder.is_relative_to(self.source):
            raise MedpclipError(
                f"key 'options.masks' is '{self.options.masks}', which leads out of the source; give a folder inside"
            )
        return folder
