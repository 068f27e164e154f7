"""The whole evaluation on shards of coloured squares, with embedders whose score is known beforehand."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import medpclip.models
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError
from medpclip.evaluation import texts as texts_module
from medpclip.evaluation.corpus import read_corpus, unit_box
from medpclip.evaluation.predictions import prediction_lines, top_answers
from medpclip.evaluation.result import ModelFacts, build_result
from medpclip.evaluation.task import ImageTask, RegionTask, Task
from medpclip.evaluation.zero_shot import evaluating, run_task
from medpclip.models.load import load_model

assert medpclip.models  # before open_clip, which it prepares for
CLASSES = ["blue square", "green square", "red square"]
COLOURS = {"red square": (230, 20, 20), "green square": (20, 230, 20), "blue square": (20, 20, 230)}
FACTS = ModelFacts("here", "0" * 64, 7)


def write_shards(folder: Path, source: str = "squares", images: int = 8, pairs: dict | None = None) -> Path:
    rng = np.random.default_rng(5)
    with ShardWriter(folder) as writer:
        for i in range(images):
            image = np.full((80, 120, 3), 90, np.uint8)
            regions = []
            for r in range(4):
                category = CLASSES[(i + r) % 3]
                x, y, side = 5 + 29 * r, int(rng.integers(5, 50)), int(rng.integers(12, 25))
                image[y : y + side, x : x + side] = COLOURS[category]
                mask = np.zeros((80, 120), bool)
                mask[y : y + side, x : x + side] = True
                segmentation = encode_mask(mask) if r != 3 else None  # the last of each image has a box only
                regions.append(Region(r, category, [float(x), float(y), float(side), float(side)], segmentation))
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            split = "test" if i % 2 else "train"
            modality = "microscopy" if i % 4 == 1 else "radiograph"
            sample = Sample(f"{source}{i}", source, split, f"group{i // 2}", modality, 120, 80, regions=regions)
            writer.add(sample, stream.getvalue(), "png")
        writer.finish(**({"pairs": pairs} if pairs is not None else {}))
    return folder


class Oracle:
    """Answers by the colour under the prompt, in the very embedding of the right class's text."""

    name = "oracle"

    def __init__(self, weights):
        self.weights = weights  # (C, D)

    def embed(self, images, pixels, prompts):
        out = torch.zeros(prompts.batch_size, prompts.regions, self.weights.shape[1])
        for b, r in prompts.valid.nonzero().tolist():
            if prompts.mask_valid[b, r]:
                row, column = divmod(int(prompts.masks[b, r].flatten().argmax()), prompts.masks.shape[-1])
                x, y = (column + 0.5) / prompts.masks.shape[-1], (row + 0.5) / prompts.masks.shape[-1]
            elif prompts.box_valid[b, r]:
                x, y = prompts.boxes[b, r].reshape(2, 2).mean(0).tolist()
            else:
                x, y = prompts.points[b, r, 0].tolist()
            colour = images[b][int(y * 120 - 20), int(x * 120)]  # 120 x 80, padded by 20 rows above
            out[b, r] = self.weights[[2, 1, 0].index(int(colour.argmax()))]
        return out


class Constant:
    """Always the first class."""

    name = "constant"

    def __init__(self, weights):
        self.weights = weights

    def embed(self, images, pixels, prompts):
        return self.weights[0].expand(prompts.batch_size, prompts.regions, -1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return load_model("medpclip-tiny-16")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), pairs={"colour": [["red square", "blue square"]]})


def task_on(*folders: Path, **changes) -> Task:
    given = {"region": RegionTask(["{name}", "a {name}"]), "image": [ImageTask("modality", ["{name}"])]} | changes
    return Task(name="squares", data=[str(f) for f in folders], **given)


def class_weights(model, classes=CLASSES):
    with evaluating(model):
        return texts_module.TextClassifier(model, classes, ["{name}", "a {name}"], "cpu").weights("")


def values(result, comparator):
    return {row["prompt"]: row["value"] for row in result["region"] if row["comparator"] == comparator}


