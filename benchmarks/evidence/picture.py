"""A table of ways to point as a picture: readable in black and white, and the same bytes each time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from figures import ACCURACY, over_sources
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from plan import MIXED, PROMPTS, is_comparator
from trained import Trained

_MARKERS = {"box": "s", "point": "o", "mask": "^"}
_SHIFT = 0.22  # between the prompt kinds of one way


def draw_ways(runs: Mapping[str, Trained], file: Path) -> None:
    """Write an SVG: a line for each way, its headline by box, point and mask with intervals, the best by box on top."""
    scores = {name: {p: over_sources(run.test, MIXED, p, ACCURACY) for p in PROMPTS} for name, run in runs.items()}

    def by_box(name: str) -> float:
        scored = scores[name]["box"]
        return -1.0 if scored is None else scored.value

    order = sorted(runs, key=by_box)
    figure = Figure(figsize=(7.5, 0.42 * len(order) + 1.1), layout="constrained")
    axes = figure.add_subplot()
    for line, prompt in enumerate(PROMPTS):
        for place, name in enumerate(order):
            scored = scores[name][prompt]
            if scored is None or scored.interval is None:
                continue
            value, (low, high) = 100 * scored.value, (100 * edge for edge in scored.interval)
            axes.errorbar(
                value,
                place + (1 - line) * _SHIFT,
                xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                marker=_MARKERS[prompt],
                color="black",
                markerfacecolor="white" if is_comparator(name) else "black",
                markersize=5,
                linewidth=1,
                capsize=2,
                label=prompt if place == 0 else None,
            )
    axes.set_yticks(range(len(order)), order, fontsize=9)
    axes.set_xlabel("balanced accuracy, %", fontsize=9)
    axes.grid(axis="x", color="#cccccc", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=9, title="filled: ours", title_fontsize=9)
    _write(figure, file)


def _write(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"svg.hashsalt": "medpclip", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
