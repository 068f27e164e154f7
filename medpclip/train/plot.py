"""`medpclip train plot`: runs as one picture, from their log.jsonl."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medpclip.errors import MedpclipError
from medpclip.files import write_atomically
from medpclip.train.tracking.jsonl import LOG, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that the colour-blind can tell apart (Okabe and Ito 2008), the palest left out; then line styles.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_COLUMNS = 3
_MOST_FIGURES = 6  # of evaluation; a picture isn't a table


@dataclass(frozen=True)
class Panel:
    """Attributes:
    title: also names the unit.
    keys: of the log's lines, in the order of their line styles.
    kind: of the lines: "train" or "eval".
    axis: "linear", "log", "zero" (linear from 0) or "share" (from 0 to 1).
    exact: values without noise, which aren't smoothed.
    """

    title: str
    keys: tuple[str, ...]
    kind: str = "train"
    axis: Literal["linear", "log", "zero", "share"] = "linear"
    exact: bool = False


_PANELS = (
    Panel("loss", ("loss", "loss_image", "loss_region", "loss_anchor")),
    Panel("hit rate in training", ("region_hit_rate", "image_hit_rate"), axis="share"),
    Panel("gradient norm before clipping", ("grad_norm",), axis="log"),
    Panel("logit scale", ("logit_scale", "region_logit_scale"), exact=True),
    Panel("learning rate", ("lr",), exact=True),
    Panel("throughput, per second", ("images_per_second", "regions_per_second"), axis="zero"),
    Panel("share of peak FLOP/s, of time, of texts", ("mfu", "data_wait_share", "truncation_rate"), axis="share"),
    Panel("prompt sensitivity, 1 - cosine", ("prompt_sensitivity",), axis="zero"),
)


@dataclass
class Run:
    """A run's log under the name that the picture gives it."""

    name: str
    rows: list[dict[str, Any]]

    def series(self, key: str, kind: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the lines that have the key; NaN for null."""
        found = [(row["step"], row[key]) for row in self.rows if row.get("kind", "train") == kind and key in row]
        points = [(step, np.nan if value is None else value) for step, value in found if _is_number(value)]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps, float), np.array(values, float)

    def keys(self, kind: str) -> list[str]:
        """All keys of the lines of a kind, in the order in which they come."""
        names = dict.fromkeys(key for row in self.rows if row.get("kind", "train") == kind for key in row)
        return [name for name in names if name not in ("step", "kind")]

    @property
    def skipped(self) -> list[int]:
        """Steps of lines in which a step was skipped, or that have no finite gradient norm."""
        rows = (row for row in self.rows if row.get("kind", "train") == "train")
        return [row["step"] for row in rows if row.get("skipped_steps") or row.get("grad_norm", 0) is None]


def add_plot_parser(verbs: Any) -> None:
    """Register the verb `train plot` with the subparsers of argparse."""
    parser = verbs.add_parser(
        "train plot",
        help="plot runs from their log.jsonl",
        description="Plot one run, or several over one another, from their log.jsonl as a PNG.",
        usage="medpclip train plot RUN [RUN ...] [--out FILE.png] [--smooth N]",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or its log.jsonl")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="default: plot.png in the first run's folder")
    parser.add_argument("--smooth", type=int, default=1, metavar="N", help="draw means over N lines of the log")
    parser.set_defaults(run=run_plot)


def run_plot(args: argparse.Namespace) -> int:
    """Run `medpclip train plot`."""
    first: Path = args.runs[0]
    out = args.out or (first if first.is_dir() else first.parent) / "plot.png"
    print(f"plot: {plot_runs(args.runs, out, args.smooth)}")
    return 0


def plot_runs(paths: Sequence[Path], out: Path, smooth: int = 1) -> Path:
    """Write the picture.

    Args:
        paths: runs' folders, or their logs.
        out: the PNG to write.
        smooth: lines of the log over which a mean is drawn, with the single ones pale behind it; 1 for these alone.

    Returns:
        `out`.

    Raises:
        MedpclipError: a run without a log or with nothing in it, or `out` can't be written.
    """
    if smooth < 1:
        raise MedpclipError(f"--smooth is {smooth}, expected at least 1")
    if out.suffix.lower() != ".png" or out.is_dir():
        raise MedpclipError(f"--out {out}: the plot is a picture; give a file's name that ends in .png")
    runs = read_runs(paths)
    try:
        data = _draw(runs, smooth)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, data)
    except ImportError:
        raise MedpclipError("train plot needs matplotlib; install the extra: pip install 'medpclip[eval]'") from None
    except OSError as error:
        raise MedpclipError(f"--out {out}: can't be written ({error.strerror}); choose another place") from None
    return out


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The logs of runs, each under the shortest end of its path that no other has."""
    runs = []
    for path in paths:
        log = path / LOG if path.is_dir() else path
        try:
            rows = read_log(log)
        except OSError as error:
            raise MedpclipError(f"{log}: can't be read ({error.strerror}); give a run's folder, or its {LOG}") from None
        if not rows:
            raise MedpclipError(f"{log}: has no line yet; wait for the run's first, or give another run")
        runs.append(rows)
    folders = [(path if path.is_dir() else path.parent).absolute().parts for path in paths]
    longest = max(map(len, folders))
    for length in range(1, longest + 1):
        names = ["/".join(parts[-length:]) for parts in folders]
        if len(set(names)) == len(set(folders)):
            break
    return [Run(name, rows) for name, rows in zip(names, runs, strict=True)]


def _draw(runs: Sequence[Run], smooth: int) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = [panel for panel in _with_evaluation(runs) if any(_has(run, panel) for run in runs)]
    if not panels:
        raise MedpclipError(f"{runs[0].name}/{LOG}: has no figure that is plotted; give another run")
    height = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(5.2 * _COLUMNS, 3.2 * height + 0.6), layout="constrained")
    axes = figure.subplots(height, _COLUMNS, squeeze=False)
    for spare in axes.flat[len(panels) :]:
        spare.set_axis_off()
    last = max(row["step"] for run in runs for row in run.rows)
    for place, panel in zip(axes.flat, panels, strict=False):
        _panel(place, panel, runs, smooth)
        place.set_xlim(-0.02 * last, 1.02 * last)
    if len(runs) > 1:
        handles = [Line2D([], [], color=_colour(i), linewidth=3, label=run.name) for i, run in enumerate(runs)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(runs)), frameon=False)
    else:
        figure.suptitle(runs[0].name, fontsize=12)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _with_evaluation(runs: Sequence[Run]) -> Iterator[Panel]:
    """The panels, behind those of the losses a panel of what evaluation found."""
    names = list(dict.fromkeys(name for run in runs for name in run.keys("eval")))
    # Ours before those it is compared with, a mean before its parts; the order is else the tasks'.
    ours = [name for name in names if "/prompted/" in name or "/image/" in name] or names
    ours.sort(key=lambda name: "/MEAN/" not in name)
    evaluation = Panel("evaluation", tuple(ours[:_MOST_FIGURES]), kind="eval", axis="share")
    yield from _PANELS[:2]
    yield evaluation
    yield from _PANELS[2:]


