"""`medpclip eval` as a user runs it, and the report it leaves."""

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from ranks import start_ranks
from safetensors.torch import save_file

import medpclip.models
from medpclip.cli import main
from medpclip.config import to_mapping
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import MANIFEST, ShardWriter
from medpclip.errors import MedpclipError
from medpclip.evaluation import command
from medpclip.files import file_sha256
from medpclip.models.load import META, WEIGHTS, load_model

assert medpclip.models  # before open_clip, which it prepares for


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    with ShardWriter(folder) as writer:
        for i in range(8):
            image = rng.integers(0, 255, (60, 90, 3), np.uint8)
            mask = np.zeros((60, 90), bool)
            mask[10:30, 50:80] = True
            regions = [
                Region(0, "<b>lesion</b>", [5.0, 5.0, 20.0, 30.0]),
                Region(1, "organ", [50.0, 10.0, 30.0, 20.0], encode_mask(mask)),
            ]
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            split, modality = ("train", "test")[i % 2], ("CT", "MRI")[i // 2 % 2]
            writer.add(
                Sample(f"k{i}", "s", split, f"g{i}", modality, 90, 60, regions=regions), stream.getvalue(), "png"
            )
        writer.finish(pairs={"texture": [["<b>lesion</b>", "organ"]]})
    return folder


def evaluate(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["eval", *arguments])
    return args.run(args)


@pytest.fixture
def task(tmp_path, shards) -> Path:
    path = tmp_path / "task.yaml"
    region = {"templates": ["{name}"]}
    image = [{"label": "modality", "templates": ["{name}"]}]
    content = {"name": "small", "data": [str(shards)], "region": region, "image": image, "bootstrap": {"draws": 20}}
    path.write_text(yaml.safe_dump(content))
    return path


def test_writes_result_predictions_and_report_and_prints_the_tables(task, tmp_path, shards, capsys):
    out = tmp_path / "out"
    assert evaluate(str(task), "--batch-size", "4", "--model", "medpclip-tiny-16", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "Regions: balanced accuracy" in printed and str(out / "report.html") in printed
    assert "left out: prompted: the model was never trained with prompts" in printed
    assert sorted(p.name for p in out.iterdir()) == [
        "features", "figures.csv", "predictions.jsonl", "report.html", "result.json"
    ]  # fmt: skip
    result = json.loads((out / "result.json").read_text())
    assert result["task"]["batch_size"] == 4 and result["model"]["step"] is None
    assert result["data"] == [{"folder": shards.name, "manifest_sha256": file_sha256(shards / "manifest.json")}]
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 8 + 4
    assert "images per second" in result["timing"]["speed"] and result["timing"]["processes"] == 1

    again = tmp_path / "again"
    options = ["--data", str(shards), "--no-cache", "--workers", "0", "--batch-size", "4"]
    evaluate(str(task), "--model", "medpclip-tiny-16", "--out", str(again), *options)
    other = json.loads((again / "result.json").read_text())
    assert result.pop("timing").keys() == other.pop("timing").keys() and result == other
    assert (again / "predictions.jsonl").read_bytes() == (out / "predictions.jsonl").read_bytes()
    assert not (again / "features").exists()
    html = (out / "report.html").read_text()
    assert str(tmp_path) not in html and "<b>lesion</b>" not in html


def test_what_was_computed_is_not_computed_again(task, tmp_path, capsys):
    command_line = [str(task), "--model", "medpclip-tiny-16", "--cache", str(tmp_path / "cache")]
    evaluate(*command_line, "--out", str(tmp_path / "a"))
    files = sorted((tmp_path / "cache").rglob("*.npy"))
    changed = [file.stat().st_mtime_ns for file in files]
    evaluate(*command_line, "--out", str(tmp_path / "b"))
    assert sorted((tmp_path / "cache").rglob("*.npy")) == files
    assert [file.stat().st_mtime_ns for file in files] == changed
    a, b = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert b.pop("timing")["speed"] == {} != a.pop("timing")["speed"] and a == b
    assert (tmp_path / "a/predictions.jsonl").read_bytes() == (tmp_path / "b/predictions.jsonl").read_bytes()


@pytest.fixture
def run(tmp_path, shards) -> Path:
    """A run with one checkpoint at step 3, trained on the shards' train split."""
    folder = tmp_path / "secret place" / "myrun"
    checkpoint = folder / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    model = load_model("medpclip-tiny-16")
    save_file(model.state_dict(), checkpoint / WEIGHTS)
    terms = ["<b>lesion</b>", "organ"]
    trained_on = {"splits": ["train"], "sources": ["s"], "terms": terms, "manifests": [file_sha256(shards / MANIFEST)]}
    meta = {
        "step": 3,
        "config": {"model": to_mapping(model.config)},
        "architecture": model.architecture,
        "preprocess": {"mean": model.preprocess.mean, "std": model.preprocess.std},
        "trained_on": trained_on,
    }
    (checkpoint / META).write_text(json.dumps(meta))
    (folder / "log.jsonl").write_text("".join(f'{{"step": {i}, "loss": {i}.5}}\n' for i in range(1, 9)))
    return folder


def test_a_run_is_shown_by_its_name_its_exposure_and_its_curve_up_to_the_step(run, task, tmp_path, capsys):
    out = tmp_path / "out"
    command_line = [str(task), "comparators=[prompted, unprompted]", "--model", str(run), "--out", str(out)]
    assert evaluate(*command_line) == 0
    result, html = json.loads((out / "result.json").read_text()), (out / "report.html").read_text()
    assert result["model"]["name"] == "myrun/step-00000003" and result["model"]["step"] == 3
    assert {row["exposure"] for key in ("rows", "headline") for row in result[key]} == {"seen source"}
    assert {row["comparator"] for row in result["rows"]} == {"prompted", "unprompted"}
    assert result["warnings"] == [] and "WARNING" not in capsys.readouterr().out and 'class="warning"' not in html
    assert "up to step 3" in html and "step 8" not in html and "seen source</td>" in html
    for path in (path for path in out.iterdir() if path.is_file()):
        assert "secret place" not in path.read_text() and str(tmp_path) not in path.read_text()

    command_line[1:1] = ["split=train"]
    assert evaluate(*command_line) == 0  # over what was there
    printed, html = capsys.readouterr().out, (out / "report.html").read_text()
    assert printed.startswith("WARNING: the model was trained on the train split of ")
    assert 'class="warning"' in html and "was trained on the train split of" in html


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/run"], "no/such/run: no such file or folder"),
        (["--model", "medpclip-tiny-17"], "did you mean 'medpclip-tiny-16'"),
        (["--model", "medpclip-tiny-16", "--device", "gpu"], "device 'gpu' is not to be had"),
        (["--model", "medpclip-tiny-16", "--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_arguments_are_one_line(task, tmp_path, arguments, words):
    with pytest.raises(MedpclipError) as caught:
        evaluate(str(task), *arguments, "--out", str(tmp_path / "out"))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused_at_once(task, tmp_path):
    with pytest.raises(MedpclipError, match="--out .*task.yaml: can't be made"):
        evaluate(str(task), "--model", "medpclip-tiny-16", "--out", str(task))


def write_suite(folder: Path, task: Path, names: list[str]) -> Path:
    (folder / "tasks").mkdir()
    content = yaml.safe_load(task.read_text())
    for name in names:
        (folder / "tasks" / f"{name}.yaml").write_text(
            yaml.safe_dump(content | {"name": name, "comparators": ["crop"]})
        )
    suite = folder / "suites" / "both.yaml"
    suite.parent.mkdir()
    tasks = [f"../tasks/{name}.yaml" for name in names]
    suite.write_text(yaml.safe_dump({"name": "both", "tasks": tasks}))
    return suite


def test_a_suite_goes_on_where_it_was(task, shards, tmp_path, capsys, monkeypatch):
    suite, out = write_suite(tmp_path, task, ["one", "two"]), tmp_path / "out"
    command_line = [str(suite), "region.prompts=[box]", "--model", "medpclip-tiny-16", "--out", str(out)]
    command_line += ["--data", str(shards.parent)]
    (out / "two").mkdir(parents=True)
    (out / "two" / "report.html").mkdir()
    with pytest.raises(MedpclipError, match="two/report.html: can't be written .*; make room, then run it again"):
        evaluate(*command_line)
    assert not (out / "suite.json").exists() and (out / "one" / "result.json").is_file()
    before = (out / "one" / "result.json").stat().st_mtime_ns
    (out / "two" / "report.html").rmdir()
    capsys.readouterr()
    assert evaluate(*command_line) == 0
    printed = capsys.readouterr().out
    assert f"one: measured before, see {out / 'one' / 'result.json'}" in printed and "Suite both" in printed
    assert (out / "one" / "result.json").stat().st_mtime_ns == before
    summary = json.loads((out / "suite.json").read_text())
    assert [(entry["name"], entry["folder"]) for entry in summary["tasks"]] == [("one", "one"), ("two", "two")]
    sections = {row["section"] for entry in summary["tasks"] for row in entry["rows"]}
    assert sections == {"region", "image"} and summary["name"] == "both"
    assert sorted(p.name for p in out.iterdir()) == ["features", "figures.csv", "one", "suite.json", "two"]

    assert evaluate(*command_line[:1], "region.prompts=[box]", "seed=5", *command_line[2:]) == 0  # another question
    assert "measured before" not in capsys.readouterr().out
    assert (out / "one" / "result.json").stat().st_mtime_ns != before


def test_compare_is_a_verb_of_its_own(task, tmp_path, capsys):
    out = str(tmp_path / "out")
    arguments = ["comparators=[crop]", "region.prompts=[box]", "--model", "medpclip-tiny-16", "--out", out]
    assert main(["eval", str(task), *arguments]) == 0
    capsys.readouterr()
    assert main(["eval", "compare", out, out]) == 0
    assert "0 are worse" in capsys.readouterr().out
    assert main(["eval", "compare", out, str(tmp_path / "nowhere")]) == 2
    assert "medpclip: error: " in capsys.readouterr().err


def test_ranks_share_an_evaluation_and_one_of_them_writes(task, tmp_path, capsys):
    options = [
        str(task),
        "comparators=[crop]",
        "region.prompts=[box]",
        "--model",
        "medpclip-tiny-16",
        "--device",
        "cpu",
    ]
    assert evaluate(*options, "--out", str(tmp_path / "alone")) == 0
    command_line = [sys.executable, "-m", "medpclip", "eval", *options, "--out", str(tmp_path / "two")]
    ranks = start_ranks(command_line, 2)
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert "result: " in outputs[0] and "result: " not in outputs[1]
    alone, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("alone", "two"))
    assert two.pop("timing")["processes"] == 2 and alone.pop("timing")["processes"] == 1
    assert [row["value"] for row in two["rows"]] == pytest.approx([row["value"] for row in alone["rows"]], abs=1e-6)
    assert len(list((tmp_path / "two" / "features").rglob("*.npy"))) == len(
        list((tmp_path / "alone" / "features").rglob("*.npy"))
    )
