"""Values that identify are found by what their keys say; others are left to the text."""

from medpclip.data.building.deidentification.deidentify import deidentify
from medpclip.data.building.deidentification.known_values import known_values


def test_keys_of_several_habits() -> None:
    metadata = {
        "PatientName": "Zorbanelli^Xanthippe",
        "patient_id": 8841277,
        "PatientAge": "055Y",
        "patient sex": "F",
        "accession no": "A-12",
        "file_name": "lung.png",
        "view": "AP",
        "category_name": "lung",
        "patient": {"surname": "Quillbrand", "age": 55, "seen by": "Vilko"},
        "metadata": {"institution": "Vilkovar General", "notes": "effusion"},
        "radiologists": ["Anna", "Bert"],
        "doctor_note": "x" * 100,
        "mrn": 5512987.0,
        "person_score": float("nan"),
    }
    assert known_values(metadata) == (
        "Zorbanelli^Xanthippe",
        "8841277",
        "A-12",
        "Quillbrand",
        "Vilko",
        "Vilkovar General",
        "Anna",
        "Bert",
        "5512987",
    )


def test_they_go_from_a_caption_that_no_rule_would_clean() -> None:
    text = "zorbanelli noted an effusion; as before, xanthippe has no fever."
    assert deidentify(text).counts == {}
    cleaned = deidentify(text, known_values({"PatientName": "Zorbanelli^Xanthippe"}))
    assert cleaned.text == "[NAME] noted an effusion; as before, [NAME] has no fever."