def test_oracle_is_right_constant_is_chance_box_geometry_is_there(model, shards):
    weights = class_weights(model)
    task = task_on(shards)
    corpus = read_corpus(task)
    evaluation = run_task(model, task, corpus, extra=[Oracle(weights), Constant(weights)])
    result = build_result(task, FACTS, corpus, evaluation)
    assert values(result, "oracle") == {"box": 1.0, "point": 1.0, "mask": 1.0}
    assert values(result, "constant") == pytest.approx({"box": 1 / 3, "point": 1 / 3, "mask": 1 / 3})
    assert {"prompted", "unprompted", "crop", "mask_pooling", "box_geometry"} < {
        r["comparator"] for r in result["region"]
    }
    oracle = [row for row in result["region"] if row["comparator"] == "oracle"]
    assert [(r["prompt"], r["cases"], r["images"], r["groups"]) for r in oracle] == [
        ("box", 16, 4, 4),
        ("point", 16, 4, 4),
        ("mask", 12, 4, 4),  # a region without a mask isn't asked by mask
    ]
    assert oracle[0]["interval"] == [1.0, 1.0] and oracle[0]["classes"] == CLASSES
    pair = [r for r in result["pairs"] if r["comparator"] == "constant" and r["prompt"] == "box"]
    assert [(r["kind"], r["classes"], r["value"]) for r in pair] == [("colour", ["red square", "blue square"], 0.5)]
    assert [r["value"] for r in result["pairs"] if r["comparator"] == "oracle"] == [1.0, 1.0, 1.0]
    assert {r["label"] for r in result["image"]} == {"modality"}
    # The random model's region tokens are its CLS token before training: prompted and unprompted agree.
    same = [d for d in result["differences"] if d["minus"] == "unprompted"]
    assert [(d["value"], d["interval"]) for d in same] == [(0.0, [0.0, 0.0])] * 3


def test_neither_batch_size_nor_order_nor_company_changes_the_answers(model, shards):
    small, large = task_on(shards, batch_size=1, prompts_per_pass=2), task_on(shards, batch_size=16)
    a, b = (run_task(model, t, read_corpus(t)).region[0] for t in (small, large))
    alone = task_on(shards, region=RegionTask(["{name}", "a {name}"], prompts=["point"]))
    backwards = read_corpus(alone)
    backwards.sources[0].items.reverse()
    c = run_task(model, alone, backwards).region[0]
    position = {(case.item.sample.key, case.region.id): i for i, case in enumerate(c.cases)}
    order = [position[case.item.sample.key, case.region.id] for case in a.cases]
    for key in a.values:
        np.testing.assert_allclose(a.values[key], b.values[key], atol=2e-4)
        if key[0] == "point" and key[1] != "box_geometry":
            np.testing.assert_allclose(a.values[key], c.values[key][order], atol=2e-4)


def test_swapping_the_texts_of_two_classes_shows(model, shards, monkeypatch):
    oracle = Oracle(class_weights(model))
    swap = {"red square": "green square", "green square": "red square"}
    original = texts_module.class_texts
    monkeypatch.setattr(texts_module, "class_texts", lambda term, *rest: original(swap.get(term, term), *rest))
    task = task_on(shards, comparators=["unprompted"])
    corpus = read_corpus(task)
    scores = run_task(model, task, corpus, extra=[oracle]).region[0]
    result = build_result(task, FACTS, corpus, run_task(model, task, corpus, extra=[oracle]))
    assert values(result, "oracle")["box"] == pytest.approx(1 / 3)
    assert top_answers(scores, 0, "box", "oracle")[0][0] != scores.classes[scores.cases[0].true]


