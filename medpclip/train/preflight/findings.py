"""What checks say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

GIB = 1 << 30


@dataclass
class Finding:
    """Attributes:
    check: which check says so.
    level: "ok", "warning" (it will run, but not well), "problem" (it would break).
    what: in a line; names node, file or key.
    remedy: what to do about it; empty for "ok".
    """

    check: str
    level: Literal["ok", "warning", "problem"]
    what: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert (self.level == "ok") != bool(self.remedy), self


def has_problem(findings: Sequence[Finding]) -> bool:
    """Whether the run would break."""
    return any(finding.level == "problem" for finding in findings)


def listed(names: Sequence[str], most: int = 4) -> str:
    """Some names in a line: "n1, n2, n3, n4 and 28 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def amount(count: float) -> str:
    """Bytes for people: "1.50 GiB", "12.0 MiB"."""
    return f"{count / GIB:,.2f} GiB" if count >= 0.1 * GIB else f"{count / (1 << 20):.1f} MiB"


def duration(seconds: float) -> str:
    """Time for people: "36.5 h", "12.0 min", "4.0 s"."""
    unit, size = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if seconds >= s or s == 1)
    return f"{seconds / size:,.1f} {unit}"
