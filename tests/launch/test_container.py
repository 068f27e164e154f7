"""The container recipes against the repository: what they copy exists, what they install is declared.

Building them needs a container engine and a network; that is not done here.
"""

import configparser
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "launch" / "container"
RECIPES = ("Containerfile", "medpclip.def")


def copied(recipe: str) -> set[str]:
    text = (CONTAINER / recipe).read_text()
    if recipe == "Containerfile":
        return {word for words in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in words.split()[:-1]}
    section = re.search(r"^%files\n((?: +.*\n)+)", text, re.MULTILINE)
    assert section
    return {line.split()[0] for line in section[1].splitlines()}


def install(recipe: str) -> list[str]:
    """The words of the pip command."""
    text = (CONTAINER / recipe).read_text().replace("\\\n", " ")
    found = re.search(r"pip install [^&\n]*", text)
    assert found
    return shlex.split(found[0])


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_copied_is_there_and_all_that_setup_needs(recipe: str) -> None:
    names = copied(recipe)
    assert all((ROOT / name).exists() for name in names)
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    metadata = settings["metadata"]
    needed = {metadata["long_description"].removeprefix("file: "), *metadata["license_files"].split()}
    assert needed | {"setup.cfg", "pyproject.toml", "constraints.txt", "medpclip"} == names


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_installed_is_declared_and_pinned(recipe: str) -> None:
    words = install(recipe)
    assert words[words.index("--constraint") + 1] == "constraints.txt"
    extras = re.fullmatch(r"\.\[(.*)\]", words[-1])
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert extras and set(extras[1].split(",")) <= set(settings["options.extras_require"])


def test_the_recipes_agree() -> None:
    texts = [(CONTAINER / recipe).read_text() for recipe in RECIPES]
    assert install(RECIPES[0])[-1] == install(RECIPES[1])[-1]
    for pattern in (r"python:[\w.-]+", r"apt-get install .*? (g\+\+.*?)(?: \\)?\n", r"HF_HUB_OFFLINE=.*"):
        first, second = (re.search(pattern, text) for text in texts)
        assert first and second and first[first.re.groups] == second[second.re.groups]


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    lines = (CONTAINER / "Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == copied("Containerfile")


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_index_is_named(recipe: str) -> None:
    """Where packages come from is the user's choice."""
    assert not re.search(r"https?://|\w\.(?:io|org|com)/", (CONTAINER / recipe).read_text())
