from pathlib import Path

import pytest
import yaml

from medpclip.errors import MedpclipError
from medpclip.evaluation.task import COMPARATORS, Task, fill_ins, load_task

GOOD = {"name": "t", "data": "shards", "region": {"templates": ["{name}"]}}


def load_from(tmp_path: Path, changes: dict) -> Task:
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes))
    return load_task(path)


def test_defaults_and_overrides(tmp_path):
    task = load_from(tmp_path, {})
    assert task.folders == ["shards"] and task.split == "test" and tuple(task.comparators) == COMPARATORS
    assert task.region is not None and task.region.prompts == ["box", "point", "mask"]
    changed = load_task(tmp_path / "task.yaml", ["region.prompts=[box]", "bootstrap.draws=10"])
    assert changed.region is not None and changed.region.prompts == ["box"] and changed.bootstrap.draws == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"comparators": ["prompted", "cropp"]}, ["comparators", "cropp"]),
        ({"comparators": ["crop", "crop"]}, ["comparators", "different"]),
        ({"seeed": 1}, ["seeed", "did you mean 'seed'"]),
        ({"split": "dev"}, ["split", "dev"]),
        ({"data": []}, ["data is empty"]),
        ({"region": None}, ["nothing to measure"]),
        ({"region": {"templates": []}}, ["region", "templates is empty"]),
        ({"region": {"templates": ["a cell"]}}, ["a cell", "neither {name}"]),
        ({"region": {"templates": ["{name} in {organ}"]}}, ["organ", "unknown fill-in"]),
        ({"region": {"templates": ["{name"]}}, ["malformed"]),
        ({"region": {"templates": ["{name:d}"]}}, ["{name:d}", "malformed"]),
        ({"region": {"templates": ["{name.of}"]}}, ["{name.of}", "unknown fill-in"]),
        ({"region": {"templates": ["{name}"], "classes": ["one"]}}, ["two or more"]),
        ({"region": {"templates": ["{name}"], "classes": ["a", ""]}}, ["two or more"]),
        ({"region": {"templates": ["{name}"], "prompts": ["circle"]}}, ["prompts", "circle"]),
        ({"region": {"templates": ["{name}"], "max_regions_per_image": 0}}, ["max_regions_per_image"]),
        ({"image": [{"label": "finding", "templates": ["{name}"]}]}, ["finding", "labels.KEY"]),
        ({"image": [{"label": "labels.", "templates": ["{name}"]}]}, ["labels.KEY"]),
        ({"image": [{"label": "modality", "templates": ["{name} on {modality}"]}]}, ["{modality}", "asked"]),
        ({"image": [{"label": "modality", "templates": ["{name}"], "prompts": []}]}, ["prompts", "different"]),
        ({"image": [{"label": "modality", "templates": ["{name}"], "prompts": ["tiny_box"]}]}, ["prompts", "tiny_box"]),
        (
            {"image": [{"label": "modality", "templates": ["{name}"], "classes": ["a", "b"], "positive": "c"}]},
            ["positive", "'c'", "one of two"],
        ),
        (
            {"image": [{"label": "labels.x", "templates": ["{name}"], "kind": "multi_label", "positive": "a"}]},
            ["positive", "leave it out"],
        ),
        (
            {"image": [{"label": "labels.x", "templates": ["{name}"], "kind": "multi_label", "negatives": []}]},
            ["templates is empty"],
        ),
        ({"retrieval": [{"kind": "caption", "k": [0]}]}, ["k is [0]"]),
        ({"retrieval": [{"kind": "captions"}]}, ["kind", "captions"]),
        ({"probe": [{"label": "finding"}]}, ["finding", "'labels.KEY' or 'region'"]),
        ({"probe": [{"label": "labels."}]}, ["'labels.'", "labels.KEY"]),
        ({"probe": [{"label": "modality", "shots": 0}]}, ["shots"]),
        ({"retrieval": [{"kind": "region", "prompts": []}]}, ["prompts is empty"]),
        ({"retrieval": [{"kind": "region", "prompts": ["box", "box"]}]}, ["prompts", "named twice"]),
        ({"probe": [{"label": "region", "methods": []}]}, ["methods or prompts is empty"]),
        ({"robustness": {"jitter": [1.5]}}, ["jitter"]),
        ({"robustness": {"jitter": [0.1, 0.1]}}, ["jitter", "named twice"]),
        (
            {"image": [{"label": "modality", "templates": [t]} for t in ("{name}", "a {name}")]},
            ["'modality'", "2 times"],
        ),
        ({"retrieval": [{"kind": "region"}, {"kind": "region", "k": [3]}]}, ["retrieval of kind 'region'", "2 times"]),
        ({"probe": [{"label": "region"}, {"label": "region", "prompts": ["point"]}]}, ["probe of 'region'", "2 times"]),
        ({"probe": [{"label": "region", "methods": ["knn", "knn"]}]}, ["probe of 'region' (knn)", "2 times"]),
        ({"region": None, "probe": [{"label": "modality"}], "robustness": {}}, ["robustness", "section region"]),
        ({"calibration_bins": 1}, ["calibration_bins"]),
        ({"published": [{"model": "m", "metric": "accuracy", "value": "high", "source": "s"}]}, ["value"]),
        ({"bootstrap": {"level": 1.5}}, ["level"]),
        ({"batch_size": 0}, ["batch_size"]),
    ],
)
def test_bad_tasks_are_one_line_that_names_file_and_fault(tmp_path, changes, words):
    with pytest.raises(MedpclipError) as caught:
        load_from(tmp_path, changes)
    message = str(caught.value)
    assert "\n" not in message and "task.yaml" in message
    assert all(word in message for word in words), message


def test_questions_that_results_can_tell_apart_stand_beside_one_another(tmp_path):
    image = {"label": "labels.x", "templates": ["{name}"]}
    task = load_from(
        tmp_path,
        {
            "image": [image, image | {"kind": "multi_label"}, image | {"label": "labels.y"}],
            "probe": [{"label": "region", "shots": n} for n in (None, 1, 5)],
        },
    )
    assert len(task.image) == len(task.probe) == 3


def test_fill_ins():
    assert fill_ins("a {name} on {modality}, {{not}}") == {"name", "modality"}


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("eval/*.yaml")), ids=lambda p: p.stem)
def test_shipped_tasks_load(path):
    assert load_task(path).name == path.stem
