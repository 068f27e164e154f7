"""Points: for each image a text file with a line per point, or one table of the points of all images.

Conventions. In a file per image, `columns` names what stands on a line, in its order: "x" and "y" in pixels, x to the
right and y down, "class", and anything else, which becomes the region's metadata. The order differs between data sets
and nothing in the file tells it, so look at a picture: [x, y, class] is usual, [y, x, class] (row first) is too. With
`header_line` the first line is the names, and must not contradict. Columns are divided by tabs, semicolons, commas or
blanks, whichever of these comes first in this list and in the line; the last column may hold blanks. A table of all
points has these columns by name, and what all rows of an image say alike is the image's metadata. With `offset: 1` the
first pixel is number 1.

A class is a label as it stands, or a number whose label `classes` or `names` gives. Each point is a region of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medpclip.data.readers.base import Entry, Fault, ImageReader, RawRegion, RawSample, UnusableError
from medpclip.data.readers.files import list_files, list_images, pair
from medpclip.data.readers.matching import match_rows
from medpclip.data.readers.tables import (
    DELIMITERS,
    TableOptions,
    common_cells,
    has_decimal_comma,
    number_of,
    read_tables,
    text_of,
)
from medpclip.data.readers.text_files import check_classes, class_names, read_lines, tree_key, whole_number

_SUFFIXES = (".txt", ".csv", ".tsv", ".dat")


@dataclass(frozen=True, kw_only=True)
class PointsOptions(TableOptions):
    """Options of the reader "points". Those of tables count where `table` is given, but for `images` and `delimiter`.

    Attributes:
        annotations: folder or pattern of the text files, where there is no `table`.
        image_suffix: what an image's name has at its end (before the extension) and its text file's hasn't.
        annotation_suffix: what a text file's name has at its end and its image's hasn't, as "_coords".
        columns: what stands on a line of a text file, in its order.
        header_line: whether text files begin with a line of names.
        x_column: the name of the column of x.
        y_column: the name of the column of y.
        label_column: the name of the column with the class.
        label: the label of all points, in place of `label_column`.
        classes: number -> the source's label; YAML wants the numbers quoted; or
        names: a file of the source that has them, as "classes.txt".
        offset: the number of the first pixel.
        missing: what an image without points is: "fault", or "empty", an image without regions.
    """

    annotations: str = "labels"
    image_suffix: str = ""
    annotation_suffix: str = ""
    columns: list[str] = field(default_factory=lambda: ["x", "y", "class"])
    header_line: bool = False
    x_column: str = "x"
    y_column: str = "y"
    label_column: str = "class"
    label: str | None = None
    classes: dict[str, str] = field(default_factory=dict)
    names: str | None = None
    offset: Literal[0, 1] = 0
    missing: Literal["fault", "empty"] = "fault"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_classes(self.classes)
        if self.classes and self.names is not None:
            raise ValueError("has both 'classes' and 'names'; keep one")
        if self.header is not None and not self.table:
            raise ValueError("'header' goes with 'table'; for text files, 'columns' gives the order")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"'columns' names one twice: {self.columns}")
        lacking = [name for name in self.needed().values() if name not in self.columns]
        if lacking and not self.table:
            raise ValueError(f"'columns' has no '{lacking[0]}'; expected an order as [x, y, class]")

    def needed(self) -> dict[str, str]:
        """Key of the recipe -> column that there must be."""
        keys = {"options.x_column": self.x_column, "options.y_column": self.y_column}
        return keys if self.label is not None else keys | {"options.label_column": self.label_column}


class PointsReader(ImageReader[PointsOptions]):
    """Points from text files or tables; the conventions are in the module's description."""

    name = "points"

    def __init__(self, source: Path, options: PointsOptions) -> None:
        super().__init__(source, options)
        self._names: dict[str, str] | None = None

    def scan(self) -> list[Entry | Fault]:
        self._classes()  # a names file that's missing should be known before the work begins
        return self._scan_table() if self.options.table else self._scan_files()

    def read(self, entry: Entry) -> RawSample:
        sample = RawSample()
        rows = self._lines(entry.annotation) if isinstance(entry.annotation, Path) else entry.annotation or []
        for item in rows:
            result = item if isinstance(item, Fault) else self._region(*item)
            if isinstance(result, RawRegion):
                sample.regions.append(result)
            else:
                sample.faults.append(result)
        return sample

    def _scan_files(self) -> list[Entry | Fault]:
        options = self.options
        images, faults = list_images(self.source, options.images, "options.images")
        files = list_files(self.source, options.annotations, "options.annotations", _SUFFIXES)
        image_key = tree_key(self.source, options.images, options.image_suffix)
        file_key = tree_key(self.source, options.annotations, options.annotation_suffix)
        names = {self.source / options.names} if options.names else set()
        files = [path for path in files if path not in names]
        out: list[Entry | Fault] = [*faults]
        for item in pair(self.source, images, files, image_key, file_key, self.count):
            lonely = isinstance(item, Fault) and item.reason == "image without an annotation"
            out.append(Entry(item.file) if lonely and isinstance(item, Fault) and options.missing == "empty" else item)
        return out

    def _scan_table(self) -> list[Entry | Fault]:
        options = self.options
        needed = options.needed() | {"options.image_column": options.image_column}
        matched = match_rows(self.source, options, read_tables(self.source, options, needed), regions=1)
        out: list[Entry | Fault] = [*matched.faults, *matched.loose]
        out += [group.fault(regions=len(group.rows)) for group in matched.unmatched]
        for image, rows in matched.rows.items():
            file = self.relative(image)
            if not rows and options.missing == "fault":
                out.append(Fault(file, "", "image without an annotation", images=1))
                continue
            items: list[Any] = []
            for row in rows:
                broken = Fault(row.file, row.key, row.problem, row.detail, regions=1) if row.problem else None
                cells = {name: cell for name, cell in row.cells.items() if name != options.image_column}
                items.append(broken or (cells, row.file, row.key))
            out.append(Entry(file, items, common_cells(rows)))
        return out

    def _lines(self, path: Path) -> list[Fault | tuple[dict[str, str], str, str]]:
        """The lines of a text file as cells by column, with file and key; or the fault of a line."""
        file, columns = self.relative(path), self.options.columns
        lines = read_lines(path, file)
        if self.options.header_line and lines:
            key, header = lines.pop(0)
            names = [cell.lower() for cell in self._split(header)]
            declared = [column.lower() for column in columns]
            if set(names) >= set(declared) and names[: len(declared)] != declared:
                reason = "header contradicts the declared columns"
                raise UnusableError(Fault(file, key, reason, repr(header[:80]), images=1, regions=len(lines)))
        out: list[Fault | tuple[dict[str, str], str, str]] = []
        for key, line in lines:
            cells = self._split(line)
            if len(cells) == len(columns):
                out.append((dict(zip(columns, cells, strict=True)), file, key))
            else:
                detail = f"{len(cells)} values for {len(columns)} columns"
                reason = "line has another number of values than declared"
                out.append(Fault(file, key, reason, detail, regions=1))
        return out

    def _split(self, line: str) -> list[str]:
        given = self.options.delimiter
        delimiter = DELIMITERS.get(given, given) if given else next((d for d in "\t;," if d in line), " ")
        if delimiter == " ":
            return line.split(None, len(self.options.columns) - 1)
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
        while len(cells) > len(self.options.columns) and not cells[-1]:  # a delimiter at the end of the line
            cells.pop()
        return cells

    def _region(self, cells: Mapping[str, Any], file: str, key: str) -> RawRegion | Fault:
        options = self.options
        stated = [cells[options.x_column], cells[options.y_column]]
        x, y = (number_of(cell) for cell in stated)
        if x is None or y is None:
            comma = has_decimal_comma(stated)
            reason = "number has a decimal comma" if comma else "number is missing or is none"
            return Fault(file, key, reason, repr(stated), regions=1)
        label = options.label or text_of(cells[options.label_column])
        if not label:
            return Fault(file, key, "region without a label", regions=1)
        if self._classes() and options.label is None:
            named = self._classes().get(whole_number(label) or "")
            if named is None:
                return Fault(file, key, "class has no name in the recipe", repr(label), regions=1)
            label = named
        used = (options.x_column, options.y_column, options.label_column)
        rest = {name: cell for name, cell in cells.items() if name not in used}
        return RawRegion(label, file, key, points=[[x - options.offset, y - options.offset]], metadata=rest)

    def _classes(self) -> dict[str, str]:
        if self._names is None:
            self._names = class_names(self.source, self.options.classes, self.options.names)
        return self._names
