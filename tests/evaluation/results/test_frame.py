"""The tidy table has each figure of a result once, and is read back as it was written."""

import io

import pandas
import pytest

from medpclip.evaluation.results.frame import BLOCKS, COLUMNS, figures_csv, figures_frame

ROW = {
    "section": "region", "name": "s", "part": None, "prompt": "box", "comparator": "prompted", "minus_prompt": None,
    "minus": None, "metric": "accuracy", "value": 0.25, "interval": [0.125, 0.5], "level": 0.95, "cases": 8, "images": 4,
    "groups": 2, "split": "test", "exposure": "unseen source", "sources": ["s", "t, u"], "candidates": 3,
    "classes": ["a", "b"], "templates_sha256": "0",
}  # fmt: skip


def result(model: str) -> dict:
    rows = {block: [ROW | {"name": f"{block} {i}"} for i in range(k + 1)] for k, block in enumerate(BLOCKS)}
    rows["pairs"].append(ROW | {"name": "none", "value": None, "interval": None})
    return {"task": {"name": "a task"}, "model": {"name": model}} | rows


def test_each_figure_is_a_line():
    frame = figures_frame([result("one"), result("two")])
    assert tuple(frame.columns) == COLUMNS and len(frame) == 2 * (1 + 2 + 3 + 4 + 5 + 1)
    assert frame.groupby("model").size().to_dict() == {"one": 16, "two": 16}
    some = frame[(frame.model == "two") & (frame.name == "subgroups 4")].iloc[0]
    assert (some.block, some.value, some.low, some.high, some.cases) == ("subgroups", 0.25, 0.125, 0.5, 8)
    assert some.sources == "s; t, u"


def test_csv_is_read_back():
    frame = figures_frame([result("a, model")])
    read = pandas.read_csv(io.BytesIO(figures_csv([result("a, model")])))
    one, other = (some.astype(object).where(some.notna(), None).to_dict("records") for some in (read, frame))
    assert one == other
    assert read[read.name == "none"].value.isna().all()


def test_no_result_is_a_table_without_lines():
    assert figures_csv([]).decode() == ",".join(COLUMNS) + "\n"
    with pytest.raises(KeyError):
        figures_frame([{}])
