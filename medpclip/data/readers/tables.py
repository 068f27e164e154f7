"""Tables, as the readers of boxes, points, labels and captions share them: CSV, TSV and their like, and Parquet.

Conventions. The first line names the columns, unless `header` does. Rows count from 1 as a spreadsheet shows them, the
header included, so the first row below it is "row 2"; in Parquet, and without a header line, the first is "row 1".
Cells are stripped; rows with nothing in them are passed over. A row with more or fewer cells than the header has moved
cells: it is quarantined. A quote that is never closed makes all rows after it doubtful: it ends the reading.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medpclip.data.readers.files import list_files
from medpclip.data.readers.text_files import decode
from medpclip.errors import MedpclipError

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
_EMPTY = frozenset({"", "nan", "na", "n/a", "null", "none"})  # as programs write a cell without a number
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")
_SHOWN = 20  # columns in a message
_BATCH = 4096  # rows of Parquet at once


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What the options of all readers of tables have.

    Attributes:
        table: the table, a pattern such as "data/*.parquet", or several of both.
        header: the names of the columns in their order, for a table without a header line.
        delimiter: "comma", "semicolon", "tab", "pipe", "space" or another character; by default what fits the header.
        encoding: of a text table without a byte order mark.
        images: folder or pattern of the images.
        image_column: the column that names the image.
        match: what that column holds, see `medpclip.data.readers.matching`; or
        image_key: a regular expression over the image's path whose groups, joined by "_", that column holds.
    """

    table: str | list[str] = ""
    header: list[str] | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    images: str = "images"
    image_column: str = "image"
    match: Literal["auto", "path", "name", "stem"] = "auto"
    image_key: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and self.delimiter not in DELIMITERS and len(self.delimiter) != 1:
            raise ValueError(f"'delimiter' is '{self.delimiter}'; expected {', '.join(DELIMITERS)} or one character")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(
                f"'encoding' is '{self.encoding}', which Python doesn't know; try utf-8 or cp1252"
            ) from None
        if self.header is not None and len(set(self.header)) != len(self.header):
            raise ValueError(f"'header' names a column twice: {self.header}")
        check_image_key(self.image_key)


def check_image_key(pattern: str | None) -> None:
    """Raise `ValueError` unless an option "image_key" is left out, or a regular expression with a group."""
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"'image_key' is no regular expression ({error})") from None
    if not groups:
        raise ValueError(f"'image_key' is '{pattern}'; put what the column holds into (...)")


@dataclass(slots=True)
class Row:
    """A row of a table.

    Attributes:
        file: the table, relative to the source.
        key: where in it, as "row 12".
        cells: column -> value; text, but in Parquet and JSON also numbers and nested values.
        problem: why the cells can't be trusted, a key of `REMEDIES`; empty where they can.
        detail: what exactly was found. Private.
    """

    file: str
    key: str
    cells: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    detail: str = ""


def common_cells(rows: Sequence[Row]) -> dict[str, Any]:
    """What all whole rows of an image say alike."""
    whole = [row.cells for row in rows if not row.problem]
    first = whole[0] if whole else {}
    # Rows of two tables may have different columns.
    return {name: cell for name, cell in first.items() if all(name in row and row[name] == cell for row in whole)}


def list_tables(source: Path, options: TableOptions) -> list[Path]:
    """The files of the option "table", in their order.

    Raises:
        MedpclipError: there is none of that name, or nothing fits the pattern.
    """
    names = [options.table] if isinstance(options.table, str) else options.table
    paths: list[Path] = []
    for name in names:
        if name and (source / name).is_file() and ".." not in Path(name).parts and not Path(name).is_absolute():
            paths.append(source / name)
        elif any(character in name for character in "*?["):
            paths += list_files(source, name, "options.table")
        else:
            raise MedpclipError(f"{source / name}: no such file; check --source, or the recipe's key 'options.table'")
    return list(dict.fromkeys(paths))


def read_tables(source: Path, options: TableOptions, needed: Mapping[str, str]) -> Iterator[Row]:
    """The rows of all tables of the options, one table after the other.

    Args:
        source: the source's folder.
        options: says where the tables are and how to read them.
        needed: the recipe's key -> the column that it declares.

    Raises:
        MedpclipError: a table is missing, unreadable as a whole, or hasn't one of the columns.
    """
    for path in list_tables(source, options):
        file = path.relative_to(source).as_posix()
        if path.suffix.lower() in (".parquet", ".pq"):
            yield from read_parquet(path, file, needed)
        else:
            yield from read_csv(path, file, options, needed)


def read_csv(path: Path, file: str, options: TableOptions, needed: Mapping[str, str]) -> Iterator[Row]:
    """The rows of one text table; arguments and errors as for `read_tables`."""
    text = _read_text(path, options.encoding)
    delimiter = _delimiter(text, options, needed.values())
    records = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1)
    number = 0
    columns = [name.strip() for name in options.header or ()]
    try:
        if options.header is None:
            number, names = next(((i, cells) for i, cells in records if any(map(str.strip, cells))), (0, []))
            columns = [name.strip() for name in names]
            while columns and not columns[-1]:  # a delimiter at the end of each line
                columns.pop()
        if not columns:
            raise MedpclipError(f"{path}: is empty; expected a line with the names of the columns")
        check_columns(path, columns, needed)
        for number, record in records:
            cells = [cell.strip() for cell in record]
            if any(cells):
                yield _row(file, f"row {number}", columns, cells)
    except csv.Error as error:
        problem = "a quote is not closed, or has text behind it" if "expected" in str(error) else str(error)
        if "unexpected end" in str(error) or "field larger" in str(error):
            problem = "a quote is never closed"
        raise MedpclipError(
            f"{path}: row {number + 1} or after: {problem}; correct the quotes there, or the recipe's 'options.delimiter'"
        ) from None


