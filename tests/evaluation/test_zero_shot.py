"""The whole evaluation on shards of coloured squares, with embedders whose score is known beforehand."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import medpclip.models
from medpclip.data.lexicon import Lexicon
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError
from medpclip.evaluation import texts as texts_module
from medpclip.evaluation.corpus import read_corpus, unit_box
from medpclip.evaluation.exposure import TrainedOn
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
    assert {"prompted", "unprompted", "crop", "prompted_crop", "mask_pooling", "box_geometry"} < {
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


def write_plain(folder: Path, modalities: list[str], categories: list[str]) -> Path:
    """An image for each modality, test split, with a region for each category."""
    with ShardWriter(folder) as writer:
        for i, modality in enumerate(modalities):
            stream = io.BytesIO()
            noise = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(noise).save(stream, "PNG")
            regions = [Region(r, c, [4.0 * r, 4.0 * r, 12.0, 12.0]) for r, c in enumerate(categories)]
            sample = Sample(f"p{i}", "plain", "test", f"g{i}", modality, 40, 40, regions=regions)
            writer.add(sample, stream.getvalue(), "png")
        writer.finish(pairs={"kind": [categories[:2], categories[1:3]]})
    return folder


def test_a_case_is_not_asked_about_kinds_of_its_own_class(model, tmp_path):
    lexicon = Lexicon.load()
    assert lexicon.related("blood cell", "red blood cell") and not lexicon.related("platelet", "red blood cell")
    modalities = ["microscopy", "CT", "blood smear microscopy"]
    folder = write_plain(tmp_path / "plain", modalities, ["blood cell", "red blood cell", "nodule"])
    task = task_on(folder, region=RegionTask(["{name}"], prompts=["box"]), comparators=["prompted", "unprompted"])
    corpus = read_corpus(task)
    evaluation = run_task(model, task, corpus, extra=[Constant(class_weights(model, ["blood cell", "red blood cell"]))])
    result = build_result(task, FACTS, corpus, evaluation)

    [image] = evaluation.image
    assert image.classes == ["CT", "blood smear microscopy", "microscopy"]
    modality = [case.item.sample.modality for case in image.cases]
    values = dict(zip(modality, image.values["image", "unprompted"], strict=True))
    assert np.isneginf(values["microscopy"]).tolist() == [False, True, False]
    assert np.isneginf(values["blood smear microscopy"]).tolist() == [False, False, True]
    assert np.isfinite(values["CT"]).all()

    [region] = evaluation.region
    assert region.mixed and region.pairs == {"kind": [("red blood cell", "nodule")]}
    for scores in region.values.values():
        np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=1e-5)
        assert np.isneginf(scores[region.true == 0]).tolist() == [[False, False, True]] * 3
    for row in (r for key in ("region", "image") for r in result[key]):
        related = [row["classes"].index(c) for c in row["classes"] if c.endswith(("blood cell", "microscopy"))]
        assert row["cases"] == sum(map(sum, row["confusion"])) > 0
        assert all(row["confusion"][a][b] == 0 for a in related for b in related if a != b)
    notes = [note for note in result["left_out"] if "since one is a kind of the other" in note]
    assert len(notes) == 4 and "for 1 images of 'microscopy' the candidates 'blood smear microscopy'" in " ".join(notes)
    lines = [json.loads(line) for line in prediction_lines(evaluation).splitlines()]
    assert all(p > 0 for line in lines for asked in line["top"].values() for best in asked.values() for _, p in best)


def test_cases_with_no_other_candidate_left_are_not_measured(model, tmp_path):
    folder = write_plain(tmp_path / "plain", ["microscopy", "blood smear microscopy"], ["platelet", "nodule", "organ"])
    task = task_on(folder, region=None)
    with pytest.raises(MedpclipError, match="'modality' has only classes that are kinds of one another"):
        run_task(model, task, read_corpus(task))


def test_what_training_saw_stands_in_each_row(model, shards, tmp_path):
    other = write_shards(tmp_path / "other", source="other")
    task = task_on(shards, other, comparators=["unprompted"])
    corpus = read_corpus(task)
    evaluation = run_task(model, task, corpus)

    def exposures(trained: TrainedOn | None) -> dict[str, set[str]]:
        result = build_result(task, replace(FACTS, trained_on=trained), corpus, evaluation)
        rows = {key: {r["exposure"] for r in result[key]} for key in ("headline", "image")}
        return rows | {s: {r["exposure"] for r in result["region"] if r["source"] == s} for s in ("squares", "other")}

    assert set.union(*exposures(None).values()) == {"unknown"}
    seen, unseen = {"seen source"}, {"unseen source"}
    one = TrainedOn(["train"], ["squares"], ["red square"], [])
    assert exposures(one) == {"headline": seen, "image": seen, "squares": seen, "other": unseen}
    terms = exposures(TrainedOn(["train"], ["elsewhere"], ["liver"], []))
    assert terms == {"headline": {"unseen term"}, "image": unseen, "squares": {"unseen term"}, "other": {"unseen term"}}


def test_a_picture_of_another_size_than_its_json_says_is_refused(model, tmp_path):
    folder = tmp_path / "wrong"
    with ShardWriter(folder) as writer:
        for i, category in enumerate(["a", "b"]):
            stream = io.BytesIO()
            Image.new("RGB", (30, 20)).save(stream, "PNG")
            region = Region(0, category, [2.0, 2.0, 9.0, 9.0])
            sample = Sample(f"w{i}", "wrong", "test", f"g{i}", "CT", 40, 20, regions=[region])
            writer.add(sample, stream.getvalue(), "png")
        writer.finish()
    task = task_on(folder, image=[])
    with pytest.raises(
        MedpclipError, match="test-000000.tar: w0: the image is 30x20, .* 40x20; run 'medpclip data check"
    ):
        run_task(model, task, read_corpus(task))


def test_unit_box_falls_back_on_the_mask():
    mask = np.zeros((80, 120), bool)
    mask[10:30, 60:90] = True
    box = unit_box(Region(0, "x", segmentation=encode_mask(mask)), 120, 80)
    assert box is not None and np.allclose(box, [0.5, 0.25, 0.75, 50 / 120])
    assert unit_box(Region(0, "x", points=[[3.0, 4.0]]), 120, 80) is None
