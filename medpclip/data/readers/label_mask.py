"""Label masks: for each image one mask of the same size, whose numbers or colours say what each pixel shows.

Conventions. `read` says what a pixel's number is:

- "index" takes the stored number: of a palette image the index, whatever its colour.
- "threshold" makes 1 of brightness >= `threshold` and 0 of the rest, for masks that went through lossy JPEG, or that
  write 255 for one. A mask in which something is drawn, but nothing so bright, is quarantined.
- "colour" looks the pixel's colour up in `colours`, of a palette image that which the palette shows. With `tolerance`,
  for masks that went through lossy JPEG, a pixel takes the nearest colour, black and those of `ignore` included, if
  none of red, green and blue differs by more; the others belong to nothing, as the blends along edges do. If they are
  more than `stray_share` of the mask, something that isn't in `colours` was drawn, and is quarantined.

`values` (or `colours`) gives the source's label for each number (or colour); 0 (black) is background unless it is
listed, and those in `ignore` are void. Any other number is an instance of what `unnamed` says (each number one
object), or is quarantined; any other colour is quarantined.

With `components` each connected component is a region of its own, and those of fewer than `min_pixels` are specks,
which are quarantined with a count; without it each number or colour gives one region.

A mask belongs to the image of the same path below its folder; where `images` or `masks` is a pattern, to that of the
same name, and where several have that name, to that of the same folders, those aside that the pattern names in full
("train/images/1.png" and "train/masks/1.png" with "*/images/*" and "*/masks/*").
Several mask files per image, as one per class, are read by "instance_mask".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from medpclip.data.readers.base import Entry, Fault, ImageReader, RawSample
from medpclip.data.readers.files import IMAGE_SUFFIXES, list_files, list_images, pair
from medpclip.data.readers.masks import (
    ComponentOptions,
    add_label_map,
    read_colours,
    read_grey,
    read_indices,
)
from medpclip.data.readers.text_files import parallel_keys

_BLACK = (0, 0, 0)
_STRAY = -1  # where no colour fits
_LOSSY = (".jpg", ".jpeg", ".webp")
_SHOWN = 5  # so many unknown colours are named in a fault's detail


@dataclass(frozen=True, kw_only=True)
class LabelMaskOptions(ComponentOptions):
    """Options of the reader "label_mask".

    Attributes:
        values: number in the mask -> the source's label; YAML wants the numbers quoted.
        colours: colour in the mask, as "255,0,0" or "#ff0000" -> the source's label, for `read: colour`.
        unnamed: label of the numbers that are neither in `values` nor in `ignore`; each is an object of its own.
        images: folder or pattern of the images.
        masks: folder or pattern of the masks.
        image_suffix: what an image's name has at its end (before the extension) and its mask's hasn't; a list where
            names end differently, as [_training, _test].
        mask_suffix: what a mask's name has at its end and its image's hasn't, as "_mask"; or a list.
        read: "index", "threshold" or "colour", see the module.
        threshold: brightness from which a pixel counts, for `read: threshold`.
        tolerance: by how much a channel may differ from the colour's, for `read: colour`.
        stray_share: share of pixels that may fit no colour, for `tolerance`.
        ignore: numbers or colours that mean "not annotated".
    """

    values: dict[str, str] = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)
    unnamed: str | None = None
    images: str = "images"
    masks: str = "masks"
    image_suffix: str | list[str] = ""
    mask_suffix: str | list[str] = ""
    read: Literal["index", "threshold", "colour"] = "index"
    threshold: int = 128
    tolerance: int = 0
    stray_share: float = 0.01
    ignore: list[int | str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.read == "colour":
            self._check_colours()
        else:
            self._check_numbers()

    def _check_colours(self) -> None:
        if not self.colours:
            raise ValueError("'colours' is empty; give the label of each colour, as {\"255,0,0\": tumour}")
        if self.values or self.unnamed is not None:
            raise ValueError("'read: colour' takes 'colours'; leave out 'values' and 'unnamed'")
        if not 0 <= self.tolerance < 256 or not 0 <= self.stray_share <= 1:
            raise ValueError("'tolerance' must be within 0 and 255, and 'stray_share' within 0 and 1")
        listed = [parse_colour(text) for text in (*self.colours, *self.ignore)]
        if len(set(listed)) < len(listed):
            raise ValueError("'colours' and 'ignore' state a colour twice; keep one")

    def _check_numbers(self) -> None:
        if self.colours:
            raise ValueError("'colours' needs 'read: colour'")
        if not self.values and self.unnamed is None:
            raise ValueError("'values' is empty; give the label of each number, as {\"1\": nerve}, or 'unnamed'")
        for number in self.values:
            if not number.isdecimal():
                raise ValueError(f"'values' has the key '{number}'; expected the mask's numbers")
        for void in self.ignore:
            if not str(void).isdecimal():
                raise ValueError(f"'ignore' has '{void}', which is no number; colours need 'read: colour'")
        if self.read == "threshold" and set(self.values) != {"1"}:
            raise ValueError("'read: threshold' gives only the number 1; 'values' must be {\"1\": LABEL}")


class LabelMaskReader(ImageReader[LabelMaskOptions]):
    """Regions from label masks; the conventions are in the module's description."""

    name = "label_mask"

    def __init__(self, source: Path, options: LabelMaskOptions) -> None:
        super().__init__(source, options)
        self._labels = {int(number): label for number, label in options.values.items()}
        self._void = {int(number) for number in options.ignore if options.read != "colour"}
        self._table: list[tuple[tuple[int, int, int], int]] = []
        if options.read == "colour":
            self._fill_table()

    def scan(self) -> list[Entry | Fault]:
        options = self.options
        masks = list_files(self.source, options.masks, "options.masks", IMAGE_SUFFIXES)
        images, faults = list_images(self.source, options.images, "options.images")
        shared = set(images) & set(masks)  # both may lie in one folder, where only the suffix tells them apart
        ends = (options.mask_suffix,) if isinstance(options.mask_suffix, str) else tuple(options.mask_suffix)
        masks = [path for path in masks if path not in shared or path.stem.endswith(ends)]
        images = [path for path in images if path not in set(masks)]
        left, right = (options.images, images, options.image_suffix), (options.masks, masks, options.mask_suffix)
        image_key, mask_key = parallel_keys(self.source, left, right)
        return [*faults, *pair(self.source, images, masks, image_key, mask_key, self.count)]

    def read(self, entry: Entry) -> RawSample:
        path: Path = entry.annotation
        file = self.relative(path)
        options = self.options
        sample = RawSample()
        if options.read == "index":
            numbers = read_indices(path, file)
        elif options.read == "threshold":
            grey = read_grey(path, file)
            numbers = (grey >= options.threshold).astype(np.uint8)
            # A lossy file has such traces where nothing was drawn; in others something was, as with 1 for "inside".
            if not numbers.any() and grey.any() and path.suffix.lower() not in _LOSSY:
                reason, detail = "nothing in the mask reaches the threshold", f"its largest value is {grey.max()}"
                sample.faults.append(Fault(file, "", reason, detail, regions=1))
        else:
            numbers = self._look_up(read_colours(path, file), sample, file)
        add_label_map(sample, numbers, self._labels, self._void, options.unnamed, file, options)
        return sample

    def _fill_table(self) -> None:
        """The colours with their numbers: 0 is background and void, the others are counted from 1."""
        for number, (text, label) in enumerate(self.options.colours.items(), 1):
            self._table.append((parse_colour(text), number))
            self._labels[number] = label
        blank = {_BLACK, *map(parse_colour, self.options.ignore)} - {colour for colour, _ in self._table}
        self._table += [(colour, 0) for colour in sorted(blank)]

    def _look_up(self, colours: np.ndarray, sample: RawSample, file: str) -> np.ndarray:
        """The number of each pixel's colour, (height, width); what fits no colour is 0 and, if it is much, a fault."""
        options = self.options
        numbers = _exact(colours, self._table)
        stray = np.nonzero(numbers == _STRAY)
        if not stray[0].size:
            return numbers
        found = colours[stray]
        if options.tolerance:
            numbers[stray] = _nearest(found, self._table, options.tolerance)
            lost = int((numbers == _STRAY).sum())
            if lost > options.stray_share * numbers.size:
                reason, detail = "colours in the mask fit none of the recipe's", f"{lost} of {numbers.size} pixels"
                sample.faults.append(Fault(file, "", reason, detail, regions=1))
        else:
            unknown = np.unique(found, axis=0)
            shown = ", ".join(str(tuple(colour)) for colour in unknown[:_SHOWN].tolist())
            reason, detail = "colour in the mask has no label in the recipe", f"{len(unknown)} colours, as {shown}"
            sample.faults.append(Fault(file, "", reason, detail, regions=len(unknown)))
        return np.where(numbers == _STRAY, 0, numbers)


