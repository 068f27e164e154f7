"""The numbers of folders of shards as one HTML page of plots, readable in black and white.

The page is one file without links, and can be shared as statistics can: terms, counts, places of regions; no images,
texts, names or keys.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medpclip.data.inspection.stats import CategoryTally, FolderTally, format_stats, stats_json
from medpclip.errors import MedpclipError
from medpclip.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_BARS, _MOST_MAPS = 25, 12
_HATCHES = {"train": "", "val": "////", "test": "...."}
_GREYS = {"train": "0.35", "val": "0.75", "test": "1.0"}
_STYLE = (
    "body{font:15px/1.4 sans-serif;max-width:1150px;margin:2em auto;padding:0 1em}"
    "pre{overflow-x:auto;font-size:13px}figure{margin:1.5em 0}img{max-width:100%}figcaption{color:#333}"
)


def write_plots(tallies: Sequence[FolderTally], out: Path) -> Path:
    """Write the page.

    Args:
        tallies: of the folders, in the order of the page.
        out: the HTML file to write.

    Returns:
        `out`.

    Raises:
        MedpclipError: `out` isn't an HTML file's name, or can't be written.
    """
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise MedpclipError(f"{out}: the plots are one HTML page; give a name that ends in .html")
    body = "\n".join(map(_section, tallies))
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Statistics</title><style>{_STYLE}</style>'
        f"</head><body>\n<h1>Statistics</h1>\n{body}\n</body></html>\n"
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, page.encode())
    except OSError as error:
        raise MedpclipError(f"{out}: can't be written ({error.strerror}); choose another place") from None
    return out


def _section(tally: FolderTally) -> str:
    parts = [f"<h2>{html.escape(tally.source)}</h2>", f"<pre>{html.escape(format_stats(stats_json(tally)))}</pre>"]
    for caption, draw in _PLOTS:
        figure = draw(tally)
        if figure is not None:
            text = html.escape(caption)
            parts.append(f'<figure><img alt="{text}" src="{_embed(figure)}"><figcaption>{text}</figcaption></figure>')
    return "\n".join(parts)


def _embed(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], what: str, log: bool = False) -> None:
    places = np.arange(len(names))[::-1]
    drawn = axes.barh(places, values, color="0.6", edgecolor="black", linewidth=0.6)
    axes.bar_label(drawn, labels=[f"{value:,}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(places, [_shorten(name) for name in names], fontsize=8)
    axes.set_xlabel(what)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.margins(x=0.12)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(0.8, 3 * max(values))


def _shorten(name: str) -> str:
    return name if len(name) <= 44 else name[:43] + "…"


def _category_counts(tally: FolderTally) -> Figure | None:
    shown = tally.ordered()
    if not shown:
        return None
    names, values = [name for name, _ in shown[:_MOST_BARS]], [c.regions for _, c in shown[:_MOST_BARS]]
    if rest := shown[_MOST_BARS:]:
        names.append(f"{len(rest)} more categories")
        values.append(sum(c.regions for _, c in rest))
    figure, ((axes,),) = _figure(9, 1 + 0.26 * len(names))
    _bars(axes, names, values, "regions (logarithmic)", log=True)
    return figure


def _regions_per_image(tally: FolderTally) -> Figure:
    figure, ((axes,),) = _figure(9, 3)
    counts = np.array([n for n in tally.regions_per_image.elements()])
    bins: Any = np.arange(-0.5, counts.max() + 1.5) if counts.max() < 60 else 60
    axes.hist(counts, bins=bins, color="0.6", edgecolor="black", linewidth=0.4)
    axes.set_xlabel("regions in an image")
    axes.set_ylabel("images")
    return figure


def _areas(tally: FolderTally) -> Figure | None:
    shown = [(name, [a for a in c.areas.values if a > 0]) for name, c in tally.ordered()]
    shown = [(name, areas) for name, areas in shown if areas][:_MOST_BARS]
    if not shown:
        return None
    figure, ((axes,),) = _figure(9, 1 + 0.26 * len(shown))
    axes.boxplot(
        [np.array(areas) * 100 for _, areas in shown][::-1],
        orientation="horizontal",
        whis=(1, 99),
        showfliers=False,
        medianprops={"color": "black", "linewidth": 2},
    )
    axes.set_yticks(range(1, len(shown) + 1), [_shorten(name) for name, _ in shown][::-1], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("share of the image in per cent (logarithmic)")
    return figure


def _sizes(tally: FolderTally) -> Figure:
    figure, ((axes,),) = _figure(6, 4.5)
    sizes = tally.sizes.most_common(2000)
    weight = np.array([count for _, count in sizes], float)
    axes.scatter(
        [w for (w, _), _ in sizes],
        [h for (_, h), _ in sizes],
        s=12 + 300 * weight / weight.sum(),
        facecolors="none",
        edgecolors="black",
    )
    for (w, h), count in sizes[:3]:
        axes.annotate(f"{w} x {h}: {count:,}", (w, h), (8, 6), textcoords="offset points", fontsize=8)
    axes.set_xlim(0, 1.3 * max(w for (w, _), _ in sizes))
    axes.set_ylim(0, 1.3 * max(h for (_, h), _ in sizes))
    axes.set_xlabel("width in pixels")
    axes.set_ylabel("height in pixels")
    return figure


def _centres(tally: FolderTally) -> Figure | None:
    shown: list[tuple[str, CategoryTally]] = tally.ordered()[:_MOST_MAPS]
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = _figure(2.4 * columns, 2.6 * rows, rows, columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, category) in zip(axes.flat, shown, strict=False):
        axis.imshow(category.centres, cmap="Greys", vmin=0, extent=(0, 1, 1, 0))
        axis.set_title(f"{name[:30]}\n{category.regions:,} regions", fontsize=8)
        axis.set_axis_on()
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def _splits(tally: FolderTally) -> Figure | None:
    rows: list[tuple[str, dict[str, int]]] = [
        (what, {split: counts[key] for split, counts in tally.splits.items()})
        for what, key in (("images", "samples"), ("groups", "groups"), ("regions", "regions"))
    ]
    rows += [(name, dict(c.splits)) for name, c in tally.ordered()[:_MOST_BARS]]
    figure, ((axes,),) = _figure(9, 1.2 + 0.26 * len(rows))
    places = np.arange(len(rows))[::-1]
    left = np.zeros(len(rows))
    for split in (s for s in _HATCHES if s in tally.splits):
        share = np.array([100 * counts.get(split, 0) / max(1, sum(counts.values())) for _, counts in rows])
        axes.barh(
            places,
            share,
            left=left,
            label=split,
            color=_GREYS[split],
            hatch=_HATCHES[split],
            edgecolor="black",
            linewidth=0.6,
        )
        left += share
    axes.set_yticks(places, [_shorten(name) for name, _ in rows], fontsize=8)
    axes.set_xlabel("share in per cent")
    axes.set_ylim(-0.6, len(rows) - 0.4)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def _quarantine(tally: FolderTally) -> Figure | None:
    if not tally.quarantine:
        return None
    names = list(tally.quarantine)[:_MOST_BARS]
    figure, ((axes,),) = _figure(9, 1 + 0.26 * len(names))
    _bars(axes, names, [tally.quarantine[name]["faults"] for name in names], "faults")
    return figure


_PLOTS: tuple[tuple[str, Callable[[FolderTally], Any]], ...] = (
    ("Regions of each category: the long tail.", _category_counts),
    ("Share of the image that a region covers: median, quartiles, 1st and 99th percentile.", _areas),
    ("Regions in an image.", _regions_per_image),
    ("Sizes of images; larger circles for more images.", _sizes),
    (
        "Where the centres of regions lie in the image, dark for many. A category that always lies at one place can be "
        "told by the place alone.",
        _centres,
    ),
    ("Shares of the splits, of all and of each category.", _splits),
    ("Why parts of the source were quarantined.", _quarantine),
)
