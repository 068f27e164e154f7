"""Tables of run lengths: masks as text in the cells of a CSV file.

Conventions. Either one row per image with a column per class (`classes`: column -> label), or one row per region with
one column of run lengths (`rle_column`) and the label in `label_column`, or always `label`. A cell is whole numbers with
blanks between, pair by pair: `pairs: start_length` has the first pixel of a run and its length; `gap_length` has the
pixels since the end of the run before, and its length. `base` is the number of the first pixel, 1 or 0; `order` says
whether pixels are counted along the rows ("row") or down the columns ("column"). Runs are in order and don't overlap.
An empty cell, or "-1", says that there is no region.

`width_column` and `height_column` state the size that the runs are for, and where the image is of another they mean
nothing; without them it's the image's.

Conventions of others in these words: CheXmask (its function get_mask_from_RLE) counts along the rows from 1, so
`order: row, base: 1`, with columns "Left Lung", "Right Lung", "Heart", "Height", "Width"; Kaggle's competitions count
down the columns from 1, `order: column, base: 1`, with columns "ImageId", "EncodedPixels"; SIIM-ACR pneumothorax has
`pairs: gap_length, order: column, base: 0`.

Such tables may be larger than memory: the scan only notes where each row lies, and the cells are read again when their
image is. So a compressed table must be unpacked first. Text is UTF-8; rows count as in `tables`.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medpclip.data.pictures import PictureError, read_size
from medpclip.data.readers.arrays import MOST_PIXELS
from medpclip.data.readers.base import Entry, Fault, ImageReader, RawRegion, RawSample, UnusableError
from medpclip.data.readers.files import list_images
from medpclip.data.readers.masks import encode_edges, encode_part
from medpclip.data.readers.matching import AMBIGUOUS, MISSING, match_names
from medpclip.data.readers.tables import check_columns, check_image_key, number_of
from medpclip.errors import MedpclipError

_NOTHING = ("", "-1")
_LONGEST_CELL = 1 << 28  # characters; Python's csv module stops at 131072 unless told otherwise
_PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, zip, bzip2, xz, zstd


@dataclass(frozen=True, kw_only=True)
class CsvRleOptions:
    """Options of the reader "csv_rle".

    Attributes:
        table: the CSV file.
        delimiter: the character between its cells.
        images: folder or pattern of the images.
        image_column: the column that names the image.
        match: what that column holds: "auto", "path", "name" or "stem", see `medpclip.data.readers.matching`; or
        image_key: a regular expression over the image's path whose groups, joined by "_", that column holds.
        classes: column of run lengths -> the source's label, for one row per image; or
        rle_column: the one column of run lengths, for one row per region, with
        label_column: the column with the source's label, or
        label: the label of all regions.
        width_column: the column with the width that the runs are for.
        height_column: the column with the height.
        order: "row" or "column", see the module.
        pairs: "start_length" or "gap_length", see the module.
        base: the number of the first pixel.
        metadata: columns that join the metadata, of the image (`classes`) or of the region (`rle_column`).
    """

    table: str
    delimiter: str = ","
    images: str = "images"
    image_column: str = "image_id"
    match: Literal["auto", "path", "name", "stem"] = "auto"
    image_key: str | None = None
    classes: dict[str, str] = field(default_factory=dict)
    rle_column: str | None = None
    label_column: str | None = None
    label: str | None = None
    width_column: str | None = None
    height_column: str | None = None
    order: Literal["row", "column"]
    pairs: Literal["start_length", "gap_length"] = "start_length"
    base: Literal[0, 1] = 1
    metadata: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise ValueError(f"'delimiter' is '{self.delimiter}'; expected one character")
        if bool(self.classes) == (self.rle_column is not None):
            raise ValueError("give one of 'classes' (one row per image) and 'rle_column' (one row per region)")
        labels = (self.label is not None) + (self.label_column is not None)
        if labels != (self.rle_column is not None):
            raise ValueError("'rle_column' needs one of 'label' and 'label_column'; 'classes' has the labels itself")
        if (self.width_column is None) != (self.height_column is None):
            raise ValueError("give both or none of 'width_column' and 'height_column'")
        check_image_key(self.image_key)

    def needed(self) -> dict[str, str]:
        """Key of the recipe -> column that the table must have."""
        names = ("image_column", "rle_column", "label_column", "width_column", "height_column")
        out = {f"options.{name}": column for name in names if (column := getattr(self, name)) is not None}
        out |= {f"options.classes.{column}": column for column in self.classes}
        return out | {f"options.metadata.{i}": column for i, column in enumerate(self.metadata)}


@dataclass(frozen=True)
class _Place:
    """Where a row lies in the table, and how many masks it has."""

    number: int
    offset: int
    length: int
    masks: int

    @property
    def key(self) -> str:
        return f"row {self.number}"


class CsvRleReader(ImageReader[CsvRleOptions]):
    """Regions from run lengths in a table; the conventions are in the module's description."""

    name = "csv_rle"

    def __init__(self, source: Path, options: CsvRleOptions) -> None:
        super().__init__(source, options)
        self._table = _Table(source / options.table, options)
        self._size_columns = (options.width_column, options.height_column)

    def scan(self) -> list[Entry | Fault]:
        options = self.options
        images, faults = list_images(self.source, options.images, "options.images")
        out: list[Entry | Fault] = [*faults]
        stated: dict[str, list[_Place]] = defaultdict(list)
        facts: dict[str, dict[str, str]] = {}
        for place, cells, problem in self._table.rows():
            name = cells.get(options.image_column, "")
            if problem or not name:
                reason = "row has another number of cells than the header" if problem else "row names no image"
                out.append(Fault(options.table, place.key, reason, problem, regions=place.masks))
                continue
            stated[name].append(place)
            if options.classes and options.metadata:
                facts[name] = {column: cells[column] for column in options.metadata}
        found, doubtful = match_names(self.source, options.images, images, stated, options.match, options.image_key)
        mine: dict[Path, list[_Place]] = {image: [] for image in images if image not in doubtful}
        metadata: dict[Path, dict[str, str]] = {}
        for name, places in stated.items():
            image = found[name]
            if isinstance(image, Path):
                mine[image] += places
                metadata[image] = facts.get(name, {})
            else:
                lost = sum(place.masks for place in places)
                out.append(Fault(options.table, places[0].key, image, repr(name), int(image == MISSING), lost))
        out += [Fault(self.relative(image), "", AMBIGUOUS, images=1) for image in sorted(doubtful)]
        for image, places in mine.items():
            file = self.relative(image)
            if not places:
                out.append(Fault(file, "", "image without an annotation", images=1))
            elif options.classes and len(places) > 1:
                lost, rows = sum(place.masks for place in places), ", ".join(place.key for place in places)
                out.append(Fault(file, "", "image is listed several times", rows, images=1, regions=lost))
            else:
                out.append(Entry(file, places, metadata.get(image, {})))
        return out

    def read(self, entry: Entry) -> RawSample:
        places: list[_Place] = entry.annotation
        sample = RawSample()
        size: tuple[int, int] | None = None
        if self.options.width_column is None and any(place.masks for place in places):
            try:
                size = read_size(self.source / entry.image)
            except PictureError as error:
                lost = sum(place.masks for place in places)
                raise UnusableError(Fault(entry.image, "", error.reason, error.detail, 1, lost)) from None
        for place in places:
            cells = self._table.cells(place)
            stated = size if self.options.width_column is None else self._size(cells)
            for column, label in self._masks(cells):
                item = self._region(place, column, label, cells, stated)
                if isinstance(item, RawRegion):
                    sample.regions.append(item)
                else:
                    sample.faults.append(item)
        return sample

    def _masks(self, cells: dict[str, str]) -> list[tuple[str, str]]:
        """The columns of a row that hold a mask, with their labels."""
        options = self.options
        if options.rle_column is not None:
            label = options.label if options.label is not None else cells[str(options.label_column)]
            columns = {options.rle_column: label}
        else:
            columns = options.classes
        return [(column, label) for column, label in columns.items() if cells[column] not in _NOTHING]

    def _region(
        self, place: _Place, column: str, label: str, cells: dict[str, str], size: tuple[int, int] | None
    ) -> RawRegion | Fault:
        options = self.options
        key = f"{place.key}, {column}"
        if not label:
            return Fault(options.table, key, "region without a label", regions=1)
        if size is None:
            detail = " x ".join(repr(cells[str(column)]) for column in self._size_columns)
            return Fault(options.table, key, "stated size is not two whole numbers", detail, regions=1)
        try:
            rle = decode_runs(cells[column], size[1], size[0], options.order, options.pairs, options.base)
        except RunsError as error:
            return Fault(options.table, key, error.reason, error.detail, regions=1)
        metadata = {} if options.classes else {name: cells[name] for name in options.metadata}
        return RawRegion(label, options.table, key, rle=rle, metadata=metadata)

    def _size(self, cells: dict[str, str]) -> tuple[int, int] | None:
        """The (width, height) that a row states; None where that makes no sense."""
        width, height = (number_of(cells[str(column)]) for column in self._size_columns)
        if width is None or height is None or not (width.is_integer() and height.is_integer()):
            return None
        return (int(width), int(height)) if min(width, height) > 0 and width * height <= MOST_PIXELS else None