def parse_colour(text: int | str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255 each, of "255,0,0" or "#ff0000".

    Raises:
        ValueError: it is neither.
    """
    if isinstance(text, str):
        parts = [part.strip() for part in text.split(",")]
        if len(parts) == 3 and all(part.isdecimal() and int(part) < 256 for part in parts):
            return int(parts[0]), int(parts[1]), int(parts[2])
        if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
            return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    raise ValueError(f'\'{text}\' is no colour; write it as "255,0,0" or "#ff0000"')


def _exact(colours: np.ndarray, table: list[tuple[tuple[int, int, int], int]]) -> np.ndarray:
    """The number of each pixel (height, width) that has a colour of the table, to the bit; `_STRAY` for the others."""
    packed = (colours[..., 0].astype(np.int32) << 16) | (colours[..., 1].astype(np.int32) << 8) | colours[..., 2]
    numbers = np.full(packed.shape, _STRAY, np.int32)
    for (red, green, blue), number in table:
        numbers[packed == (red << 16 | green << 8 | blue)] = number
    return numbers


def _nearest(colours: np.ndarray, table: list[tuple[tuple[int, int, int], int]], tolerance: int) -> np.ndarray:
    """The number of the colour nearest to each of `colours` (n, 3): that whose most different channel differs least."""
    best = np.full(len(colours), tolerance + 1, np.int16)
    numbers = np.full(len(colours), _STRAY, np.int32)
    for colour, number in table:
        distance = np.abs(colours.astype(np.int16) - np.array(colour, np.int16)).max(axis=1)
        closer = distance < best
        best[closer], numbers[closer] = distance[closer], number
    return numbers
