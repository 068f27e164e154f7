"""What a reader says of itself: its conventions and its options, as its own documentation has them."""

from __future__ import annotations

import dataclasses
import inspect
import sys

from medpclip.data.readers import READERS
from medpclip.errors import MedpclipError


def first_lines() -> list[tuple[str, str]]:
    """Name and first sentence of each reader, sorted."""
    return [(name, _module_text(name).split("\n\n")[0].replace("\n", " ")) for name in sorted(READERS)]


def describe(name: str) -> str:
    """Conventions, then each option with its default.

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
    return "\n".join(lines)


def _module_text(name: str) -> str:
    return inspect.cleandoc(sys.modules[READERS[name][0].__module__].__doc__ or "")