def test_the_same_run_gives_the_same_bytes(model, shards):
    task = task_on(shards, region=RegionTask(["{name}"], max_regions_per_image=2))

    def once():
        corpus = read_corpus(task)
        evaluation = run_task(model, task, corpus)
        result = build_result(task, FACTS, corpus, evaluation)
        return json.dumps(result, allow_nan=False), prediction_lines(evaluation)

    first = once()
    assert first == once()
    assert str(shards) not in first[0] + first[1].decode()  # the folder's name only, no path
    rows = [json.loads(line) for line in first[1].splitlines()]
    assert sum(row["level"] == "region" for row in rows) == 8  # two of each image's four
    assert all(len(best) == 3 for r in rows if r["level"] == "region" for p in r["top"].values() for best in p.values())


def test_the_mode_is_restored_and_no_gradient_is_kept(model, shards):
    model.train()
    try:
        task = task_on(shards, comparators=["prompted"])
        run_task(model, task, read_corpus(task))
        assert model.training and all(m.training for m in model.modules())
        with pytest.raises(RuntimeError), evaluating(model):
            assert not model.training and not torch.is_grad_enabled()
            raise RuntimeError
        assert model.training and torch.is_grad_enabled()
    finally:
        model.eval()


def test_sources_have_their_own_classes_and_the_headline_is_their_mean(model, shards, tmp_path):
    other = write_shards(tmp_path / "other", source="other", images=6)
    one = tmp_path / "one"
    with ShardWriter(one) as writer:
        for i in range(2):
            stream = io.BytesIO()
            Image.new("RGB", (20, 20)).save(stream, "PNG")
            region = Region(0, "disc", [2.0, 2.0, 9.0, 9.0])
            sample = Sample(f"one{i}", "one", ("train", "test")[i], f"g{i}", "CT", 20, 20, regions=[region])
            writer.add(sample, stream.getvalue(), "png")
        writer.finish()
    task = task_on(shards, other, one, image=[], comparators=["unprompted"])
    corpus = read_corpus(task)
    evaluation = run_task(model, task, corpus, extra=[Constant(class_weights(model))])
    result = build_result(task, FACTS, corpus, evaluation)
    assert {row["source"] for row in result["region"]} == {"squares", "other"}
    assert any(note.startswith("one: 1 region class") for note in result["left_out"])
    head = next(r for r in result["headline"] if r["prompt"] == "box" and r["comparator"] == "unprompted")
    rows = [r["value"] for r in result["region"] if r["prompt"] == "box" and r["comparator"] == "unprompted"]
    assert head["sources"] == ["other", "squares"] and head["value"] == pytest.approx(np.mean(rows))
    assert head["interval"][0] <= head["value"] <= head["interval"][1]


def test_what_cannot_be_measured_is_said(model, shards, tmp_path):
    val = task_on(shards)
    val.split = "val"
    with pytest.raises(MedpclipError, match="no split 'val'"):
        read_corpus(val)
    with pytest.raises(MedpclipError, match="named twice"):
        read_corpus(task_on(shards, shards))
    nothing = task_on(shards, image=[], region=RegionTask(["{name}"], classes=["liver", "spleen"]))
    with pytest.raises(MedpclipError, match="no region to evaluate .*16 regions of other classes"):
        run_task(model, nothing, read_corpus(nothing))
    label = task_on(shards, image=[ImageTask("labels.finding", ["{name}"])])
    with pytest.raises(MedpclipError, match="'labels.finding' has fewer than two values in the data \\(none\\)"):
        run_task(model, label, read_corpus(label))
    described = task_on(shards, image=[], region=RegionTask(["{description}"]))
    with pytest.raises(MedpclipError, match="class 'blue square': the lexicon"):
        run_task(model, described, read_corpus(described))
    broken = write_shards(tmp_path / "broken", pairs={"colour": [["red square"]]})
    with pytest.raises(MedpclipError, match="key 'pairs'.*expected two categories"):
        read_corpus(task_on(broken))


def test_unit_box_falls_back_on_the_mask():
    mask = np.zeros((80, 120), bool)
    mask[10:30, 60:90] = True
    box = unit_box(Region(0, "x", segmentation=encode_mask(mask)), 120, 80)
    assert box is not None and np.allclose(box, [0.5, 0.25, 0.75, 50 / 120])
    assert unit_box(Region(0, "x", points=[[3.0, 4.0]]), 120, 80) is None
