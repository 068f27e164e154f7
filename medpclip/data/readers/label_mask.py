"""Label masks: for each image one mask of the same size, whose numbers say what each pixel shows.

Conventions. `read` says what a pixel's number is: "index" takes the stored number (of a palette PNG the index, whatever
its colour), "threshold" makes 1 of brightness >= `threshold` and 0 of the rest (for masks that went through lossy JPEG,
or that write 255 for one). `values` gives the source's label for each number; 0 is background unless it is listed, and
numbers in `ignore` are void. A number that is none of these is quarantined.

With `components` each connected component is a region of its own, and those of fewer than `min_pixels` are specks,
which are quarantined with a count; without it each number gives one region.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from medpclip.data.readers.base import Entry, Fault, RawRegion, RawSample, Reader
from medpclip.data.readers.files import IMAGE_SUFFIXES, list_files, list_images, pair, stem_below
from medpclip.data.readers.masks import read_grey, read_indices
from medpclip.data.schema import encode_mask


@dataclass(frozen=True)
class LabelMaskOptions:
    """Options of the reader "label_mask".

    Attributes:
        values: number in the mask -> the source's label; YAML wants the numbers quoted.
        images: folder or pattern of the images.
        masks: folder or pattern of the masks.
        image_suffix: what an image's name has at its end (before the extension) and its mask's hasn't.
        mask_suffix: what a mask's name has at its end and its image's hasn't, as "_mask".
        read: "index" or "threshold", see the module.
        threshold: brightness from which a pixel counts, for `read: threshold`.
        ignore: numbers that mean "not annotated".
        components: whether each connected component is a region of its own.
        connectivity: whether pixels that touch by a corner belong together (8) or not (4).
        min_pixels: the smallest component that isn't a speck.
    """

    values: dict[str, str]
    images: str = "images"
    masks: str = "masks"
    image_suffix: str = ""
    mask_suffix: str = ""
    read: Literal["index", "threshold"] = "index"
    threshold: int = 128
    ignore: list[int] = field(default_factory=list)
    components: bool = False
    connectivity: Literal[4, 8] = 8
    min_pixels: int = 1

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("'values' is empty; give the label of each number, as {\"1\": nerve}")
        for number in self.values:
            if not number.isdecimal():
                raise ValueError(f"'values' has the key '{number}'; expected the mask's numbers")
        if self.read == "threshold" and set(self.values) != {"1"}:
            raise ValueError("'read: threshold' gives only the number 1; 'values' must be {\"1\": LABEL}")
        if self.min_pixels < 1:
            raise ValueError(f"'min_pixels' is {self.min_pixels}; expected 1 or more")


class LabelMaskReader(Reader[LabelMaskOptions]):
    """Regions from label masks; the conventions are in the module's description."""

    name = "label_mask"

    def scan(self) -> list[Entry | Fault]:
        options = self.options
        masks = list_files(self.source, options.masks, "options.masks", IMAGE_SUFFIXES)
        images, faults = list_images(self.source, options.images, "options.images")
        shared = set(images) & set(masks)  # both may lie in one folder, where only the suffix tells them apart
        masks = [path for path in masks if path not in shared or path.stem.endswith(options.mask_suffix)]
        images = [path for path in images if path not in set(masks)]
        image_key = stem_below(self.source, options.images, options.image_suffix)
        mask_key = stem_below(self.source, options.masks, options.mask_suffix)
        return [*faults, *pair(self.source, images, masks, image_key, mask_key, self.count)]

    def read(self, entry: Entry) -> RawSample:
        path: Path = entry.annotation
        file = self.relative(path)
        if self.options.read == "index":
            numbers = read_indices(path, file)
        else:
            numbers = (read_grey(path, file) >= self.options.threshold).astype(np.int64)
        sample = RawSample()
        for value in np.unique(numbers).tolist():
            label = self.options.values.get(str(value))
            if label is not None:
                self._add(sample, numbers == value, label, file, f"value {value}")
            elif value != 0 and value not in self.options.ignore:
                reason = "number in the mask has no label in the recipe"
                sample.faults.append(Fault(file, f"value {value}", reason, regions=1))
        return sample

    def _add(self, sample: RawSample, mask: np.ndarray, label: str, file: str, key: str) -> None:
        if not self.options.components:
            sample.regions.append(RawRegion(label, file, key, rle=encode_mask(mask)))
            return
        parts, specks = split_components(mask, self.options.connectivity, self.options.min_pixels)
        for i, part in enumerate(parts):
            sample.regions.append(RawRegion(label, file, f"{key}, component {i}", rle=encode_mask(part)))
        if specks:
            detail = f"{specks} of fewer than {self.options.min_pixels} pixels"
            sample.faults.append(Fault(file, key, "component is smaller than min_pixels", detail, regions=specks))


def split_components(mask: np.ndarray, connectivity: int, min_pixels: int) -> tuple[list[np.ndarray], int]:
    """The components of a bool mask (height, width) in scan order, and how many below `min_pixels` were left out."""
    from scipy import ndimage

    numbers, count = ndimage.label(mask, structure=ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    kept = [numbers == i + 1 for i, size in enumerate(sizes) if size >= min_pixels]
    return kept, count - len(kept)
