"""Placed masks: a table with one row per region, whose mask file is cropped to the region's box.

Conventions. A row names its image, its label, its mask file and the box: `left` and `top` of its corner, `width` and
`height`, in whole pixels, x to the right and y down from the image's top left corner. The mask file has just the box's
size and lies with its corner at (left, top). A pixel is inside the region if the mask's alpha (`inside: alpha`) or its
brightness, the largest of red, green and blue (`inside: brightness`), is at least `threshold`; with 1, what isn't black
is inside.

A mask file is named by its path below the source, or below the folder of masks. `resolution_column`, if there is one,
states the image's size as "WIDTHxHEIGHT"; where the image is of another, its boxes mean nothing.

`without_mask` says what a row without a mask file is: a region by its box alone ("box"), or a fault ("fault"). A box
that is the whole picture is an annotation tool's default where nothing was drawn: such a row is a fault of its own, or,
with `without_mask: image_level`, no region but a statement about the image, which joins its metadata as "image_level",
several of them with "|" between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from medpclip.data.pictures import PictureError, read_size
from medpclip.data.readers.base import Entry, Fault, ImageReader, RawRegion, RawSample, UnusableError
from medpclip.data.readers.files import IMAGE_SUFFIXES, list_files
from medpclip.data.readers.masks import encode_part, read_alpha, read_grey
from medpclip.data.readers.matching import match_rows
from medpclip.data.readers.tables import Row, TableOptions, is_empty, number_of, read_tables, text_of

_SIDES = ("left", "top", "width", "height")


@dataclass(frozen=True, kw_only=True)
class PlacedMaskOptions(TableOptions):
    """Options of the reader "placed_mask", beside those of all tables.

    Attributes:
        masks: folder or pattern of the mask files.
        mask_column: the column that names the mask file.
        label_column: the column with the source's label.
        left: the column with the box's left side, in pixels, as the next three.
        top: column.
        width: column.
        height: column.
        resolution_column: the column that states the image's size as "WIDTHxHEIGHT".
        inside: what says that a pixel is inside: "alpha" or "brightness".
        threshold: from which value on.
        without_mask: "box", "fault" or "image_level", see the module.
    """

    masks: str = "masks"
    mask_column: str = "mask"
    label_column: str = "label"
    left: str = "left"
    top: str = "top"
    width: str = "width"
    height: str = "height"
    resolution_column: str | None = None
    inside: Literal["alpha", "brightness"] = "alpha"
    threshold: int = 1
    without_mask: Literal["box", "fault", "image_level"] = "fault"

    def needed(self) -> dict[str, str]:
        """Key of the recipe -> column that the table must have."""
        names = ("image_column", "mask_column", "label_column", *_SIDES, "resolution_column")
        return {f"options.{name}": column for name in names if (column := getattr(self, name)) is not None}


class PlacedMaskReader(ImageReader[PlacedMaskOptions]):
    """Regions from cropped masks; the conventions are in the module's description."""

    name = "placed_mask"

    def __init__(self, source: Path, options: PlacedMaskOptions) -> None:
        super().__init__(source, options)
        self._by_name: dict[str, Path] | None = None

    def scan(self) -> list[Entry | Fault]:
        options = self.options
        matched = match_rows(self.source, options, read_tables(self.source, options, options.needed()), regions=1)
        out: list[Entry | Fault] = [*matched.faults, *matched.loose]
        named = {self._mask_path(row) for rows in matched.rows.values() for row in rows}
        for group in matched.unmatched:
            out.append(group.fault(regions=len(group.rows)))
            named |= {self._mask_path(row) for row in group.rows}
        for image, rows in matched.rows.items():
            if rows:
                out.append(Entry(self.relative(image), rows))
            else:
                out.append(Fault(self.relative(image), "", "image without an annotation", images=1))
        for mask in sorted(set(self._masks().values()) - named):
            out.append(Fault(self.relative(mask), "", "mask file is in no row of the table", regions=1))
        return out

    def read(self, entry: Entry) -> RawSample:
        rows: list[Row] = entry.annotation
        try:
            size = read_size(self.source / entry.image)
        except PictureError as error:
            raise UnusableError(Fault(entry.image, "", error.reason, error.detail, 1, len(rows))) from None
        sample = RawSample()
        said: list[str] = []
        for row in rows:
            item = self._region(row, size)
            if isinstance(item, RawRegion):
                sample.regions.append(item)
            elif isinstance(item, Fault):
                sample.faults.append(item)
            else:
                said.append(item)
        if said:
            sample.metadata["image_level"] = "|".join(dict.fromkeys(said))
        return sample

    def _region(self, row: Row, size: tuple[int, int]) -> RawRegion | Fault | str:
        """The region of a row; or why there is none; or the label of a row that speaks of the image."""
        options = self.options
        if row.problem:
            return Fault(row.file, row.key, row.problem, row.detail, regions=1)
        label = text_of(row.cells[options.label_column])
        if not label:
            return Fault(row.file, row.key, "region without a label", regions=1)
        if fault := self._size_fault(row, size):
            return fault
        box = [number_of(row.cells[getattr(options, side)]) for side in _SIDES]
        whole = _whole_picture(box, size)
        if is_empty(row.cells[options.mask_column]):
            if whole:
                keep = options.without_mask == "image_level"
                return label if keep else Fault(row.file, row.key, "box is the whole picture", regions=1)
            if options.without_mask == "fault":
                return Fault(row.file, row.key, "region without a mask", regions=1)
            return RawRegion(label, row.file, row.key, bbox=box, metadata=self._rest(row))
        return self._placed(row, label, box, size)

    def _placed(self, row: Row, label: str, box: Sequence[float | None], size: tuple[int, int]) -> RawRegion | Fault:
        """The region of a row with a mask file."""
        sides = [int(side) for side in box if side is not None and float(side).is_integer()]
        if len(sides) < 4:
            reason = "box is not four finite numbers" if None in box else "box of a mask is not in whole pixels"
            return Fault(row.file, row.key, reason, repr(box), regions=1)
        left, top, width, height = sides
        if width <= 0 or height <= 0:
            return Fault(row.file, row.key, "box is degenerate", repr(box), regions=1)
        if left < 0 or top < 0 or left + width > size[0] or top + height > size[1]:
            detail = "{}, the image is {}x{}".format(sides, *size)
            return Fault(row.file, row.key, "box reaches outside the image", detail, regions=1)
        path = self._mask_path(row)
        if path is None:
            detail = repr(row.cells[self.options.mask_column])
            return Fault(row.file, row.key, "mask file is missing", detail, regions=1)
        file = self.relative(path)
        try:
            values = (read_alpha if self.options.inside == "alpha" else read_grey)(path, file)
        except UnusableError as unusable:  # one region of many: the image is still good
            return Fault(file, "", unusable.fault.reason, unusable.fault.detail, regions=1)
        if values.shape != (height, width):
            detail = f"{row.key}: box {width}x{height}, mask {values.shape[1]}x{values.shape[0]}"
            return Fault(file, "", "mask is of another size than its box", detail, regions=1)
        rle = encode_part(values >= self.options.threshold, (top, left), (size[1], size[0]))
        return RawRegion(label, row.file, row.key, bbox=sides, rle=rle, metadata=self._rest(row))

    def _size_fault(self, row: Row, size: tuple[int, int]) -> Fault | None:
        """Why the stated resolution isn't the image's."""
        if self.options.resolution_column is None:
            return None
        text = text_of(row.cells[self.options.resolution_column])
        stated = re.fullmatch(r"(\d+)\s*[xX×*]\s*(\d+)", text)
        if stated is None:
            return Fault(row.file, row.key, "stated size is not WIDTHxHEIGHT", repr(text), regions=1)
        if (int(stated[1]), int(stated[2])) != size:
            detail = "{} stated, the image is {}x{}".format(text, *size)
            return Fault(row.file, row.key, "image is of another size than stated", detail, regions=1)
        return None

    def _mask_path(self, row: Row) -> Path | None:
        """The mask file that a row names; None where it names none, or one that isn't there."""
        name = text_of(row.cells.get(self.options.mask_column))
        return self._masks().get(PurePosixPath(name.replace("\\", "/")).as_posix()) if name else None

    def _masks(self) -> dict[str, Path]:
        """The mask files by their path below the source, and by that below the folder of masks."""
        if self._by_name is None:
            paths = list_files(self.source, self.options.masks, "options.masks", IMAGE_SUFFIXES)
            folder = self.source / self.options.masks
            below = {path.relative_to(folder).as_posix(): path for path in paths if path.is_relative_to(folder)}
            self._by_name = below | {self.relative(path): path for path in paths}
        return self._by_name

    def _rest(self, row: Row) -> dict[str, Any]:
        used = set(self.options.needed().values())
        return {name: cell for name, cell in row.cells.items() if name not in used}


def _whole_picture(box: Sequence[float | None], size: tuple[int, int]) -> bool:
    return list(box) == [0, 0, *size]
