"""log.jsonl: a line of JSON for each logged step. It is what a run's figures are read from; the rest is for watching."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpclip.errors import MedpclipError
from medpclip.files import write_atomically

LOG = "log.jsonl"


class JsonLines:
    """Appends to a log, whose lines beyond the checkpoint's step are removed first.

    Args:
        path: the file.
        step: the checkpoint's; 0 for a new run.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        try:
            _cut_back(path, step)
            self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise self._unwritable(error) from None

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Numbers that aren't finite become null."""
        line = {"step": step, "kind": kind} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        try:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):  # each line was flushed by `log`, which says so if it can't be
            self._stream.close()

    def _unwritable(self, error: OSError) -> MedpclipError:
        return MedpclipError(f"{self.path}: can't be written ({error.strerror}); make room, then --resume")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The log's lines; what follows a line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def _cut_back(path: Path, step: int) -> None:
    if path.is_file():
        kept = [row for row in read_log(path) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
