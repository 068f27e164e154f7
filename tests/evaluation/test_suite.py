"""Suites: which tasks they name, and which of their results still hold."""

import json
from pathlib import Path

import pytest
import yaml

from medpclip.errors import MedpclipError
from medpclip.evaluation.suite import (
    BESIDE,
    REPORT,
    folder_name,
    is_suite,
    read_finished,
    read_suite,
    stamp,
    suite_table,
)
from medpclip.evaluation.task import RegionTask, Task

TASK = {"name": "t", "data": ["somewhere/shards", "elsewhere/more"], "region": {"templates": ["{name}"]}}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def test_tasks_lie_beside_the_suite_and_take_overrides_and_data(tmp_path: Path) -> None:
    write(tmp_path / "tasks" / "a.yaml", TASK)
    write(tmp_path / "tasks" / "b.yaml", TASK | {"name": "of: b!"})
    suite = write(tmp_path / "suites" / "s.yaml", {"name": "s", "tasks": ["../tasks/a.yaml", "../tasks/b.yaml"]})
    assert is_suite(suite) and not is_suite(tmp_path / "tasks" / "a.yaml")
    name, tasks = read_suite(suite, ["seed=3"])
    assert name == "s" and [asked.folder for asked in tasks] == ["t", "of-b"]
    assert all(asked.task.seed == 3 and asked.task.folders == TASK["data"] for asked in tasks)
    moved = read_suite(suite, data=["/all"])[1]
    assert moved[0].task.folders == ["/all/shards", "/all/more"]
    assert folder_name(Task("...", "d", region=RegionTask(["{name}"]))) == "task"


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    task = write(tmp_path / "a.yaml", TASK)
    suite = write(tmp_path / "s.yaml", {"name": "s", "tasks": ["a.yaml", "./a.yaml"]})
    with pytest.raises(MedpclipError, match=r"a\.yaml: its name 't' is that of .*a\.yaml too; rename one"):
        read_suite(suite)
    with pytest.raises(MedpclipError, match=r"s\.yaml is a suite; give one folder"):
        read_suite(suite, data=["a", "b"])
    for content, words in (
        ({"name": "s", "tasks": []}, "tasks is empty"),
        ({"name": "s", "tasks": ["none.yaml"]}, "none.yaml"),
        ({"name": "s", "tasks": ["a.yaml"], "taks": 1}, "did you mean 'tasks'"),
    ):
        with pytest.raises(MedpclipError) as caught:
            read_suite(write(tmp_path / "bad.yaml", content))
        assert words in str(caught.value) and "\n" not in str(caught.value)
    assert task.is_file()


def test_a_result_holds_for_the_same_task_weights_data_and_code_only(tmp_path: Path) -> None:
    result = {
        "format": 2,
        "task": {"name": "t", "seed": 0},
        "data": [{"folder": "shards", "manifest_sha256": "aa"}],
        "lexicon_sha256": "bb",
        "code_sha256": "dd",
        "versions": {"torch": "2"},
        "model": {"name": "anything", "weights_sha256": "cc"},
        "rows": [],
    }
    (tmp_path / "result.json").write_text(json.dumps(result | {"rows": [1]}))
    for name in BESIDE:
        assert read_finished(tmp_path, stamp(result)) is None
        (tmp_path / name).write_text("something")
    assert read_finished(tmp_path, stamp(result)) is not None
    (tmp_path / REPORT).write_text("")
    assert read_finished(tmp_path, stamp(result)) is None
    (tmp_path / REPORT).write_text("something")
    for key, other in (
        ("format", 1),
        ("task", {"name": "t", "seed": 1}),
        ("data", []),
        ("lexicon_sha256", "b"),
        ("code_sha256", "d"),
        ("versions", {"torch": "3"}),
        ("model", {"name": "anything", "weights_sha256": "c"}),
        ("model", result["model"] | {"settings_sha256": "e"}),  # another fusion of the same weights
    ):
        assert read_finished(tmp_path, stamp(result | {key: other})) is None
    assert read_finished(tmp_path / "nowhere", stamp(result)) is None
    (tmp_path / "result.json").write_text('{"cut')
    assert read_finished(tmp_path, stamp(result)) is None


def test_the_table_shows_what_the_model_answers_and_its_probes() -> None:
    row = {"name": "s", "prompt": "box", "metric": "balanced_accuracy", "value": 0.5, "interval": None, "cases": 3}
    asked = [
        ("region", "prompted"),
        ("region", "crop"),
        ("probe", "linear_probe"),
        ("probe", "knn, 5 shots"),
        ("robustness", "prompted"),
    ]
    rows = [row | {"section": section, "comparator": comparator} for section, comparator in asked]
    shown = suite_table({"name": "suite", "tasks": [{"name": "t", "rows": rows}]}).rows
    assert [(line[1], line[4]) for line in shown] == [asked[0], asked[2], asked[3]]
