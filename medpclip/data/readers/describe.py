"""What a reader says of itself: its conventions and its options, as its own documentation has them."""

from __future__ import annotations

import dataclasses
import inspect
import sys

from medpclip.data.readers import READERS
from medpclip.data.readers.instance_mask import LabelNames
from medpclip.data.readers.nifti.labels import LabelFiles
from medpclip.errors import MedpclipError

# Conventions that lie in modules of their own, and what the items of an option look like.
_FURTHER: dict[str, list[str | type]] = {
    "dicom": [
        "medpclip.data.readers.dicom.seg",
        "medpclip.data.readers.dicom.rtstruct",
        "medpclip.data.pictures.dicom",
    ],
    "instance_mask": [LabelNames],
    "nifti": [LabelFiles, "medpclip.data.readers.nifti.file_patterns"],
}
_MATCHING = "medpclip.data.readers.matching"


def first_lines() -> list[tuple[str, str]]:
    """Name and first sentence of each reader, sorted."""
    return [(name, _module_text(name).split("\n\n")[0].replace("\n", " ")) for name in sorted(READERS)]


def describe(name: str) -> str:
    """Conventions, then each option with its default, then what the options refer to.

    Raises:
        MedpclipError: no such reader.
    """
    if name not in READERS:
        raise MedpclipError(f"reader '{name}' is unknown; there are: {', '.join(sorted(READERS))}")
    options = READERS[name][1]
    lines = [_module_text(name), "", "Options:"]
    for base in reversed([base for base in options.__mro__ if dataclasses.is_dataclass(base)]):
        lines.append(inspect.cleandoc(base.__doc__ or ""))
        lines.append("")
    lines.append("Defaults:")
    for field in dataclasses.fields(options):
        if field.default is not dataclasses.MISSING:
            value = repr(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            value = repr(field.default_factory())
        else:
            value = "(must be given)"
        lines.append(f"    {field.name}: {value}")
    further = [*_FURTHER.get(name, [])]
    if any(field.name == "match" for field in dataclasses.fields(options)):
        further.append(_MATCHING)
    for part in further:
        title, of = (part.rpartition(".")[2], sys.modules[part]) if isinstance(part, str) else (part.__name__, part)
        lines += ["", f"{title}:", inspect.cleandoc(of.__doc__ or "")]
    return "\n".join(lines)


def _module_text(name: str) -> str:
    return inspect.cleandoc(sys.modules[READERS[name][0].__module__].__doc__ or "")