def _has(run: Run, panel: Panel) -> bool:
    return any(np.isfinite(run.series(key, panel.kind)[1]).any() for key in panel.keys)


def _panel(axes: Axes, panel: Panel, runs: Sequence[Run], smooth: int) -> None:
    several = len(runs) > 1
    labels: set[str] = set()
    for number, run in enumerate(runs):
        for order, key in enumerate(panel.keys):
            steps, values = run.series(key, panel.kind)
            if not np.isfinite(values).any():
                continue
            colour = _colour(number if several else order)
            label = None if key in labels else _label(key, panel)
            labels.add(key)
            _line(axes, steps, values, panel, smooth, colour, _STYLES[order % len(_STYLES)], label)
        if panel.keys == ("grad_norm",) and run.skipped:
            # At the lower edge, whatever the norms are: a skipped step may have none.
            place = axes.get_xaxis_transform()
            mark = _colour(number) if several else "#D55E00"
            name = "skipped step" if "skipped" not in labels else None
            labels.add("skipped")
            height = np.full(len(run.skipped), 0.03)
            axes.plot(run.skipped, height, "^", color=mark, markersize=6, transform=place, label=name, clip_on=False)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, which="both" if panel.axis == "log" else "major")
    axes.spines[["top", "right"]].set_visible(False)
    if panel.axis == "log":
        _logarithmic(axes)
    elif panel.axis == "share":
        axes.set_ylim(0, 1.02)
    elif panel.axis == "zero":
        axes.set_ylim(bottom=0)
    if len(labels) > 1:
        legend = axes.legend(fontsize=8, framealpha=0.7, edgecolor="none")
        for handle in legend.get_lines() if several else ():
            handle.set_color("black")  # there, colours are the runs'


def _line(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    panel: Panel,
    smooth: int,
    colour: str,
    style: Any,
    label: str | None,
) -> None:
    dots = panel.kind == "eval" or np.isfinite(values).sum() == 1
    if smooth > 1 and panel.kind == "train" and not panel.exact:
        axes.plot(steps, values, style, color=colour, linewidth=0.8, alpha=0.25)
        values = averaged(values, smooth)
    axes.plot(
        steps,
        values,
        linestyle=style,
        color=colour,
        linewidth=1.5,
        marker="o" if dots else None,
        markersize=4,
        label=label,
    )


def _logarithmic(axes: Axes) -> None:
    """Plain numbers at 1, 2 and 5 of each power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def averaged(values: np.ndarray, width: int) -> np.ndarray:
    """(n,) -> means over `width` neighbours around each, fewer at the ends; NaN counts for nothing and stays NaN."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - (width - 1) // 2, 0), np.minimum(centre + width // 2 + 1, len(values))
    means = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(finite, means, np.nan)


def _label(key: str, panel: Panel) -> str:
    if panel.kind == "eval":
        return key.removesuffix("/balanced_accuracy").replace("/prompted", "")
    return key.replace("_", " ")


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
