"""Progress on standard error: a bar with rate and remaining time on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

_LOG_EVERY = 10.0  # seconds between lines where there is no terminal


class Progress:
    """Counts work; a context manager.

    Args:
        name: what is done.
        total: how many there are of it.
        unit: of what, in the singular.
        done: how many of them an earlier run has done.
        shown: whether to print at all.
    """

    def __init__(self, name: str, total: int, unit: str = "image", done: int = 0, shown: bool = True) -> None:
        self.name, self.total, self.unit, self.done, self.before, self.shown = name, total, unit, done, done, shown
        bar = shown and sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=name, unit=unit, initial=done, dynamic_ncols=True) if bar else None
        self.start = self.last = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Some more is done."""
        self.done += count
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(count)
        elif self.shown and now - self.last >= _LOG_EVERY:
            self.last = now
            rate = (self.done - self.before) / (now - self.start)
            left = f"{(self.total - self.done) / rate:.0f} s left" if rate else "nothing done yet"
            text = f"{self.name}: {self.done}/{self.total} {self.unit}s, {rate:.1f}/s, {left}"
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar is not None:
            self.bar.close()