class _Table:
    """A CSV file that is read row by row, or at the places of rows.

    Raises:
        MedpclipError: as `rows` does.
    """

    def __init__(self, path: Path, options: CsvRleOptions) -> None:
        self.path, self.options = path, options
        self._columns: list[str] = []
        if Path(options.table).is_absolute() or ".." in Path(options.table).parts:
            raise MedpclipError(f"key 'options.table' is '{options.table}', which leads out of the source")

    def rows(self) -> Iterator[tuple[_Place, dict[str, str], str]]:
        """Each row's place, its cells, and why they can't be trusted; empty where they can.

        Raises:
            MedpclipError: the file is missing, compressed, no UTF-8 text, or hasn't the columns.
        """
        options, number = self.options, 1
        try:
            with open(self.path, "rb") as stream, _long_cells():
                lines = _Lines(stream, self.path)
                records = csv.reader(lines, delimiter=options.delimiter, strict=True)
                self._columns = [name.strip() for name in next(records, [])]
                check_columns(self.path, self._columns, options.needed())
                start = lines.end
                for number, record in enumerate(records, 2):
                    values = [value.strip() for value in record]
                    if any(values):
                        cells = dict(zip(self._columns, values, strict=False))
                        moved = len(values) != len(self._columns)
                        problem = f"{len(values)} cells for {len(self._columns)} columns" if moved else ""
                        yield _Place(number, start, lines.end - start, self._count(cells, moved)), cells, problem
                    start = lines.end
        except OSError as error:
            remedy = "check --source, or the recipe's key 'options.table'"
            raise MedpclipError(f"{self.path}: {error.strerror}; {remedy}") from None
        except csv.Error as error:
            raise MedpclipError(
                f"{self.path}: row {number + 1} or after: {error}; correct the quotes there, or 'options.delimiter'"
            ) from None

    def cells(self, place: _Place) -> dict[str, str]:
        """The cells of one row, read again."""
        if not self._columns:  # in another process than the scan
            next(self.rows(), None)
        with open(self.path, "rb") as stream, _long_cells():
            stream.seek(place.offset)
            text = stream.read(place.length).decode("utf-8")
            record = next(csv.reader([text], delimiter=self.options.delimiter))
        return dict(zip(self._columns, (value.strip() for value in record), strict=True))

    def _count(self, cells: dict[str, str], moved: bool) -> int:
        """How many masks a row has; if its cells have moved, as many as it might have."""
        columns = [*self.options.classes] or [str(self.options.rle_column)]
        return len(columns) if moved else sum(cells[column] not in _NOTHING for column in columns)


