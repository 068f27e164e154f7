"""Each line of the quarantine says what to do, for every reason that the sources can give."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import medpclip.data as package
from medpclip.data.building.quarantine import Quarantine
from medpclip.data.readers import Fault
from medpclip.data.readers.remedies import REMEDIES

FOLDER = Path(package.__path__[0])
# Calls that state a reason, and which argument it is.
STATED_IN = {"Fault": 2, "PictureError": 0, "RegionError": 0, "_lost": 1}
# Arguments that hand on a reason stated elsewhere.
HANDED_ON = {"reason", "error.reason", "fault.reason", "problem"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def text(node: ast.expr) -> str | None:
    """The reason in a literal: what stands before the private detail."""
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.partition(": ")[0]
    return None


def reasons_in(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in STATED_IN:
            argument = node.args[STATED_IN[node.func.id]]
            reason = text(argument)
            assert reason or ast.unparse(argument) in HANDED_ON, f"{path.name}:{node.lineno}: {ast.unparse(node)}"
            if reason:
                yield reason
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
            reason = text(node.value)
            assert reason or path.name == "regions.py", f"{path.name}:{node.lineno}: {ast.unparse(node)}"
            if reason:
                yield reason
    for function in functions(tree):
        if function.name == "region_problem":
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and (reason := text(node.value) if node.value else None):
                    yield reason


def stated() -> set[str]:
    return {reason for path in FOLDER.rglob("*.py") for reason in reasons_in(path)}


def test_every_reason_has_a_remedy_and_every_remedy_a_reason() -> None:
    assert stated() == REMEDIES.keys()


@pytest.mark.parametrize("reason", REMEDIES)
def test_remedies_are_short_commands(reason: str) -> None:
    remedy = REMEDIES[reason]
    assert remedy[0].islower() and not remedy.endswith(".") and "\n" not in remedy
    assert len(remedy.split()) >= 3
    assert len(remedy) <= 90


def test_a_new_reason_without_a_remedy_fails_at_once() -> None:
    with pytest.raises(AssertionError, match="no remedy for 'the moon is full'"):
        Fault("a.png", "", "the moon is full")


def test_a_line_names_file_key_reason_and_remedy(tmp_path: Path) -> None:
    with Quarantine(tmp_path / "out") as quarantine:
        quarantine.add(Fault("a.xml", "object[3]", "mask is empty", "0 pixels", regions=1))
    (line,) = map(json.loads, quarantine.path.read_text().splitlines())
    assert line == {
        "file": "a.xml",
        "key": "object[3]",
        "reason": "mask is empty",
        "detail": "0 pixels",
        "remedy": "draw the mask again, or delete it",
        "images": 0,
        "regions": 1,
    }
    assert quarantine.reasons == {"mask is empty": {"faults": 1, "images": 0, "regions": 1}}
