"""One image -> one sample or one fault, counted once whatever happens on the way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.config import from_mapping
from medpclip.data.building import convert as convert_module
from medpclip.data.building.convert import Converted, Converter
from medpclip.data.building.privacy import Salt
from medpclip.data.building.recipe import Recipe
from medpclip.data.readers import Entry, Fault, RawRegion, RawSample
from medpclip.data.schema import Sample

SALT = Salt(b"a secret that only tests know", "test")
BASE = {"name": "cells", "title": "Cells", "modality": "microscopy", "licence": "MIT", "citation": "nobody"}


def region(number: int) -> RawRegion:
    return RawRegion("cell", "list.csv", f"row {number}", bbox=[1, 2, 5, 5])


class Slices:
    """Stands in for a reader of volumes: three slices with two good and one lost region each."""

    name = "slices"

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def samples(self, entry: Entry) -> Iterator[RawSample]:
        for z in range(3):
            lost = [Fault("list.csv", f"row {z}", "mask is empty", regions=1)]
            place = {"index": z, "count": 3, "axis": "axial"}
            yield RawSample([region(z), region(10 + z)], lost, part=f"z {z}", volume=place, **self.facts)


def convert(tmp_path: Path, reader: Any, metadata: dict[str, Any], **changes: Any) -> Converted:
    given = {"reader": "classification", "options": {"images": "."}, "terms": {"cell": "cell"}} | changes
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    converter = Converter(from_mapping(Recipe, BASE | given, "test"), tmp_path, SALT)
    converter.reader = reader
    return converter.convert([Entry("a.png", None, metadata)])


def balance(out: Converted) -> tuple[int, int]:
    """Images and regions that were found and are neither written nor lost."""
    lost = (sum(fault.images for fault in out.faults), sum(fault.regions for fault in out.faults))
    held = sum(sum(sample.encoded.categories.values()) for sample in out.samples)
    return out.images - len(out.samples) - lost[0], out.regions - held - lost[1]


def samples(out: Converted) -> list[Sample]:
    import json

    return [Sample.from_json(json.loads(s.encoded.facts), s.encoded.key, "test") for s in out.samples]


def test_an_image_at_which_the_build_itself_fails_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = convert_module.make_region

    def make_region(raw: RawRegion, *rest: Any) -> Any:
        if raw.key == "row 11":
            raise ZeroDivisionError("nobody thought of it")
        return original(raw, *rest)

    monkeypatch.setattr(convert_module, "make_region", make_region)
    out = convert(tmp_path, Slices(), {})
    assert (out.images, out.regions, balance(out)) == (3, 9, (0, 0))
    assert [sample.part for sample in out.samples] == ["z 0", "z 2"]
    (lost,) = [fault for fault in out.faults if fault.reason == "reader failed unexpectedly"]
    assert (lost.file, lost.key, lost.images, lost.regions) == ("a.png", "z 1", 1, 2)
    assert lost.detail == "ZeroDivisionError: nobody thought of it"


def test_a_sample_that_breaks_the_schema_is_lost_by_its_file_and_not_the_build(tmp_path: Path) -> None:
    out = convert(tmp_path, Slices(spacing=[0.0, 1.0]), {})
    assert not out.samples and balance(out) == (0, 0)
    lost = [fault for fault in out.faults if fault.images]
    assert [(fault.file, fault.key) for fault in lost] == [("a.png", f"z {z}") for z in range(3)]
    assert "'spacing' is [0.0, 1.0]" in lost[0].detail


def test_half_a_surrogate_pair_in_a_caption_harms_nobody(tmp_path: Path) -> None:
    """JSON may hold one, where somebody cut a text in the middle of a character."""
    out = convert(tmp_path, Slices(), {"caption": "round cells \ud83d"}, captions=["caption"])
    assert balance(out) == (0, 0)
    assert [sample.captions for sample in samples(out)] == [["round cells ?"]] * 3


def test_volumes_are_told_apart_by_the_reader_not_by_a_column_of_that_name(tmp_path: Path) -> None:
    """A table may well state a tumour's "volume", and two patients the same one."""
    plain, stated = convert(tmp_path, Slices(), {}), convert(tmp_path, Slices(), {"volume": "12.5"})
    ids = [{sample.volume["id"] for sample in samples(out) if sample.volume} for out in (plain, stated)]
    assert ids[0] == ids[1] and len(ids[0]) == 1
