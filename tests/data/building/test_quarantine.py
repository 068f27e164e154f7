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

PACKAGE = Path(package.__path__[0])
TESTS = Path(__file__).parents[2]
# Calls that state a reason, and which argument it is; many hand on one that was stated elsewhere.
STATED_IN = {"Fault": 2, "PictureError": 0, "RegionError": 0, "_lost": 1}


def text(node: ast.AST) -> str | None:
    """The reason in a literal: what stands before the private detail."""
    if isinstance(node, ast.JoinedStr):
        node = node.values[0] if node.values else node
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.partition(": ")[0]
    return None


def literals(folder: Path, besides: str) -> set[str]:
    """All texts in a folder's code, outside of one file."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py") if path.name != besides]
    return {found for tree in trees for node in ast.walk(tree) if (found := text(node)) is not None}


def stated(folder: Path) -> Iterator[str]:
    """The reasons that calls name."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in STATED_IN:
                place = STATED_IN[node.func.id]
                if len(node.args) > place and (reason := text(node.args[place])):
                    yield reason


def test_every_reason_has_a_remedy() -> None:
    assert set(stated(PACKAGE)) <= REMEDIES.keys()


def test_every_remedy_is_for_a_reason_that_something_gives() -> None:
    assert REMEDIES.keys() <= literals(PACKAGE, "remedies.py")


def test_every_reason_is_planted_in_some_test() -> None:
    """A fault that no test plants may be lost in silence."""
    assert len(REMEDIES) >= 80
    assert REMEDIES.keys() <= literals(TESTS, Path(__file__).name)


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
    with Quarantine(tmp_path / "out.private") as quarantine:
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
