"""What paths and tables say of images, joined to the entries' own metadata."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from medpclip.data.building.recipe import Recipe
from medpclip.data.building.rules import TableRule, lookup
from medpclip.data.readers import Entry, Fault
from medpclip.data.readers.files import IMAGE_SUFFIXES
from medpclip.errors import MedpclipError


def add_metadata(entries: Iterable[Entry], recipe: Recipe, source: Path) -> list[Fault]:
    """Join the named groups of the recipe's `path_pattern` and the rows of its `table` to the entries' metadata.

    Returns:
        A fault for each image that the table lacks; nothing is lost by it.

    Raises:
        MedpclipError: the pattern fits no path at all, or the table can't be read.
    """
    entries = list(entries)
    if recipe.path_pattern is not None:
        _add_groups(entries, recipe.path_pattern, source)
    if recipe.table is not None:
        return _join_table(entries, recipe.table, source)
    return []


def _add_groups(entries: list[Entry], pattern: str, source: Path) -> None:
    compiled = re.compile(pattern)
    fitting = 0
    for entry in entries:
        match = compiled.search(entry.image)
        if match:
            fitting += 1
            entry.metadata = entry.metadata | match.groupdict()
    if entries and not fitting:
        raise MedpclipError(
            f"{source}: the recipe's 'path_pattern' {pattern!r} fits none of {len(entries)} images, for one "
            f"'{entries[0].image}'; the layout is another than the recipe's: correct the pattern"
        )


def _join_table(entries: list[Entry], rule: TableRule, source: Path) -> list[Fault]:
    """Add each image's row of the CSV file to its metadata."""
    path = source / rule.file
    rows = _read_rows(path, rule)
    lacking = []
    for entry in entries:
        name = PurePosixPath(entry.image)
        own = {"path": entry.image, "name": name.name, "stem": name.stem}
        key = own[rule.match] if rule.match in own else lookup(entry.metadata, rule.match)
        if key in rows:
            entry.metadata = entry.metadata | rows[key]
        else:
            lacking.append(Fault(entry.image, "", "image has no row in the recipe's table", rule.file))
    if entries and len(lacking) == len(entries):
        example = f", for one '{next(iter(rows))}'," if rows else ""
        raise MedpclipError(
            f"{path}: none of its {len(rows)} rows{example} names one of {len(entries)} images, for one "
            f"'{entries[0].image}'; check the recipe's keys 'table.key' and 'table.match' ({rule.match})"
        )
    return lacking


def _stem(name: str) -> str:
    """A file's name without its folder and extension; a dot alone makes no extension, identifiers have them too."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def _read_rows(path: Path, rule: TableRule) -> dict[str, dict[str, Any]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, delimiter=rule.delimiter)
            table.fieldnames = [name.strip() for name in table.fieldnames or ()]
            if rule.key not in (table.fieldnames or ()):
                columns = ", ".join(table.fieldnames or ()) or "none"
                raise MedpclipError(
                    f"{path}: no column '{rule.key}' (it has: {columns}); check the recipe's 'table.key'"
                )
            rows: dict[str, dict[str, Any]] = {}
            for row in table:
                row = {column: (cell or "").strip() for column, cell in row.items() if column is not None}
                if not row[rule.key]:  # spreadsheets end in rows of empty cells
                    continue
                key = _stem(row[rule.key]) if rule.match == "stem" else row[rule.key]
                if key not in rows:
                    rows[key] = row
                elif rule.several == "agree":
                    rows[key] = {column: value for column, value in rows[key].items() if row.get(column) == value}
                else:
                    remedy = "keep one, or set the recipe's 'table.several' to agree"
                    raise MedpclipError(f"{path}: '{key}' is in two rows; {remedy}")
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise MedpclipError(f"{path}: unreadable table ({why}); check the recipe's key 'table.file'") from None
