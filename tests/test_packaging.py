"""What an installation gets: metadata, pins and shipped files that agree with each other."""

from __future__ import annotations

import configparser
import fnmatch
import importlib
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import medpclip

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(metadata: configparser.ConfigParser) -> list[Requirement]:
    """Of the package and all its extras."""
    lines = metadata["options"]["install_requires"].split("\n")
    lines += metadata["options.extras_require"]["dev"].split("\n")
    return [Requirement(line) for line in lines if line]


def pins(python: str) -> dict[str, str]:
    """Package to version, as `constraints.txt` pins it for a Python on Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.4", "sys_platform": "linux"}
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(environment):
                (specifier,) = pin.specifier
                assert specifier.operator == "==" and canonicalize_name(pin.name) not in found, line
                found[canonicalize_name(pin.name)] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_within_its_range(metadata: configparser.ConfigParser, python: str) -> None:
    pinned = pins(python)
    wrong = [
        str(need)
        for need in requirements(metadata)
        if not need.specifier.contains(pinned[canonicalize_name(need.name)])
    ]
    assert wrong == []


def test_the_extras_are_these_and_dev_has_them_all(metadata: configparser.ConfigParser) -> None:
    extras = metadata["options.extras_require"]
    assert set(extras) == {"data", "train", "eval", "segment", "export", "dev"}
    for name in set(extras) - {"dev"}:
        assert set(extras[name].split("\n")) <= set(extras["dev"].split("\n"))


def test_every_shipped_file_is_packaged(metadata: configparser.ConfigParser) -> None:
    patterns = metadata["options.package_data"]["medpclip"].split()
    files = [
        path.relative_to(ROOT / "medpclip").as_posix() for path in (ROOT / "medpclip").rglob("*") if path.is_file()
    ]
    data = [name for name in files if not name.endswith((".py", ".pyc"))]
    assert "py.typed" in data
    assert [name for name in data if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []
    unused = [pattern for pattern in patterns if not fnmatch.filter(data, pattern)]
    assert unused == []


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "medpclip").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_command_and_the_version_are_there(metadata: configparser.ConfigParser) -> None:
    script = metadata["options.entry_points"]["console_scripts"].strip().partition(" = ")[2]
    module, _, function = script.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert metadata["metadata"]["version"] == "attr: medpclip.__version__" and medpclip.__version__


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "quickstart", "quickstart-real", "test", "lint", "format", "bench", "clean"):
        assert f"make {target} " in listed


def test_quickstart_real_says_what_it_needs() -> None:
    for words, message in (([], "DATA is missing"), (["DATA=/nowhere"], "/nowhere: no such folder")):
        command = ["make", "quickstart-real", "--assume-old=.venv/installed", "REAL=runs/none", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and message in done.stderr
