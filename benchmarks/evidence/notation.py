"""How figures are written in a table."""

from __future__ import annotations

from collections.abc import Sequence

from figures import Figure

NONE = "–"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(scored: Figure | None) -> str:
    """A share in percent, with its interval."""
    return NONE if scored is None else f"{100 * scored.value:.1f}{_range(scored)}"


def points(apart: Figure | None) -> str:
    """A difference of shares in points, signed, with its interval."""
    return NONE if apart is None else f"{100 * apart.value:+.1f}{_range(apart, '+')}"


def points_by_seed(apart: Figure | None) -> str:
    """`points`, and between which differences the seeds are, which the interval doesn't cover."""
    if apart is None or len(apart.by_seed) < 2:
        return points(apart)
    low, high = min(apart.by_seed.values()), max(apart.by_seed.values())
    return f"{points(apart)}, seeds {100 * low:+.1f} to {100 * high:+.1f}"


def _range(scored: Figure, sign: str = "") -> str:
    interval = scored.interval
    return "" if interval is None else f" [{100 * interval[0]:{sign}.1f}, {100 * interval[1]:{sign}.1f}]"
