"""What is drawn, read back from the figure; logs of other versions, and what can't be drawn."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.errors import MedpclipError
from medpclip.train import plot
from medpclip.train.plot import Run, averaged, plot_runs, read_runs

pytest.importorskip("matplotlib")


def write_run(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def full_rows(end: int = 200) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(10, end + 1, 10):
        rows.append(
            {
                "step": step, "kind": "train", "loss": 5 * math.exp(-step / 100), "loss_image": 2.0, "loss_region": 3.0,
                "region_hit_rate": 0.5, "grad_norm": None if step == 50 else 1.5, "skipped_steps": float(step in (50, 90)),
                "logit_scale": 14.3, "region_logit_scale": 15.0, "lr": 1e-4, "images_per_second": 90.0,
                "regions_per_second": 300.0, "mfu": 0.4, "data_wait_share": 0.02, "prompt_sensitivity": 0.1,
                "truncation_rate": 0.0,
            }
        )  # fmt: skip
        if step % 100 == 0:
            scores = {f"t/region/{s}/box/{c}/balanced_accuracy": 0.5 for s in ("a", "b") for c in ("prompted", "crop")}
            scores |= {"t/region/MEAN/box/prompted/balanced_accuracy": 0.5, "t/image/modality/balanced_accuracy": 1.0}
            rows.append({"step": step, "kind": "eval", **scores})
    return rows


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    save = Figure.savefig

    def keep(self: Any, *args: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def panels(figure: Any) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.lines}


def test_every_figure_has_its_place(tmp_path: Path, drawn: list[Any]) -> None:
    run = write_run(tmp_path / "trial", full_rows())
    out = plot_runs([run], tmp_path / "plots" / "a.png", smooth=3)
    with Image.open(out) as picture:
        assert picture.format == "PNG" and min(picture.size) > 800
        assert str(tmp_path) not in str(picture.info)
    places = panels(drawn[0])
    assert len(places) == 9
    (smooth,) = (line for line in places["loss"].lines if line.get_label() == "loss")
    raw = next(line for line in places["loss"].lines if line.get_alpha() == 0.25)
    want = np.array([5 * math.exp(-step / 100) for step in range(10, 201, 10)])
    assert np.array_equal(raw.get_xdata(), np.arange(10, 201, 10)) and np.allclose(raw.get_ydata(), want)
    assert np.allclose(smooth.get_ydata()[1:-1], (want[:-2] + want[1:-1] + want[2:]) / 3)
    norm = places["gradient norm before clipping"]
    (marks,) = (line for line in norm.lines if line.get_label() == "skipped step")
    assert list(marks.get_xdata()) == [50, 90]
    evaluation = [line.get_label() for line in places["evaluation"].lines]
    assert evaluation == ["t/region/MEAN/box", "t/region/a/box", "t/region/b/box", "t/image/modality"]


def test_runs_lie_over_one_another_in_one_colour_each(tmp_path: Path, drawn: list[Any]) -> None:
    runs = [write_run(tmp_path / name / "run", full_rows(end)) for name, end in (("x", 200), ("y", 120))]
    plot_runs(runs, tmp_path / "both.png")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["x/run", "y/run"]
    colours = [line.get_color() for line in legend.get_lines()]
    lines = panels(drawn[0])["loss"].lines
    assert [line.get_color() for line in lines] == [colours[0]] * 3 + [colours[1]] * 3
    assert [line.get_linestyle() for line in lines[:3]] == [line.get_linestyle() for line in lines[3:]]
    assert {axes.get_xlim() for axes in drawn[0].axes if axes.lines} == {(-4.0, 204.0)}


def test_logs_of_other_versions_are_drawn_as_far_as_they_go(tmp_path: Path, drawn: list[Any]) -> None:
    old = write_run(tmp_path / "old", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "much"}, {"step": 3, "new": [1]}])
    nothing_finite = write_run(tmp_path / "broken", [{"step": 1, "kind": "train", "loss": None, "grad_norm": None}])
    plot_runs([old, nothing_finite], tmp_path / "a.png", smooth=4)
    assert list(panels(drawn[0])) == ["loss"]


@pytest.mark.parametrize("rows", [[], [{"loss": 1.0}], [{"step": 1, "kind": "train", "unheard_of": 1.0}]])
def test_a_log_with_nothing_in_it_is_one_line(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(MedpclipError, match=r"log\.jsonl: has no .*give another run") as caught:
        plot_runs([write_run(tmp_path / "run", rows)], tmp_path / "a.png")
    assert "\n" not in str(caught.value) and not (tmp_path / "a.png").exists()


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", full_rows())
    with pytest.raises(
        MedpclipError, match=r"nowhere: can't be read \(No such file or directory\); give a run's folder"
    ):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(MedpclipError, match=r"a\.pdf: the plot is a picture"):
        plot_runs([run], tmp_path / "a.pdf")
    with pytest.raises(MedpclipError, match="--smooth is 0"):
        plot_runs([run], tmp_path / "a.png", 0)
    with pytest.raises(MedpclipError, match=r"log\.jsonl/a\.png: can't be written"):
        plot_runs([run], run / "log.jsonl" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MedpclipError, match=r"needs matplotlib; install the extra"):
        plot_runs([run], tmp_path / "a.png")


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    plot.add_plot_parser(parser.add_subparsers())
    run = write_run(tmp_path / "run", full_rows())
    args = parser.parse_args(["train plot", str(run), "--smooth", "5"])
    assert args.run(args) == 0
    assert capsys.readouterr().out == f"plot: {run / 'plot.png'}\n" and (run / "plot.png").is_file()


def test_names_are_as_short_as_can_be(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, full_rows(10)) for name in ("a/run", "b/run", "b/other")]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run", "b/other"]
    assert [run.name for run in read_runs(paths[1:])] == ["run", "other"]
    assert [run.name for run in read_runs([paths[0], paths[0] / "log.jsonl"])] == ["run", "run"]


def test_means_leave_out_what_is_missing() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0, 4.0])
    assert np.allclose(averaged(values, 3), [1.0, np.nan, 4.0, 4.0, 4.5], equal_nan=True)
    rng = np.random.default_rng(0)
    long = rng.normal(size=40)
    for width in (1, 2, 5, 100):
        want = [long[max(0, i - (width - 1) // 2) : i + width // 2 + 1].mean() for i in range(40)]
        assert np.allclose(averaged(long, width), want)


def test_null_is_a_gap() -> None:
    run = Run("r", [{"step": 1, "lr": 1.0}, {"step": 2, "lr": None}, {"step": 3, "lr": True}])
    steps, values = run.series("lr")
    assert list(steps) == [1, 2] and values[0] == 1 and np.isnan(values[1])


def test_it_needs_no_torch() -> None:
    code = "import sys, medpclip.train.plot; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
