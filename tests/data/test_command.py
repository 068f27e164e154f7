"""`medpclip data` from end to end, as a user calls it."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpclip.data import command
from medpclip.data.shards import MANIFEST
from medpclip.errors import MedpclipError

RECIPE = """
name: {name}
title: Cells of a test
modality: microscopy
licence: MIT
citation: nobody
reader: label_mask
options: {{values: {{"1": cell}}, components: true}}
terms: {{cell: blood cell}}
"""


def medpclip(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *map(str, words)])
    return args.run(args) or 0


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPCLIP_SALT", "a secret that only tests know")
    (tmp_path / "data_recipes").mkdir()
    for name, folder in (("one", "source"), ("two", "source/two")):
        (tmp_path / "data_recipes" / f"{name}.yaml").write_text(RECIPE.format(name=name))
        for part in ("images", "masks"):
            (tmp_path / folder / part).mkdir(parents=True)
        for i in range(3):
            mask = np.zeros((16, 16), np.uint8)
            mask[2:5, 3 : 6 + i] = 1
            Image.fromarray(mask * 90).save(tmp_path / folder / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / folder / "masks" / f"{i}.png")
    return tmp_path


def test_build_check_stats_show(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "source" / "images" / "3.png").write_text("no image")
    assert medpclip("build", "one", "--source", "source", "--out", "out") == 0
    printed = capsys.readouterr().out
    assert "one: images: 4 found = 3 written + 1 quarantined" in printed
    assert "image without an annotation: 1 images, 0 regions" in printed
    assert "out.private/quarantine.jsonl (private)" in printed
    assert medpclip("check", "out") == 0
    assert "out: good" in capsys.readouterr().out
    assert medpclip("stats", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["out"]["regions"] == 3
    assert medpclip("stats", "out") == 0
    assert "blood cell" in capsys.readouterr().out
    assert medpclip("show", "out", "-o", "sheet.png", "--count", 2) == 0
    with Image.open("sheet.png") as sheet:
        assert sheet.size > (100, 100)


def test_several_recipes_share_source_and_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert medpclip("build", "one", "two", "--source", "source", "--out", "all") == 0
    assert sorted(path.name for path in (work / "all").iterdir()) == ["mixture.json", "one", "two"]
    assert sorted(path.name for path in (work / "all.private").iterdir()) == ["one", "two"]
    capsys.readouterr()
    assert medpclip("check", "all") == 0
    assert capsys.readouterr().out.splitlines() == ["all/one: good", "all/two: good"]


def test_check_caps_its_lines_and_fails(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    medpclip("build", "one", "--source", "source", "--out", "out")
    manifest = json.loads((work / "out" / MANIFEST).read_text())
    for shard in manifest["shards"]:
        shard["sha256"], shard["samples"] = "0", 77
    (work / "out" / MANIFEST).write_text(json.dumps(manifest))
    monkeypatch.setattr(command, "_MAX_PROBLEMS", 1)
    capsys.readouterr()
    assert medpclip("check", "out") == 1
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 2
    assert "more problems" in printed.err
    assert "problems" in printed.out


def test_recipes_are_listed_and_a_folder_of_ones_own_goes_first(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "mine").mkdir()
    shutil.copy(work / "data_recipes" / "one.yaml", work / "mine" / "three.yaml")
    assert medpclip("recipes", "--recipes", "mine") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["one", "one", "two"]
    assert "label_mask" in lines[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("build", "three", "--source", "source", "--out", "o"), "recipe 'three': not found.*there: one, two"),
        (("build", "one", "--source", "nowhere", "--out", "o"), "nowhere: no such folder"),
        (("build", "one", "one", "--source", "source", "--out", "o"), "same 'name'"),
        (("build", "one", "--source", "source", "--out", "o", "--recipes", "x"), "x: no such folder"),
        (("build", "one", "--source", "source", "--out", "o", "--samples-per-shard", "0"), "give 1 or more"),
        (("check", "nowhere"), "no such folder"),
        (("stats", "source"), "not a folder of shards"),
        (("show", "source", "-o", "a.png"), "give a folder of shards"),
    ],
)
def test_bad_calls_are_one_line(work: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(MedpclipError, match=message) as caught:
        medpclip(*words)
    assert "\n" not in str(caught.value)


def test_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, medpclip.data.command; "
        "print(*sorted({'torch', 'numpy', 'PIL', 'pydantic', 'scipy', 'pandas', 'webdataset'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_parts_are_merged_into_what_one_build_makes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert medpclip("build", "one", "--source", "source", "--out", "whole", "--workers", "2") == 0
    for part in ("2/2", "1/2"):
        assert medpclip("build", "one", "--source", "source", "--out", "out", "--part", part) == 0
        assert f"part {part[0]} of 2 is converted" in capsys.readouterr().out
    assert not (work / "out").exists()
    assert medpclip("merge", "one", "--out", "out") == 0
    assert "one: images: 3 found = 3 written + 0 quarantined" in capsys.readouterr().out
    files = {path.name for path in (work / "whole").iterdir()}
    assert files == {path.name for path in (work / "out").iterdir()}
    assert all((work / "whole" / name).read_bytes() == (work / "out" / name).read_bytes() for name in files)


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_part_that_cannot_be(work: Path, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        medpclip("build", "one", "--source", "source", "--out", "out", "--part", part)
    assert "1 <= I <= N, as 3/8" in capsys.readouterr().err


def test_a_mixture_has_its_weights(work: Path) -> None:
    assert medpclip("build", "one", "two", "--source", "source", "--out", "all", "--weight", "two=2.5") == 0
    mixture = json.loads((work / "all" / "mixture.json").read_text())
    assert mixture["sources"] == {"one": {"weight": 1.0}, "two": {"weight": 2.5}}
    for wrong in ("three=1", "two", "two=-1", "two=inf"):
        with pytest.raises(MedpclipError, match=f"--weight {wrong}: give NAME=W with one of one, two"):
            medpclip("build", "one", "two", "--source", "source", "--out", "new", "--weight", wrong)


def test_readers_and_recipes_say_what_they_are(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert medpclip("readers") == 0
    assert "label_mask" in capsys.readouterr().out
    assert medpclip("readers", "label_mask") == 0
    assert "min_pixels: 1" in capsys.readouterr().out
    assert medpclip("recipes", "one") == 0
    assert "terms:\n  cell: blood cell" in capsys.readouterr().out


def test_workers_where_the_system_tells_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no such call."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert command._workers(argparse.Namespace(workers=None)) == 7
    assert command._workers(argparse.Namespace(workers=3)) == 3


def test_weights_that_would_do_nothing(work: Path) -> None:
    with pytest.raises(MedpclipError, match="--weight one=2: one recipe makes no mixture"):
        medpclip("build", "one", "--source", "source", "--out", "out", "--weight", "one=2")
    with pytest.raises(MedpclipError, match="--weight one=2: a part has no weight"):
        medpclip("build", "one", "two", "--source", "source", "--out", "out", "--weight", "one=2", "--part", "1/2")
