"""Writing an exported folder whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medpclip.errors import MedpclipError

REPORT = "export.json"  # in every exported folder


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write into; it becomes `out` if the block ends well and vanishes if it doesn't.

    An earlier export at `out` is replaced, and stays as it is if the block fails.

    Raises:
        MedpclipError: if something other than an export is at `out`, or it can't be written there.
    """
    out = out.absolute()
    if out.exists() and not (out / REPORT).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise MedpclipError(f"{out}: exists and holds no {REPORT}; give another folder, or remove it")
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    try:
        for leftover in (part, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        part.mkdir(parents=True)
        try:
            yield part
            if out.exists():
                out.rename(old)
            part.rename(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise MedpclipError(
            f"{out}: can't be written ({error.strerror or error}); check the path and the space"
        ) from error
