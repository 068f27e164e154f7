from typing import Any, cast

import numpy as np
import pytest

from medpclip.data.schema import Region, Sample
from medpclip.evaluation.corpus import Item
from medpclip.evaluation.results.subgroups import SIZES, parts, size_of, subgroup_rows
from medpclip.evaluation.scores import Case, Evaluation, MultiLabelScores, Scores
from medpclip.evaluation.task import Bootstrap, RegionTask, Task

TASK = Task("t", "d", region=RegionTask(["{name}"]), bootstrap=Bootstrap(draws=50))


def case(i: int, true: int, side: float | None = None, modality: str = "CT", source: str = "s") -> Case:
    sample = Sample(f"k{i}", source, "test", f"g{i // 2}", modality, 100, 100)
    region = None if side is None else Region(0, "liver", [0.0, 0.0, side, side] if side else None, points=[[1.0, 1.0]])
    return Case(Item(cast(Any, None), i, sample), true, region)


def values(answers: list[int]) -> np.ndarray:
    return np.log(np.where(np.eye(2)[answers] == 1, 0.9, 0.1)).astype(np.float32)


def test_bins_are_of_the_side_and_hold_their_lower_edge():
    assert [size_of(side**2) for side in (0.019, 0.03, 0.1, 0.3, 0.5, 1.0)] == [name for _, name in SIZES] + [
        "from 40 %"
    ]
    assert size_of(0.0004000001) == "2 to 5 %" and size_of(0.0) == "below 2 %"


def test_each_subgroup_is_measured_alone():
    cases = [case(i, i % 2, side) for i, side in enumerate([1, 1, 1, 1, 30, 30, 30, 30, 0])]
    answers = [0, 1, 0, 1, 1, 0, 0, 1, 0]  # tiny ones are right, large ones half
    scores = Scores("region", "s", ["liver", "spleen"], cases, {("box", "prompted"): values(answers)})
    rows = list(subgroup_rows(Evaluation([scores]), TASK, None))
    assert [(r.part, r.value, r.cases, r.groups, r.metric) for r in rows] == [
        ("size: below 2 %", 1.0, 4, 2, "balanced_accuracy"),
        ("size: 15 to 40 %", 0.5, 4, 2, "balanced_accuracy"),
    ]
    assert rows[0].interval == [1.0, 1.0] and (rows[0].section, rows[0].name, rows[0].prompt) == ("region", "s", "box")


def test_images_by_modality_and_source_and_labels_too():
    cases = [case(i, i % 2, None, "CT" if i < 4 else "MRI", "a" if i % 4 < 2 else "b") for i in range(8)]
    image = Scores("image", "labels.x", ["no", "yes"], cases, {("image", "unprompted"): values([0, 1] * 4)})
    truth = np.array([[i % 2, 0] for i in range(8)], np.int8)
    labels = MultiLabelScores(
        "labels.y", ["p", "q"], cases, truth, {("image", "unprompted"): np.log(0.1 + 0.8 * truth)}
    )
    rows = list(subgroup_rows(Evaluation([image], [labels]), TASK, None))
    expected = ["modality: CT", "modality: MRI", "source: a", "source: b"]
    assert [(r.section, r.part) for r in rows] == [(s, p) for s in ("image", "multi_label") for p in expected]
    assert all(r.value == 1 and r.cases == 4 for r in rows)
    assert {r.metric for r in rows if r.section == "multi_label"} == {"mean_average_precision"}


def test_cases_that_were_not_asked_are_in_no_subgroup_and_other_sections_have_none():
    cases = [case(i, i % 2, 1.0 if i < 2 else 30.0) for i in range(4)]
    found = values([0, 1, 0, 1])
    found[2:] = np.nan
    region = Scores("region", "s", ["liver", "spleen"], cases, {("box", "prompted"): found})
    worse = Scores("robustness", "s", ["liver", "spleen"], cases, {("box missing", "prompted"): values([0, 1, 0, 1])})
    assert not list(subgroup_rows(Evaluation([region, worse]), TASK, None))  # only tiny ones were asked


@pytest.mark.parametrize("seed", range(3))
def test_parts_divide_the_cases(seed):
    rng = np.random.default_rng(seed)
    groups = [
        {"modality": str(rng.choice(["CT", "MRI"])), "source": "s", "size": str(rng.choice([n for _, n in SIZES]))}
        for _ in range(40)
    ]
    found = dict(parts(groups))
    for division in ("modality", "size"):
        chosen = np.concatenate([rows for name, rows in found.items() if name.startswith(division)])
        assert sorted(chosen) == list(range(40))
    assert not any(name.startswith("source") for name in found)  # all together
    sizes = [name.removeprefix("size: ") for name in found if name.startswith("size")]
    assert sizes == [name for _, name in SIZES if name in sizes]
