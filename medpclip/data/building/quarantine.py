"""The private side of a build: which file was left out and why, and the log. It never lies in the shards' folder."""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from medpclip.data.readers import Fault
from medpclip.errors import MedpclipError

_KEYS = ("file", "key", "reason", "detail", "remedy", "images", "regions")


def private_folder(out: Path) -> Path:
    """Where the private files of a build into `out` lie by default: beside it, never inside.

    Raises:
        MedpclipError: `out` has no name of its own, as ".".
    """
    if out.name in ("", ".."):
        raise MedpclipError(f"--out {out}: its private folder would have no name; name the folder to make")
    return out.with_name(out.name + ".private")


class Quarantine:
    """Writes `quarantine.jsonl` and `build.log` into the private folder (modes 0600 and 0700), and counts.

    A line of the quarantine is {"file", "key", "reason", "detail", "remedy", "images", "regions"}.

    Attributes:
        images: images lost so far.
        regions: regions lost so far.
        reasons: reason -> {"faults", "images", "regions"}; says nothing of the source, so it may be shared.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            self._lines = _open_private(self.folder / "quarantine.jsonl")
            self._log = _open_private(self.folder / "build.log")
        except OSError as error:
            raise MedpclipError(f"{self.folder}: can't be written ({error.strerror}); choose another --out") from None
        self.images = 0
        self.regions = 0
        self._counts: dict[str, Counter[str]] = {}

    @property
    def path(self) -> Path:
        return self.folder / "quarantine.jsonl"

    @property
    def reasons(self) -> dict[str, dict[str, int]]:
        by_weight = sorted(self._counts.items(), key=lambda item: (-item[1]["faults"], item[0]))
        return {reason: dict(counts) for reason, counts in by_weight}

    def add(self, fault: Fault) -> None:
        self.images += fault.images
        self.regions += fault.regions
        counts = self._counts.setdefault(fault.reason, Counter())
        counts.update(faults=1, images=fault.images, regions=fault.regions)
        line = {name: getattr(fault, name) for name in _KEYS}
        self._lines.write(json.dumps(line, ensure_ascii=True) + "\n")

    def log(self, text: str) -> None:
        """A line of the private log."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        self._log.write(f"{now} {text}\n")
        self._log.flush()

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *exception: Any) -> None:
        for stream in (self._lines, self._log):  # the chunks, which know the same, are deleted next
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()


def _open_private(path: Path) -> TextIO:
    path.unlink(missing_ok=True)  # an older file may have another mode, or be a link
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
