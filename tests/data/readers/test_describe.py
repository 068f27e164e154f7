"""Every reader documents its conventions and all of its options."""

import dataclasses
import re

import pytest

from medpclip.data.readers import READERS
from medpclip.data.readers.describe import describe, first_lines
from medpclip.errors import MedpclipError


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_option_is_described(name: str) -> None:
    text = describe(name)
    assert len(text.split("Options:")[0]) > 300, "the conventions come first"
    described = re.findall(r"^    (\w+(?:, \w+)*):", text.split("Defaults:")[0], re.MULTILINE)
    stated = {option for names in described for option in names.split(", ")}
    assert {field.name for field in dataclasses.fields(READERS[name][1])} == stated


def test_first_lines_name_what_is_read() -> None:
    assert [name for name, _ in first_lines()] == sorted(READERS)
    assert all(20 < len(line) < 250 for _, line in first_lines())


def test_unknown_reader() -> None:
    with pytest.raises(MedpclipError, match="reader 'vocs' is unknown; there are: .*voc"):
        describe("vocs")


def test_what_options_refer_to_is_told_too() -> None:
    nifti = describe("nifti")
    assert all(f"    {key}:" in nifti for key in ("files", "values", "kind", "threshold", "ignore", "optional"))
    assert "{name:REGEX}" in nifti
    assert '"auto" tries path' in describe("csv_rle") and '"auto" tries path' in describe("captions")
