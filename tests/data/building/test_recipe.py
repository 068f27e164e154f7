"""Recipes: typed, with errors that name the file, the key and the nearest known one."""

from pathlib import Path

import pytest

from medpclip.config import read_yaml
from medpclip.data.building.recipe import Recipe, find_recipe, list_recipes
from medpclip.data.building.rules import lookup
from medpclip.data.lexicon.lexicon import Lexicon
from medpclip.errors import MedpclipError

# Words for sex, age and the like, which are no medical terms.
PLAIN_WORDS = {"female", "male", "child", "adult", "older adult"}
SHIPPED = Path(__file__).parents[3] / "data_recipes"
TEXT = """
name: cells
title: Cells
modality: microscopy
licence: MIT
citation: nobody
reader: voc
terms: {RBC: red blood cell}
"""


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "cells.yaml"
    path.write_text(text)
    return Recipe.load(path)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_use_terms_of_the_lexicon(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert recipe.words() <= Lexicon.load().terms.keys() | PLAIN_WORDS
    written = read_yaml(path)
    assert {"group", "split", "licence", "citation", "layout", "laterality"} <= written.keys()
    assert written["group"], "says who the patient is, or why that can't be known"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("anatmy: blood", "key 'anatmy' is unknown; did you mean 'anatomy'"),
        ("options: {imags: a}", "options: key 'imags' is unknown; did you mean 'images'"),
        ("options: {corners: middle}", "'corners' is 'middle', expected one of 'edges', 'inclusive'"),
        ("group: {metdata: a}", "did you mean 'group.metadata'"),
        ("group: {metadata: a, path: b}", "both 'metadata' and 'path'"),
        ("group: {path: '('}", "no regular expression"),
        ("split: {train: 0.9}", "add up to 1"),
        ("split: {files: {training: a}}", "split"),
        ("annotated_terms: [platelet]", "'annotated_terms' has 'platelet'"),
        ("laterality: left", "'laterality' is 'left'"),
        ("labels: {finding: {key: a}}", "expected one of 'values'"),
        ("labels: {finding: {values: {a: b}}}", "everything else needs 'key'"),
        ("split: {metadata: {key: a, values: {x: training}}}", "must lead to 'train', 'val' and 'test'"),
        ("path_pattern: '(?P<case'", "'path_pattern' is no regular expression"),
        ("split: {metadata: {columns: {x: train, y: test}}}", "must lead to 'train', 'val' and 'test'"),
        ("split: {metadata: {key: a, lexicon: true}}", "must lead to 'train', 'val' and 'test'"),
        ("attributes: {shape: {key: a, values: {x: round}, separator: '|'}}", "'attributes.shape' has 'separator'"),
        ("anatomy: {columns: {x: liver}}", "'anatomy' has 'separator' or 'columns', but can say one thing only"),
        ("midline: true", "say which side is which"),
    ],
)
def test_faults_are_named(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(MedpclipError) as caught:
        load(tmp_path, TEXT + more)
    assert message in str(caught.value)
    assert "cells.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reader: voc", "reader: vox", "'reader' is 'vox'; known: captions, classification, coco, csv_boxes"),
        ("name: cells", "name: Cells!", "'name' is 'Cells!'"),
        ("licence: MIT\n", "", "'licence' is missing"),
        ("{RBC: red blood cell}", "{RBC: 3}", "'terms.RBC' is 3"),
        ("{RBC: red blood cell}", "{RBC: ''}", "maps a label to nothing"),
        ("reader: voc", "reader: label_mask", "options: 'values' is empty"),
        ("reader: voc", "reader: label_mask\noptions: {values: {'one': a}}", "expected the mask's numbers"),
        ("reader: voc", "reader: instance_mask\noptions: {images: a}", "one of 'label' and 'label_pattern'"),
        ("reader: voc", "reader: instance_mask\noptions: {images: a, label_pattern: b}", "has 0 groups"),
    ],
)
def test_broken_values_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(MedpclipError, match="cells.yaml") as caught:
        load(tmp_path, TEXT.replace(old, new))
    assert message in str(caught.value)


def test_hash_is_of_the_meaning_not_of_the_wording(tmp_path: Path) -> None:
    plain = load(tmp_path, TEXT).sha256()
    lines = TEXT.strip().splitlines()
    assert load(tmp_path, "# a comment\n" + "\n".join(reversed(lines))).sha256() == plain
    assert load(tmp_path, TEXT + "laterality: none\noptions: {corners: edges}").sha256() == plain
    assert load(tmp_path, TEXT + "options: {corners: inclusive}").sha256() != plain


def test_found_by_bare_name_or_path(tmp_path: Path) -> None:
    load(tmp_path, TEXT)
    assert find_recipe("cells", [tmp_path, SHIPPED]) == tmp_path / "cells.yaml"
    assert find_recipe("some/other.yaml", []) == Path("some/other.yaml")
    assert "bccd_blood" in list_recipes([SHIPPED])
    with pytest.raises(MedpclipError, match="there: cells"):
        find_recipe("cell", [tmp_path])
    with pytest.raises(MedpclipError, match="no such file"):
        Recipe.load(Path("some/other.yaml"))


def test_lookup_reaches_into_nested_objects() -> None:
    metadata = {"a": {"b": 3}, "a.c": " x ", "n": None, "e": "", "l": [1]}
    assert lookup(metadata, "a.b") == "3"
    assert lookup(metadata, "a.c") == "x"
    assert [lookup(metadata, key) for key in ("n", "e", "l", "a", "a.b.c", "none")] == [None] * 6