def check_columns(path: Path, columns: Sequence[str], needed: Mapping[str, str]) -> None:
    """Raise `MedpclipError` unless each needed column is there, once."""
    for key, column in needed.items():
        times = columns.count(column)
        if times > 1:
            raise MedpclipError(f"{path}: column '{column}' is there {times} times; rename all but one")
        if not times:
            near = _nearest(column, columns)
            shown = ", ".join(columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
            hint = f"did you mean '{near}'? " if near else ""
            raise MedpclipError(f"{path}: no column '{column}' ({hint}it has: {shown}); check the recipe's key '{key}'")


def value_at(cells: Mapping[str, Any], column: str) -> Any:
    """A cell by its column or, where rows are nested, by names with dots between; None where there is none."""
    if column in cells:
        return cells[column]
    value: Any = cells
    for part in column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing, in the ways programs write that."""
    return cell is None or cell != cell or (isinstance(cell, str) and cell.strip().lower() in _EMPTY)


def text_of(cell: Any) -> str:
    """A cell as text, stripped: empty for nothing, a whole number without its ".0" where the table has it as a float."""
    if cell is None or cell != cell:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def number_of(cell: Any) -> float | None:
    """A cell as a number, or None where it is none. Signs, exponents and blanks around are fine; "1_000" isn't."""
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def has_decimal_comma(cells: Sequence[Any]) -> bool:
    """Whether one of the cells is a number with a decimal comma, as "12,5"."""
    return any(isinstance(cell, str) and _DECIMAL_COMMA.fullmatch(cell.strip()) for cell in cells)


def _row(file: str, key: str, columns: Sequence[str], cells: list[str]) -> Row:
    row = Row(file, key, {name: cell for name, cell in zip(columns, cells, strict=False) if name})
    if len(cells) < len(columns) or any(cells[len(columns) :]):
        row.problem = "row has another number of cells than the header"
        row.detail = f"{len(cells)} cells for {len(columns)} columns"
    return row


def _read_text(path: Path, encoding: str) -> str:
    try:
        data = path.read_bytes()
        return decode(data, encoding)
    except OSError as error:
        raise MedpclipError(f"{path}: {error.strerror}; check --source, or the recipe's key 'options.table'") from None
    except UnicodeError as error:
        line = f"line {data[: error.start].count(10) + 1} " if isinstance(error, UnicodeDecodeError) else ""
        remedy = "save it as UTF-8, or state its encoding in the recipe's 'options.encoding' (cp1252, say)"
        raise MedpclipError(f"{path}: {line}is not {encoding} text; {remedy}") from None


def _delimiter(text: str, options: TableOptions, needed: Any) -> str:
    """The declared delimiter, or the one with which the first line has the declared columns; else the most columns."""
    if options.delimiter is not None:
        return DELIMITERS.get(options.delimiter, options.delimiter)
    found = []
    for delimiter in (",", "\t", ";", "|"):
        records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            cells = [cell.strip() for cell in next((cells for cells in records if any(map(str.strip, cells))), [])]
        except csv.Error:
            continue
        fits = len(cells) == len(options.header) if options.header is not None else set(needed) <= set(cells)
        found.append((fits, len(cells), delimiter))
    return max(found, key=lambda item: item[:2])[2] if found else ","


def _nearest(column: str, columns: Sequence[str]) -> str | None:
    plain = {name.lower(): name for name in reversed(columns)}
    near = difflib.get_close_matches(column.lower(), plain, n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def read_parquet(path: Path, file: str, needed: Mapping[str, str]) -> Iterator[Row]:
    """The rows of one Parquet file, without its binary columns; arguments and errors as for `read_tables`."""
    with open_parquet(path) as parquet:
        check_columns(path, parquet.schema_arrow.names, needed)
        for number, cells in enumerate(read_columns(path, parquet), 1):
            yield Row(file, f"row {number}", cells)


def open_parquet(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
        MedpclipError: the file can't be read, or pyarrow isn't installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MedpclipError(f"{path}: reading Parquet needs pyarrow; install 'medpclip[data]'") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def read_columns(path: Path, parquet: Any) -> Iterator[dict[str, Any]]:
    """The rows of an open Parquet file, without binary columns; of a column {bytes, path} there is the path.

    Raises:
        MedpclipError: a part of the file is broken.
    """
    import pyarrow

    columns = []
    for column in parquet.schema_arrow:
        if "binary" not in str(column.type):
            columns.append(column.name)
        elif pyarrow.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
            columns.append(f"{column.name}.path")
    try:
        for batch in parquet.iter_batches(batch_size=_BATCH, columns=columns):
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def read_row_group(path: Path, group: int, column: str) -> Any:
    """One column of one row group of a Parquet file, as a `pyarrow.ChunkedArray`.

    Raises:
        MedpclipError: that part of the file is broken.
    """
    import pyarrow

    try:
        with open_parquet(path) as parquet:
            return parquet.read_row_group(group, columns=[column]).column(column)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> MedpclipError:
    problem = " ".join(str(error).split())[:200]
    return MedpclipError(f"{path}: is no readable Parquet file ({problem}); fetch it again")
