"""Writing an exported folder whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from medpclip.errors import MedpclipError

REPORT = "export.json"  # in every exported folder


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write into; it becomes `out` if the block ends well and vanishes if it doesn't.

    An earlier export at `out` is replaced, and stays as it is if the block or the replacement fails.

    Raises:
        MedpclipError: if something other than an export is at `out`, or it can't be written there.
    """
    out = out.absolute()
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    try:
        if old.exists() and not out.exists():  # an earlier replacement was cut off between its two renames
            old.rename(out)
        if out.exists() and not (out / REPORT).is_file() and not (out.is_dir() and not any(out.iterdir())):
            raise MedpclipError(f"{out}: exists and holds no {REPORT}; give another folder, or remove it")
        for leftover in (part, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        part.mkdir(parents=True)
        try:
            yield part
            _replace(part, out, old)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # a full disk is the latter where safetensors writes
        reason = getattr(error, "strerror", None) or error
        raise MedpclipError(f"{out}: can't be written ({reason}); check the path and the space") from error


def _replace(part: Path, out: Path, old: Path) -> None:
    """Make `part` the new `out`; what was there goes only once the new one is in place."""
    try:
        if out.exists():
            out.rename(old)
        part.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
