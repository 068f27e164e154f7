"""Evaluation during a run says what `medpclip eval` says, and leaves training as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from medpclip.data.phantom import write_phantoms
from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import read_corpus
from medpclip.evaluation.embedding.features import Features
from medpclip.evaluation.results.result import ModelFacts
from medpclip.evaluation.run import run_task
from medpclip.evaluation.subject import Subject
from medpclip.evaluation.task import load_task
from medpclip.models import RegionCLIP
from medpclip.models.load import build_model
from medpclip.models.region_clip import ModelConfig
from medpclip.train.evaluate import Evaluator, flat, read_tasks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, images=40, seed=1, workers=1)
    return folder


def write_task(folder: Path, shards: Path, name: str, split: str = "test") -> Path:
    path = folder / f"{name}.yaml"
    content = {
        "name": name,
        "data": str(shards),
        "split": split,
        "region": {"templates": ["{name}"], "prompts": ["box"]},
        "image": [{"label": "modality", "templates": ["{name}"]}],
        "comparators": ["prompted", "unprompted"],
        "bootstrap": {"draws": 10},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def build(micro_trunk: Path, seed: int) -> RegionCLIP:
    torch.manual_seed(seed)
    model = build_model(ModelConfig(trunk=str(micro_trunk)))
    torch.nn.init.normal_(model.fusion.start.weight)  # type: ignore[union-attr]
    return model


def test_it_measures_the_weights_that_it_is_given_and_leaves_no_trace(
    tmp_path: Path, shards: Path, micro_trunk: Path
) -> None:
    training, other = build(micro_trunk, 1), build(micro_trunk, 2)
    before = {name: tensor.clone() for name, tensor in training.state_dict().items()}
    path = write_task(tmp_path, shards, "phantom")
    evaluator = Evaluator(training, read_tasks([path]), CPU, tmp_path / "run")
    signs: list[int] = []
    state = torch.random.get_rng_state()
    figures = evaluator.evaluate(other.state_dict(), 7, lambda: signs.append(1))

    assert torch.equal(torch.random.get_rng_state(), state)
    assert training.training and all(torch.equal(before[n], t) for n, t in training.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in training.parameters())
    assert len(signs) >= 3

    task = load_task(path)
    subject = Subject.of_model(other, ModelFacts("other", "0" * 64, 7), prompted=True)
    regions = run_task(Features(subject, shown=False), task, read_corpus(task)).of("region")
    assert set(figures) == {
        "phantom/image/modality/balanced_accuracy",
        *(f"phantom/region/{s.name}/box/{c}/balanced_accuracy" for s in regions for c in task.comparators),
    }
    for source in regions:
        right = source.values["box", "prompted"].argmax(1) == source.true
        classes = np.unique(source.true)
        want = np.mean([right[source.true == one].mean() for one in classes])
        assert figures[f"phantom/region/{source.name}/box/prompted/balanced_accuracy"] == pytest.approx(want, abs=1e-6)

    written = json.loads((tmp_path / "run/evaluation/step-00000007/phantom/result.json").read_bytes())
    assert written["model"]["name"] == "run/step-00000007" and written["model"]["step"] == 7
    assert {f"phantom/{name}": value for name, value in flat(written).items()} == figures
    assert str(tmp_path) not in json.dumps(written)
    lines = (tmp_path / "run/evaluation/step-00000007/phantom/predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["section"] for line in lines} == {"image", "region"}
    assert evaluator.evaluate(other.state_dict(), 8) == figures


def test_a_mistake_shows_before_training(tmp_path: Path, shards: Path) -> None:
    good = write_task(tmp_path, shards, "good")
    assert [asked.name for asked in read_tasks([good])] == ["good"]
    with pytest.raises(MedpclipError, match=r"none\.yaml: no such file"):
        read_tasks([good, tmp_path / "none.yaml"])
    typo = tmp_path / "typo.yaml"
    typo.write_text(good.read_text().replace("templates", "template"))
    with pytest.raises(MedpclipError, match=r"typo\.yaml.*template"):
        read_tasks([typo])
    with pytest.raises(MedpclipError, match=r"elsewhere"):
        read_tasks([write_task(tmp_path, tmp_path / "elsewhere", "lost")])
    (tmp_path / "again").mkdir()
    with pytest.raises(MedpclipError, match=r"good\.yaml: its name 'good' is that of .*good\.yaml too; rename"):
        read_tasks([good, write_task(tmp_path / "again", shards, "good")])


def test_a_result_that_cannot_be_written_is_one_line(tmp_path: Path, shards: Path, micro_trunk: Path) -> None:
    model = build(micro_trunk, 1)
    evaluator = Evaluator(model, read_tasks([write_task(tmp_path, shards, "phantom")]), CPU, tmp_path / "run")
    (tmp_path / "run").write_text("a file")
    with pytest.raises(MedpclipError, match=r"result\.json: can't be written"):
        evaluator.evaluate(model.state_dict(), 1)


def test_means_over_sources_have_a_name_of_their_own() -> None:
    row = {"section": "region", "prompt": "box", "comparator": "prompted", "part": None, "value": 0.5}
    row["metric"] = "balanced_accuracy"
    image = {"section": "image", "name": "labels.view", "prompt": "image", "comparator": "unprompted"}
    result = {
        "rows": [
            row | {"name": "a"},
            row | {"name": "b", "value": None},
            row | {"name": "a", "metric": "accuracy"},
            row | {"name": "a", "part": "size: small"},
            row | image | {"value": 1.0},
            row | image | {"prompt": "full_box", "comparator": "prompted"},
            row | {"section": "retrieval", "name": "image to text: a", "metric": "recall@5"},
        ],
        "headline": [row | {"name": "MEAN", "sources": ["a", "b"], "value": 0.25}],
    }
    assert flat(result) == {
        "region/a/box/prompted/balanced_accuracy": 0.5,
        "region/MEAN/box/prompted/balanced_accuracy": 0.25,
        "image/labels.view/balanced_accuracy": 1.0,
        "image/labels.view/full_box/prompted/balanced_accuracy": 0.5,
        "retrieval/image to text: a/box/prompted/recall@5": 0.5,
    }
    result["headline"][0]["sources"] = ["a"]
    assert "region/MEAN/box/prompted/balanced_accuracy" not in flat(result)
