"""Suspicion follows the header first, then the modality and what it is a kind of."""

import pytest

from medpclip.data.building.burned_in import suspect_burned_in
from medpclip.data.lexicon import Lexicon
from medpclip.data.lexicon.lexicon import Term


def lexicon() -> Lexicon:
    kinds = {
        "ultrasound": [],
        "echocardiography": ["ultrasound"],
        "endoscopy": [],
        "colonoscopy": ["endoscopy"],
        "radiograph": [],
        "fluoroscopy": ["radiograph"],
        "angiography": ["fluoroscopy"],
        "chest radiograph": ["radiograph"],
    }
    return Lexicon({name: Term("modality", "", parents=parents) for name, parents in kinds.items()})


@pytest.mark.parametrize(
    ("modality", "declared", "expected"),
    [
        ("echocardiography", False, "modality"),
        ("ultrasound", False, "modality"),
        ("colonoscopy", False, "modality"),
        ("angiography", False, "modality"),
        ("chest radiograph", False, None),
        ("chest radiograph", True, "declared"),
        ("ultrasound", True, "declared"),
        ("something new", False, None),
    ],
)
def test_suspicion(modality: str, declared: bool, expected: str | None) -> None:
    assert suspect_burned_in(modality, declared, lexicon()) == expected


def test_the_shipped_lexicon_knows_the_modalities() -> None:
    shipped = Lexicon.load()
    for modality in ("ultrasound", "colonoscopy", "coronary angiography"):
        assert suspect_burned_in(modality, False, shipped) == "modality"
