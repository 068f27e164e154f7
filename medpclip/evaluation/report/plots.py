"""The report's curves. All can be told apart in black and white: by line style and marker."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

_LOSSES = {"loss": ("-", 2.0), "loss_image": ("--", 1.2), "loss_region": (":", 1.8)}
_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("--", "x"), (":", "v"), ("-", "+"), ("-.", "*"))
_JITTERED = re.compile(r"(\w+) jittered ([\d.]+)%")
Row = dict[str, Any]


def loss_curves(log: Sequence[Row]) -> bytes | None:
    """PNG of the losses over the steps; None where the log has none.

    Args:
        log: rows with "step" and any of "loss", "loss_image", "loss_region"; others are passed over.
    """
    figure, [axes] = _figure(1, (7, 3.2))
    drawn = False
    for name, (style, width) in _LOSSES.items():
        points = [(row["step"], row[name]) for row in log if _is_number(row.get("step")) and _is_number(row.get(name))]
        if points:
            steps, values = _averaged(np.array(points, float))
            axes.plot(steps, values, style, color="black", linewidth=width, label=name.replace("_", " "))
            drawn = True
    if not drawn:
        return None
    _label(axes, "step", "loss")
    axes.legend(loc="upper right", fontsize=8)
    return png(figure)


def reliability_curves(curves: Sequence[Row]) -> bytes:
    """PNG of reliability curves, a panel each: accuracy over confidence, with the shares of the cases as hatched bars.

    Args:
        curves: of a result's `calibration`.
    """
    figure, panels = _figure(len(curves), (2.7, 2.7), columns=4)
    for axes, curve in zip(panels, curves, strict=True):
        known = [one for one in curve["bins"] if one["cases"]]
        total = sum(one["cases"] for one in known)
        axes.plot([0, 1], [0, 1], ":", color="black", linewidth=1)
        for one in known:
            width = one["high"] - one["low"]
            axes.bar(
                one["low"], one["cases"] / total, width, align="edge", color="white", edgecolor="grey", hatch="////"
            )
        axes.plot([b["confidence"] for b in known], [b["accuracy"] for b in known], "-o", color="black", markersize=4)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), title=plain(curve["title"]))
        axes.title.set_fontsize(8)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("confidence", fontsize=8)
        axes.set_ylabel("share right", fontsize=8)
    return png(figure)


def curves_picture(
    curves: Mapping[str, Sequence[Row]], ticks: Sequence[str], xlabel: str, ylabel: str = "balanced accuracy in %"
) -> bytes:
    """PNG of figures over ordered categories, with their intervals as bars.

    Args:
        curves: a line's name -> rows with "at" (an index of `ticks`), "value" and "interval".
        ticks: the categories.
        xlabel, ylabel: what they are.
    """
    figure, [axes] = _figure(1, (7.5, 3.8))
    shift = np.linspace(-0.12, 0.12, len(curves)) if len(curves) > 1 else [0.0]  # bars beside, not over one another
    for offset, (style, marker), (name, rows) in zip(shift, cycle(_STYLES), curves.items(), strict=False):
        known = sorted((row for row in rows if row["value"] is not None), key=lambda row: row["at"])
        x = [row["at"] + offset for row in known]
        y = [100 * row["value"] for row in known]
        spans = [row["interval"] or [row["value"]] * 2 for row in known]
        below = [max(0.0, v - 100 * low) for v, (low, _) in zip(y, spans, strict=True)]
        above = [max(0.0, 100 * high - v) for v, (_, high) in zip(y, spans, strict=True)]
        axes.errorbar(
            x, y, (below, above), fmt=style + marker, color="black", linewidth=1.2, markersize=5, capsize=2,
            elinewidth=0.6, markerfacecolor="white", label=plain(name),
        )  # fmt: skip
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(xlim=(-0.5, len(ticks) - 0.5), ylim=(0, 103))
    _label(axes, xlabel, ylabel)
    figure.legend(loc="outside right upper", fontsize=8)
    return png(figure)


def jitter_of(prompt: str) -> tuple[str, float] | None:
    """Prompt kind and percent of a jittered prompt's name, as "box jittered 10%"; None for other names."""
    found = _JITTERED.fullmatch(prompt)
    return (found[1], float(found[2])) if found else None


def plain(text: str) -> str:
    """Text that matplotlib doesn't take for a formula."""
    return text.replace("$", r"\$")


def png(figure: Any) -> bytes:
    """The figure's bytes: without the software's version and date, so that the same figure gives the same ones."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
    return stream.getvalue()


def _figure(panels: int, size: tuple[float, float], columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]


def _label(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)


def _averaged(points: np.ndarray, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) steps and values, as means over `count` stretches where there are more."""
    parts = np.array_split(points, min(count, len(points)))
    return np.array([p[:, 0].mean() for p in parts]), np.array([p[:, 1].mean() for p in parts])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
