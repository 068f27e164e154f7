"""Tables of boxes: one row per box, with columns that say the image, the box and what it holds.

Conventions. `columns` says which column has which side: "xmin, ymin, xmax, ymax", "x, y, width, height" (x and y of the
top left corner) or "cx, cy, width, height" (of the centre), in pixels, x to the right and y down, or with `normalised`
in fractions of the image's width and height. `box_column` is one column with four numbers, as "[12, 30, 40, 41]", that
mean what `box_order` says. Corners are pixel edges counted from 0; `corners: inclusive` counts pixels from 1 and takes
the last one as inside, as VOC's development kit does.

An image's rows belong together wherever they stand; what they all say alike is its metadata, and what each says beside
its box is the region's. Rows whose label is one of `no_region_labels` say that the image holds nothing, and so do rows
with an empty box where `empty_box` is "image_level": they list the image, and are no region.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from medpclip.data.pictures import PictureError, read_size
from medpclip.data.readers.base import Entry, Fault, ImageReader, RawRegion, RawSample, UnusableError
from medpclip.data.readers.matching import match_rows
from medpclip.data.readers.tables import (
    Row,
    TableOptions,
    common_cells,
    has_decimal_comma,
    is_empty,
    number_of,
    read_tables,
    text_of,
)

_FORMS = (("xmin", "ymin", "xmax", "ymax"), ("x", "y", "width", "height"), ("cx", "cy", "width", "height"))
_WHOLE = 1.0  # pixels by which a box may be off and still be the whole picture


@dataclass(frozen=True, kw_only=True)
class CsvBoxesOptions(TableOptions):
    """Options of the reader "csv_boxes", beside those of all tables.

    Attributes:
        columns: side -> column, see the module; or
        box_column: the one column that has all four numbers.
        box_order: what the numbers of `box_column` mean.
        label_column: the column with the source's label; or
        label: the label of all boxes.
        normalised: whether boxes are in fractions of the image's size.
        corners: "edges" or "inclusive", see the module.
        no_region_labels: labels that mean that there is nothing to box, as "No finding".
        empty_box: what a row with a label and no box is: "fault", or "image_level", a row about the whole image.
        drop_whole_picture: whether a box that is the whole picture is an annotation tool's default, and is quarantined.
        drop_only_without: a column; only rows in which it is empty are dropped so.
        missing: what an image without a row is: "fault", or "empty", an image without regions.
    """

    columns: dict[str, str] = field(default_factory=dict)
    box_column: str | None = None
    box_order: list[str] = field(default_factory=lambda: list(_FORMS[0]))
    label_column: str | None = None
    label: str | None = None
    normalised: bool = False
    corners: Literal["edges", "inclusive"] = "edges"
    no_region_labels: list[str] = field(default_factory=list)
    empty_box: Literal["fault", "image_level"] = "fault"
    drop_whole_picture: bool = False
    drop_only_without: str | None = None
    missing: Literal["fault", "empty"] = "fault"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.table:
            raise ValueError("'table' is missing; give the file of the boxes")
        forms = "; ".join(", ".join(form) for form in _FORMS)
        if bool(self.columns) == (self.box_column is not None):
            raise ValueError(f"give one of 'columns' (with {forms}) and 'box_column'")
        if self.form is None:
            name = "columns" if self.columns else "box_order"
            raise ValueError(f"'{name}' has {', '.join(self.columns or self.box_order)}; expected one of: {forms}")
        if (self.label is None) == (self.label_column is None):
            raise ValueError("give one of 'label_column' and 'label'")
        if self.corners == "inclusive" and (self.form != _FORMS[0] or self.normalised):
            raise ValueError("'corners: inclusive' goes with xmin, ymin, xmax, ymax in pixels only")
        if self.drop_only_without is not None and not self.drop_whole_picture:
            raise ValueError("'drop_only_without' needs 'drop_whole_picture: true'")

    @property
    def form(self) -> tuple[str, ...] | None:
        """The names of the four numbers, as one of the forms has them; None where none has."""
        given = set(self.columns or self.box_order)
        return next((form for form in _FORMS if set(form) == given), None)

    def needed(self) -> dict[str, str]:
        """Key of the recipe -> column that the table must have."""
        keys = {f"options.columns.{side}": column for side, column in self.columns.items()}
        for name in ("image_column", "box_column", "label_column", "drop_only_without"):
            if (column := getattr(self, name)) is not None:
                keys[f"options.{name}"] = column
        return keys


class CsvBoxesReader(ImageReader[CsvBoxesOptions]):
    """Boxes from tables; the conventions are in the module's description."""

    name = "csv_boxes"

    def scan(self) -> list[Entry | Fault]:
        options = self.options
        rows = read_tables(self.source, options, options.needed())
        matched = match_rows(self.source, options, rows, regions=1)
        out: list[Entry | Fault] = [*matched.faults, *matched.loose]
        for group in matched.unmatched:
            out.append(group.fault(regions=sum(not self._says_nothing(row) for row in group.rows)))
        for image, mine in matched.rows.items():
            if mine or options.missing == "empty":
                out.append(Entry(self.relative(image), mine, common_cells(mine)))
            else:
                out.append(Fault(self.relative(image), "", "image without an annotation", images=1))
        return out

    def read(self, entry: Entry) -> RawSample:
        rows: list[Row] = [row for row in entry.annotation if row.problem or not self._says_nothing(row)]
        size = self._size(entry.image, len(rows))
        sample = RawSample()
        for row in rows:
            region = self._region(row, size)
            if isinstance(region, RawRegion):
                sample.regions.append(region)
            else:
                sample.faults.append(region)
        return sample

    def _size(self, image: str, regions: int) -> tuple[int, int] | None:
        """The image's size, where boxes can't be understood without it."""
        if not regions or not (self.options.normalised or self.options.drop_whole_picture):
            return None
        try:
            return read_size(self.source / image)
        except PictureError as error:
            raise UnusableError(Fault(image, "", error.reason, error.detail, images=1, regions=regions)) from None

    def _region(self, row: Row, size: tuple[int, int] | None) -> RawRegion | Fault:
        options = self.options
        if row.problem:
            return Fault(row.file, row.key, row.problem, row.detail, regions=1)
        label = self._label(row)
        if not label:
            return Fault(row.file, row.key, "region without a label", regions=1)
        cells = self._cells(row)
        if all(map(is_empty, cells)):
            return Fault(row.file, row.key, "region without a box", regions=1)
        numbers = [number_of(cell) for cell in cells]
        if len(numbers) != 4 or None in numbers:
            reason = "number has a decimal comma" if has_decimal_comma(cells) else "box is not four finite numbers"
            return Fault(row.file, row.key, reason, repr(cells), regions=1)
        bbox = self._bbox([number for number in numbers if number is not None])
        if size is not None and options.normalised:
            bbox = [value * size[i % 2] for i, value in enumerate(bbox)]
        if size is not None and options.drop_whole_picture and _is_whole(bbox, size) and self._may_drop(row):
            return Fault(row.file, row.key, "box is the whole picture", repr(bbox), regions=1)
        return RawRegion(label, row.file, row.key, bbox=bbox, metadata=self._rest(row))

    def _may_drop(self, row: Row) -> bool:
        column = self.options.drop_only_without
        return column is None or is_empty(row.cells[column])

    def _bbox(self, numbers: Sequence[float]) -> list[float]:
        """[x, y, width, height] of four numbers in the order of the form."""
        a, b, c, d = numbers
        if self.options.form == _FORMS[1]:
            return [a, b, c, d]
        if self.options.form == _FORMS[2]:
            return [a - c / 2, b - d / 2, c, d]
        if self.options.corners == "inclusive":
            a, b = a - 1, b - 1
        return [a, b, c - a, d - b]

    def _cells(self, row: Row) -> list[Any]:
        """The four numbers as the table has them, in the order of the form."""
        options, form = self.options, self.options.form
        assert form is not None
        if options.box_column is None:
            return [row.cells[options.columns[side]] for side in form]
        value = row.cells[options.box_column]
        parts = list(value) if isinstance(value, (list, tuple)) else re.split(r"[,;\s]+", text_of(value).strip("[]() "))
        if len(parts) != 4:
            return [part for part in parts if not is_empty(part)]
        return [parts[options.box_order.index(side)] for side in form]

    def _label(self, row: Row) -> str:
        return self.options.label or text_of(row.cells.get(self.options.label_column or ""))

    def _says_nothing(self, row: Row) -> bool:
        """Whether a row speaks of the whole image, and of no region."""
        if row.problem:
            return False
        if self._label(row) in self.options.no_region_labels:
            return True
        return self.options.empty_box == "image_level" and all(map(is_empty, self._cells(row)))

    def _rest(self, row: Row) -> dict[str, Any]:
        used = {self.options.image_column, self.options.box_column, self.options.label_column}
        used |= set(self.options.columns.values())
        return {name: cell for name, cell in row.cells.items() if name not in used}


def _is_whole(bbox: Sequence[float], size: tuple[int, int]) -> bool:
    x, y, w, h = bbox
    edges = (x, y, x + w - size[0], y + h - size[1])
    return all(abs(edge) <= _WHOLE for edge in edges)
