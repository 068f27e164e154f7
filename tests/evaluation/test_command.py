"""`medpclip eval` as a user runs it, and the report it leaves."""

import argparse
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

import medpclip.models
from medpclip.config import to_mapping
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import MANIFEST, ShardWriter
from medpclip.errors import MedpclipError
from medpclip.evaluation import command
from medpclip.evaluation.figures import loss_curves
from medpclip.evaluation.report import run_log
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


class Page(HTMLParser):
    """Collects what the checks need: images, and tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_writes_result_predictions_and_report_and_prints_the_tables(task, tmp_path, shards, capsys):
    out = tmp_path / "out"
    assert evaluate(str(task), "batch_size=4", "--model", "medpclip-tiny-16", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "Regions: balanced accuracy" in printed and "mask pooling" in printed and str(out / "report.html") in printed
    assert sorted(p.name for p in out.iterdir()) == ["predictions.jsonl", "report.html", "result.json"]
    result = json.loads((out / "result.json").read_text())
    assert result["task"]["batch_size"] == 4 and result["model"]["step"] is None
    assert result["data"] == [{"folder": shards.name, "manifest_sha256": file_sha256(shards / "manifest.json")}]
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 8 + 4

    again = tmp_path / "again"
    evaluate(str(task), "batch_size=4", "--model", "medpclip-tiny-16", "--out", str(again), "--data", str(shards))
    other = json.loads((again / "result.json").read_text())
    assert result.pop("timing").keys() == other.pop("timing").keys() and result == other

    html = (out / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert all(i["alt"] and str(i["src"]).startswith("data:image/") for i in page.images)
    assert "<script" not in html and not re.search(r"(src|href)=\"(?!data:)", html)
    assert "<b>lesion</b>" not in html and "&lt;b&gt;lesion&lt;/b&gt;" in html
    assert "✓ right" in html and "✗ wrong" in html and "Confusion matrices" in html
    assert str(tmp_path) not in html and "Training" not in html


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
    assert {row["exposure"] for key in ("region", "image", "headline") for row in result[key]} == {"seen source"}
    assert result["warnings"] == [] and "WARNING" not in capsys.readouterr().out and 'class="warning"' not in html
    assert "up to step 3" in html and "step 8" not in html and "seen source</td>" in html
    for path in out.iterdir():
        assert "secret place" not in path.read_text() and str(tmp_path) not in path.read_text()

    command_line[1:1] = ["split=train"]
    assert evaluate(*command_line) == 0
    printed, html = capsys.readouterr().out, (out / "report.html").read_text()
    assert printed.startswith("WARNING: the model was trained on the train split of ")
    assert 'class="warning"' in html and "was trained on the train split of" in html


def test_the_log_of_a_run_becomes_curves(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-9").mkdir(parents=True)
    rows = ['{"step": 1, "loss": 3.0, "loss_region": 2.0, "kind": "train"}', '{"step": 2, "kind": "val", "loss": 9}',
            '{"step": 3, "loss": 1.0}', '{"step": 4, "lo']  # fmt: skip
    (run / "log.jsonl").write_text("\n".join(rows))
    checkpoint = run / "checkpoints" / "step-9"
    assert [row["step"] for row in run_log(checkpoint, None)] == [1, 3]
    assert [row["step"] for row in run_log(checkpoint, 2)] == [1]
    assert run_log(tmp_path / "elsewhere" / "checkpoints" / "step-9", 9) == []
    png = loss_curves(run_log(checkpoint, 9))
    assert png is not None and Image.open(io.BytesIO(png)).width > 400
    assert loss_curves([{"step": 1}, {"loss": 2.0}]) is None
    assert loss_curves([{"step": i, "loss": float(i % 7)} for i in range(1000)]) is not None


def test_a_log_that_lies_near_by_chance_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 3.0}')
    monkeypatch.chdir(tmp_path)
    copied = tmp_path / "copies" / "step-00000001"
    copied.mkdir(parents=True)
    assert run_log(None, None) == run_log(copied, 1) == []


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
    assert not list((tmp_path / "out").iterdir())


def test_an_output_that_is_a_file_is_refused_at_once(task, tmp_path):
    with pytest.raises(MedpclipError, match="--out .*task.yaml: can't be made"):
        evaluate(str(task), "--model", "medpclip-tiny-16", "--out", str(task))
