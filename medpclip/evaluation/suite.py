"""Several tasks under one name, measured one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpclip.config import load, read_yaml
from medpclip.errors import MedpclipError
from medpclip.evaluation.task import Task, load_task

if TYPE_CHECKING:
    from medpclip.evaluation.report.tables import Table

FORMAT = 1
FILE = "suite.json"
RESULT = "result.json"
PREDICTIONS, REPORT, FIGURES = BESIDE = ("predictions.jsonl", "report.html", "figures.csv")
_SHOWN = ("prompted", "unprompted")  # comparators in the terminal's table, beside the probes


@dataclass
class Suite:
    """A suite file.

    Attributes:
        name: of the suite.
        tasks: task files, relative to the suite's folder.
    """

    name: str
    tasks: list[str]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty; name task files")


@dataclass(frozen=True)
class Asked:
    """A task with the name of its results' folder."""

    folder: str
    task: Task


def is_suite(path: Path) -> bool:
    """Whether a file is a suite and not a task.

    Raises:
        MedpclipError: no such file, or no YAML.
    """
    return "tasks" in read_yaml(path)


def read_suite(path: Path, overrides: Sequence[str] = (), data: Sequence[str] = ()) -> tuple[str, list[Asked]]:
    """A suite's name and tasks.

    Args:
        overrides: applied to each of the tasks.
        data: one folder, in which each task's folders of shards are found by their own names; empty for the tasks' own.

    Raises:
        MedpclipError: a file that can't be read, or two tasks of one name.
    """
    suite = load(Suite, path)
    if len(data) > 1:
        raise MedpclipError(f"--data: {path} is a suite; give one folder that holds all of its tasks' folders")
    out: list[Asked] = []
    found: dict[str, Path] = {}
    for name in suite.tasks:
        file = path.parent / name
        task = load_task(file, overrides)
        if data:
            task.data = [str(Path(data[0]) / Path(folder).name) for folder in task.folders]
        folder = folder_name(task)
        if folder in found:
            raise MedpclipError(f"{file}: its name {task.name!r} is that of {found[folder]} too; rename one of them")
        found[folder] = file
        out.append(Asked(folder, task))
    return suite.name, out


def folder_name(task: Task) -> str:
    """A task's name, as a folder may be called."""
    return re.sub(r"[^\w.-]+", "-", task.name).strip("-.") or "task"


def read_finished(folder: Path, same: dict[str, Any]) -> dict[str, Any] | None:
    """The result that lies in a folder, if it has been made of the same task, weights, data and code; else None.

    Args:
        same: what a result must say, as `stamp` takes it from one.
    """
    try:
        if not all((folder / name).stat().st_size for name in BESIDE):
            return None
        result = json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and stamp(result) == same else None


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a task that this process has written or found finished."""
    result: dict[str, Any] = json.loads((folder / RESULT).read_bytes())
    return result


def stamp(result: dict[str, Any]) -> dict[str, Any]:
    """What decides a result's figures."""
    model = result.get("model")
    hashes = ("weights_sha256", "settings_sha256")
    keys = ("format", "task", "data", "lexicon_sha256", "code_sha256", "versions")
    return {key: result.get(key) for key in keys} | {
        key: model.get(key) if isinstance(model, dict) else None for key in hashes
    }


def suite_summary(name: str, out: Path, folders: Sequence[str]) -> dict[str, Any]:
    """What suite.json holds: for each task its result's folder, and the rows of the metric that each section is judged by.

    Args:
        out: where the tasks' folders lie.
        folders: their names, in the suite's order.
    """
    from medpclip.evaluation.results.measures import PRIMARY

    tasks = []
    for folder in folders:
        result = read_result(out / folder)
        rows = [row for key in ("headline", "rows") for row in result[key]]
        main = [row for row in rows if row["metric"].startswith(PRIMARY[row["section"]])]
        tasks.append({"name": result["task"]["name"], "folder": folder, "model": result["model"], "rows": main})
    return {"format": FORMAT, "name": name, "tasks": tasks}


def suite_table(summary: dict[str, Any]) -> Table:
    """A line for each question of each task, as the model itself answers it; what disturbed prompts do is left to reports."""
    from medpclip.evaluation.report.tables import Table, figure

    lines = []
    for task in summary["tasks"]:
        own = [
            row
            for row in task["rows"]
            if row["section"] == "probe" or (row["comparator"] in _SHOWN and row["section"] != "robustness")
        ]
        for row in own:
            labels = [task["name"], row["section"], row["name"], row["prompt"], row["comparator"], row["metric"]]
            lines.append([*labels, figure(row), str(row["cases"])])
    headings = ["task", "section", "name", "prompt", "comparator", "metric", "%", "n"]
    return Table(f"Suite {summary['name']}", headings, lines, 6, [set() for _ in lines])
