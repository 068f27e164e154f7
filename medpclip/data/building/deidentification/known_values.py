"""What an image's own metadata say of the people around it, so that its texts can be searched for just that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Keys of COCO entries, table columns and DICOM keywords ("PatientName", "patient_id", "accession no").
_IDENTIFYING = re.compile(
    r"patient|person|subject|(?:^|_)(?:last|first|family|given|full|sur)?_?name$|(?:^|_)mrn(?:_|$)|accession|birth|(?:^|_)dob$|"
    r"physician|doctor|radiologist|operator|author|institution|hospital|clinic|address|phone|e_?mail|(?:study|case|exam)_?(?:id|no)$"
)
# What such keys also say, and what says nothing of a person.
_PLAIN = re.compile(
    r"(?:_|^)(?:age|sex|gender|position|orientation|weight|size|height|count|file_name|category)(?:_|$)"
)
_LONGEST = 64  # longer values are texts themselves: they are no name, and may hold every word of the caption


def known_values(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Values of keys that name a person, an identifier or a place, for `deidentify`; nested objects too."""
    return tuple(dict.fromkeys(_walk(metadata, False)))


def _walk(value: Any, identifying: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            words = re.sub(r"(?<=[a-z])(?=[A-Z])|[\s.-]+", "_", str(key)).lower()
            named = bool(_IDENTIFYING.search(words)) or (identifying and isinstance(value, Mapping))
            yield from _walk(inner, named and not _PLAIN.search(words))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walk(inner, identifying)
    elif identifying and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        # Tables with a gap in a column of numbers give its identifiers as 1234567.0, and the gap as NaN.
        text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
        if text and value == value and len(text) <= _LONGEST:
            yield text
