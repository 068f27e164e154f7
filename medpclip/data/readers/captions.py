"""Captions: images and texts, in JSON lines, JSON, CSV, TSV or Parquet.

Conventions. Each row (a JSON object, a line of a table) names an image and holds its text; the whole row is the image's
metadata, and the recipe's `captions` says which of its texts are kept. Keys reach into nested objects with dots. JSON is
a list of objects, or an object that gives each image's text or object by the image's name. Rows count from 1; of JSON
lines, row N is line N. An image with several rows is quarantined, or with `several: join` gets all their captions as a
list under the caption's key, and beside it what its rows say alike.

Parquet may also hold the images themselves, as the library "datasets" writes them: a column of {bytes, path}. Then each
row is an entry "FILE.parquet#N" with its row's number, the image is made from its bytes, and `images` counts for
nothing. Scanning leaves the bytes unread; reading one row costs reading its row group, which is kept for the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medpclip.data.pictures import PictureError, read_picture_bytes
from medpclip.data.readers.base import Entry, Fault, ImageReader, RawSample, UnusableError
from medpclip.data.readers.matching import match_rows
from medpclip.data.readers.tables import (
    Row,
    TableOptions,
    check_columns,
    is_empty,
    list_tables,
    open_parquet,
    read_columns,
    read_csv,
    read_parquet,
    read_row_group,
    value_at,
)
from medpclip.data.readers.text_files import decode
from medpclip.errors import MedpclipError

_PARQUET = (".parquet", ".pq")
_NO_OBJECT = "row is not a JSON object"
_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")


@dataclass(frozen=True, kw_only=True)
class CaptionsOptions(TableOptions):
    """Options of the reader "captions", beside those of all tables; `table` may be JSON too.

    Attributes:
        caption_column: the key or column of the text; a list of texts in it is fine.
        several: what several rows of one image are: "fault", or "join".
    """

    caption_column: str = "caption"
    several: Literal["join", "fault"] = "fault"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.table:
            raise ValueError("'table' is missing; give the file of the captions")


class CaptionsReader(ImageReader[CaptionsOptions]):
    """Images with captions; the conventions are in the module's description."""

    name = "captions"

    def __init__(self, source: Path, options: CaptionsOptions) -> None:
        super().__init__(source, options)
        self._group: tuple[Path, int] | None = None  # the row group that `_images` holds
        self._images: list[Any] = []

    def scan(self) -> list[Entry | Fault]:
        paths = list_tables(self.source, self.options)
        embedded = [path for path in paths if path.suffix.lower() in _PARQUET and self._embeds(path)]
        out = [item for path in embedded for item in self._scan_embedded(path)]
        if len(embedded) == len(paths):
            return out
        rows = (row for path in paths if path not in embedded for row in self._rows(path))
        matched = match_rows(self.source, self.options, rows, regions=0)
        out += [*matched.faults, *matched.loose, *(group.fault(regions=0) for group in matched.unmatched)]
        for image, mine in matched.rows.items():
            out += self._entry(image, mine)
        return out

    def read(self, entry: Entry) -> RawSample:
        if entry.annotation is None:
            return RawSample()
        path, group, row = entry.annotation
        try:
            return RawSample(picture=read_picture_bytes(self._bytes(path, group, row)))
        except PictureError as error:
            raise UnusableError(Fault(entry.image, "", error.reason, error.detail, images=1)) from None

    def _entry(self, image: Path, rows: list[Row]) -> Iterator[Entry | Fault]:
        file, column = self.relative(image), self.options.caption_column
        if not rows:
            yield Fault(file, "", "image without an annotation", images=1)
            return
        good, faults = [], []
        for row in rows:
            reason = row.problem or ("" if _texts(value_at(row.cells, column)) else "caption is empty")
            if reason:
                faults.append((row, reason))
            else:
                good.append(row)
        if all(row.cells == good[0].cells for row in good):  # the same row again adds nothing
            good = good[:1]
        if len(good) > 1 and self.options.several == "fault":
            yield Fault(file, "", "image is listed several times", ", ".join(row.key for row in rows), images=1)
            good, lost = [], 0
        else:
            lost = int(not good)  # the image goes with the first of its faults
        for row, reason in faults:
            yield Fault(row.file, row.key, reason, row.detail or f"its image is {file}", images=lost)
            lost = 0
        if good:
            yield Entry(file, None, self._join(good))

    def _join(self, rows: list[Row]) -> dict[str, Any]:
        if len(rows) == 1:
            return rows[0].cells
        column, first = self.options.caption_column, rows[0].cells
        common = {key: value for key, value in first.items() if all(row.cells.get(key) == value for row in rows)}
        texts = [text for row in rows for text in _texts(value_at(row.cells, column))]
        return common | {column: list(dict.fromkeys(texts))}

    def _needed(self) -> dict[str, str]:
        return {
            "options.image_column": self.options.image_column,
            "options.caption_column": self.options.caption_column,
        }

    def _rows(self, path: Path) -> Iterator[Row]:
        file, suffix = self.relative(path), path.suffix.lower()
        if suffix in _PARQUET:
            yield from read_parquet(path, file, {key: name.split(".")[0] for key, name in self._needed().items()})
        elif suffix in _JSON_LINES:
            yield from self._stated(path, _json_lines(path, file))
        elif suffix == ".json":
            yield from self._stated(path, self._json(path, file))
        else:
            yield from read_csv(path, file, self.options, self._needed())

    def _stated(self, path: Path, rows: Iterator[Row]) -> Iterator[Row]:
        """JSON rows as they are; an error where not one of them has a key that the recipe declares."""
        lacking, keys = self._needed(), dict[str, None]()
        some = False
        for row in rows:
            some = some or not row.problem
            if lacking:
                lacking = {key: name for key, name in lacking.items() if value_at(row.cells, name) is None}
                keys |= dict.fromkeys(row.cells)
            yield row
        for key, name in lacking.items() if some else ():
            shown = ", ".join(list(keys)[:20])
            raise MedpclipError(
                f"{path}: no object has the key '{name}' (they have: {shown}); check the recipe's '{key}'"
            )

    def _json(self, path: Path, file: str) -> Iterator[Row]:
        try:
            data = json.loads(decode(path.read_bytes()))
        except OSError as error:
            remedy = "check --source, or the recipe's key 'options.table'"
            raise MedpclipError(f"{path}: {error.strerror}; {remedy}") from None
        except (ValueError, RecursionError) as error:
            remedy = "restore the file; JSON lines are called .jsonl"
            raise MedpclipError(f"{path}: broken JSON ({error}); {remedy}") from None
        if isinstance(data, dict) and data and all(isinstance(value, (str, dict)) for value in data.values()):
            image, caption = self.options.image_column, self.options.caption_column
            named = data.items()
            data = [{image: name} | (value if isinstance(value, dict) else {caption: value}) for name, value in named]
        if not isinstance(data, list):
            kind = f"an object with {', '.join(list(data)[:20])}" if isinstance(data, dict) else type(data).__name__
            raise MedpclipError(f"{path}: holds {kind}; expected a list of objects, or an object per image's name")
        for number, item in enumerate(data, 1):
            yield _json_row(file, number, item)

    def _embeds(self, path: Path) -> bool:
        """Whether the images are in the Parquet file itself."""
        import pyarrow

        with open_parquet(path) as parquet:
            schema = parquet.schema_arrow
            if self.options.image_column not in schema.names:
                return False
            kind = schema.field(self.options.image_column).type
            if pyarrow.types.is_struct(kind):
                return kind.get_field_index("bytes") >= 0
            return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    def _scan_embedded(self, path: Path) -> Iterator[Entry | Fault]:
        file, column = self.relative(path), self.options.caption_column
        with open_parquet(path) as parquet:
            check_columns(path, parquet.schema_arrow.names, {"options.caption_column": column.split(".")[0]})
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            places = ((group, row) for group, size in enumerate(sizes) for row in range(size))
            for number, (place, cells) in enumerate(zip(places, read_columns(path, parquet), strict=True), 1):
                if _texts(value_at(cells, column)):
                    yield Entry(f"{file}#{number}", (path, *place), cells)
                else:
                    yield Fault(file, f"row {number}", "caption is empty", images=1)

    def _bytes(self, path: Path, group: int, row: int) -> bytes:
        """The image of one row."""
        column = self.options.image_column
        if self._group != (path, group):
            try:
                self._images, self._group = read_row_group(path, group, column), (path, group)
            except MedpclipError as error:  # only this part of the file may be broken
                raise PictureError("image can't be decoded", str(error)) from None
        value = self._images[row].as_py()
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not data:
            raise PictureError("image file is missing", "the row has no bytes")
        return bytes(data)


def _json_lines(path: Path, file: str) -> Iterator[Row]:
    """The objects of a file with one on each line; a line that is none has a problem."""
    try:
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    item = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    yield Row(file, f"row {number}", {}, _NO_OBJECT, str(error))
                else:
                    yield _json_row(file, number, item)
    except OSError as error:
        raise MedpclipError(f"{path}: {error.strerror}; check --source, or the recipe's key 'options.table'") from None


def _json_row(file: str, number: int, item: Any) -> Row:
    if isinstance(item, dict):
        return Row(file, f"row {number}", item)
    return Row(file, f"row {number}", {}, _NO_OBJECT, type(item).__name__)


def _texts(value: Any) -> list[str]:
    """The captions in a cell: a text, or a list of some."""
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and not is_empty(text)]