class _Lines:
    """The lines of a file as text, and where the last one given ended."""

    def __init__(self, stream: Any, path: Path) -> None:
        self.stream, self.path, self.end = stream, path, 0

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            if self.end == 0 and line.startswith(_PACKED):
                raise MedpclipError(f"{self.path}: is compressed; unpack it and name that file in 'options.table'")
            encoding = "utf-8" if self.end else "utf-8-sig"
            self.end += len(line)
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError:
                raise MedpclipError(f"{self.path}: is not UTF-8 text; save it as UTF-8") from None


class RunsError(Exception):
    """Run lengths that can't be used. `reason` is a key of `REMEDIES`, `detail` is private."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def decode_runs(text: str, height: int, width: int, order: str, pairs: str, base: int) -> dict[str, Any]:
    """The text of a cell as COCO run lengths.

    Args:
        text: whole numbers with blanks between, in pairs.
        height: of the mask.
        width: of the mask.
        order: "row" or "column", as the next two see the module.
        pairs: "start_length" or "gap_length".
        base: the number of the first pixel.

    Raises:
        RunsError: the text is something else, or its runs don't lie in the mask one after the other.
    """
    try:
        numbers = np.array([int(word) for word in text.replace("_", "?").split()], np.int64)
    except (ValueError, OverflowError):
        raise RunsError("run lengths are not whole numbers", text[:60]) from None
    if numbers.size % 2:
        raise RunsError("run lengths are not in pairs", f"{numbers.size} numbers")
    pixels = height * width
    if numbers.max() > pixels:
        raise RunsError("run lengths reach outside the image", f"{numbers.max()} of {pixels} pixels")
    lengths = numbers[1::2]
    starts = (numbers[0::2] if pairs == "start_length" else np.cumsum(numbers)[0::2]) - base
    ends = starts + lengths
    if lengths.min() < 1 or (numbers < 0).any():
        raise RunsError("run lengths overlap or are out of order", f"a run of {lengths.min()} pixels")
    if (starts[1:] < ends[:-1]).any():
        at = int(np.argmax(starts[1:] < ends[:-1])) + 1
        raise RunsError("run lengths overlap or are out of order", f"run {at}")
    if starts[0] < 0 or ends[-1] > pixels:
        raise RunsError("run lengths reach outside the image", f"{starts[0]} to {ends[-1]} of {pixels} pixels")
    edges = np.stack([starts, ends], axis=1).ravel()
    if order == "column":
        return encode_edges(edges, height, width)
    top, bottom = int(starts[0]) // width, (int(ends[-1]) - 1) // width + 1
    runs = np.diff(np.concatenate([[top * width], edges, [bottom * width]]))
    part = np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(-1, width)
    return encode_part(part, (top, 0), (height, width))


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let Python's csv module take cells of any length that a mask may have."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)
