"""The documentation against the code: commands parse, marked ones run, links lead somewhere, tables are complete.

A fenced block after the comment `<!-- test: run -->` runs, in the order of `RUN`, in one folder; Python blocks of a page
share their names, as in a notebook.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medpclip.cli import build_parser, main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RUN = ("docs/getting-started.md", "docs/how-to/use-in-python.md")
FENCE = re.compile(r"^(?P<run><!-- test: run -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str, marked: bool = False) -> list[str]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [m["text"] for m in found if m["language"] == language and (m["run"] or not marked)]


def commands(page: Path, marked: bool = False) -> list[list[str]]:
    """The words of each `medpclip ...` line, without the first."""
    lines = "".join(blocks(page, "bash", marked)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("medpclip ")]


def links(page: Path) -> Iterator[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+://|mailto:|#", target):
            yield target.partition("#")[0]


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        try:
            build_parser().parse_args(words)
        except SystemExit as stop:
            raise AssertionError(f"{page.name}: medpclip {shlex.join(words)}") from stop


def test_python_compiles(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


def test_links_and_pictures_exist(page: Path) -> None:
    missing = [target for target in links(page) if not (page.parent / target).exists()]
    assert not missing


def test_nothing_of_one_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.}~*])/(?:home|root|tmp|work|usr|mnt|opt|srv)\b\S*", text)
    found += re.findall(r"\b(?:localhost|(?:\d{1,3}\.){3}\d{1,3})\b", text)
    assert not found


def test_pictures_are_small() -> None:
    assert all(path.stat().st_size < 400_000 for path in (ROOT / "docs" / "images").iterdir())


def test_every_page_is_reachable_from_the_readme() -> None:
    readme = ROOT / "README.md"
    linked = {(readme.parent / target).resolve() for target in links(readme)}
    assert [page for page in PAGES if page.is_relative_to(ROOT / "docs") and page.resolve() not in linked] == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"^make ([a-z-]+)", "\n".join(blocks(page, "bash")), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


def leaf_commands(parser: argparse.ArgumentParser, words: str = "medpclip") -> Iterator[str]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words
    for action in below:
        for name, leaf in action.choices.items():
            yield from leaf_commands(leaf, f"{words} {name}")


def dotted_keys(cls: Any, above: str = "") -> Iterator[str]:
    """All keys of a nested dataclass that hold a value."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from dotted_keys(kind, f"{above}{field.name}.")
        else:
            yield above + field.name


def in_backticks(name: str) -> set[str]:
    """What a reference page sets in code: whole spans, and their words."""
    text = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    spans = re.findall(r"`([^`\n]+)`", text)
    return {*spans, *(word for span in spans for word in re.findall(r"\w+", span))}


def test_command_reference_is_complete() -> None:
    assert set(leaf_commands(build_parser())) <= in_backticks("cli.md")


def test_config_reference_is_complete_and_has_nothing_else() -> None:
    from medpclip.train.config import TrainConfig

    text = (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    stated = [key for cell in first_cells for key in re.findall(r"`([^`]+)`", cell)]
    assert sorted(stated) == sorted(dotted_keys(TrainConfig))


def test_schema_recipe_and_task_references_are_complete() -> None:
    from medpclip.data.building.recipe import Recipe
    from medpclip.data.building.rules import GroupRule, SplitRule, TableRule, ValueRule
    from medpclip.data.readers import READERS
    from medpclip.data.schema import Region, Sample
    from medpclip.evaluation.suite import Suite
    from medpclip.evaluation.task import (
        COMPARATORS,
        Bootstrap,
        ImageTask,
        ProbeTask,
        Published,
        RegionTask,
        RetrievalTask,
        RobustnessTask,
        Task,
    )

    def keys(*classes: Any) -> set[str]:
        return {field.name for cls in classes for field in dataclasses.fields(cls)}

    assert keys(Sample, Region) - {"key", "extra"} <= in_backticks("sample-schema.md")
    assert keys(Recipe, GroupRule, SplitRule, TableRule, ValueRule) | {*READERS} <= in_backticks("recipes.md")
    asked = keys(Task, ImageTask, RegionTask, RetrievalTask, ProbeTask, RobustnessTask, Published, Bootstrap, Suite)
    assert asked | {*COMPARATORS} <= in_backticks("task-files.md")


def test_marked_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="the export's check needs transformers")
    for folder in ("launch", "eval", "data_recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for name in RUN:
        found = commands(ROOT / name, marked=True)
        for words in found:
            assert main(words) == 0, f"{name}: medpclip {shlex.join(words)}: {capsys.readouterr().err}"
        namespace = vars(types.ModuleType("page"))
        snippets = blocks(ROOT / name, "python", marked=True)
        for text in snippets:
            exec(compile(text, name, "exec"), namespace)
        assert found or snippets
    made = {"data/manifest.json", "sheet.png", "train/config.yaml", "eval/report.html", "export/config.json"}
    assert all((tmp_path / "runs" / "trial" / path).is_file() for path in made)


def test_marks_are_where_they_run() -> None:
    marked = {str(page.relative_to(ROOT)) for page in PAGES if "test: run" in page.read_text(encoding="utf-8")}
    assert marked == set(RUN)
