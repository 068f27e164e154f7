"""Tables beside the images: rows find their images, and a table that finds none is not overlooked."""

from pathlib import Path
from typing import Any

import pytest

from medpclip.config import from_mapping
from medpclip.data.building.metadata import add_metadata
from medpclip.data.building.recipe import Recipe
from medpclip.data.readers import Entry
from medpclip.errors import MedpclipError


def join(tmp_path: Path, text: str, **rule: Any) -> list[dict[str, Any]]:
    (tmp_path / "table.csv").write_text(text)
    given = {"name": "cells", "title": "C", "modality": "microscopy", "licence": "MIT", "citation": "nobody"}
    table = {"file": "table.csv", "key": "image"} | rule
    recipe = from_mapping(Recipe, given | {"reader": "classification", "table": table}, "test")
    entries = [Entry(f"images/{name}.png") for name in ("a", "b")]
    add_metadata(entries, recipe, tmp_path)
    return [entry.metadata for entry in entries]


@pytest.mark.parametrize(
    "text",
    [
        "stage,image\nP,a\nQ\n",  # a row that ends before the key's column
        "stage,image\nP,a\n,\n,\n",  # as spreadsheets are saved
        "stage,image\nP,a,and,more\n",
    ],
)
def test_ragged_and_empty_rows_name_no_image(tmp_path: Path, text: str) -> None:
    assert join(tmp_path, text) == [{"stage": "P", "image": "a"}, {}]


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        (
            "image,stage\nx,P\ny,Q\n",
            {},
            "none of its 2 rows, for one 'x', names one of 2 images, for one 'images/a.png'",
        ),
        ("image,stage\na,P\n", {"match": "path"}, r"'table.match' \(path\)"),
        ("image,stage\n", {}, "none of its 0 rows names one of 2 images"),
    ],
)
def test_a_table_that_fits_no_image_is_another_table(tmp_path: Path, text: str, rule: Any, message: str) -> None:
    with pytest.raises(MedpclipError, match=f"table.csv: .*{message}"):
        join(tmp_path, text, **rule)
