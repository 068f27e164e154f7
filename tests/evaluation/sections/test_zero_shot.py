"""Classification by words on shards of coloured squares, by models whose score is known beforehand."""

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
from medpclip.evaluation.corpus import read_corpus, unit_box
from medpclip.evaluation.embedding import texts as texts_module
from medpclip.evaluation.embedding.features import Features
from medpclip.evaluation.results.exposure import TrainedOn
from medpclip.evaluation.results.predictions import prediction_lines
from medpclip.evaluation.results.result import ModelFacts, build_result
from medpclip.evaluation.run import run_task
from medpclip.evaluation.subject import Subject
from medpclip.evaluation.task import Bootstrap, ImageTask, RegionTask, Task
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


class Told:
    """Features whose texts are unit vectors, one for each word, and whose regions have those of their right answer.

    "prompted" says the colour under the prompt, "crop" always the first class, "unprompted" the words told it by image.
    """

    comparators = ("unprompted", "prompted", "crop")
    image_scale = region_scale = 100.0
    mask_grid = 16

    def __init__(self, images=None):
        self.speed = {}
        self.subject = Subject.of_model(load_model("medpclip-tiny-16"), FACTS, prompted=True)
        self.images, self.words = images or {}, []

    def vector(self, word):
        if word not in self.words:
            self.words.append(word)
        return np.eye(64, dtype=np.float32)[self.words.index(word)]

    def texts(self, texts):
        return np.stack([self.vector(text.removeprefix("a ")) for text in texts])

    def embed(self, requests, name=""):
        return np.array([self.answer(request) for request in requests], np.float32).reshape(-1, 64)

    def answer(self, request):
        if request.comparator == "crop":
            return self.vector(CLASSES[0])
        if request.comparator == "unprompted" or request.item.sample.key in self.images:
            return self.vector(self.images.get(request.item.sample.key, "nothing"))
        prompt = request.prompt
        if prompt.mask is not None:
            row, column = divmod(int(prompt.mask.argmax()), self.mask_grid)
            x, y = (column + 0.5) / self.mask_grid, (row + 0.5) / self.mask_grid
        elif prompt.box is not None:
            x, y = prompt.box.reshape(2, 2).mean(0)
        else:
            x, y = prompt.points[0]
        colour = request.item.image()[int(y * 120 - 20), int(x * 120)]  # 120 x 80, padded by 20 rows above
        return self.vector(CLASSES[[2, 1, 0].index(int(colour.argmax()))])


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    return Features(Subject.of_model(load_model("medpclip-tiny-16"), FACTS, prompted=True), shown=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), pairs={"colour": [["red square", "blue square"]]})


def task_on(*folders: Path, **changes) -> Task:
    given = {"region": RegionTask(["{name}", "a {name}"]), "image": [ImageTask("modality", ["{name}"])]} | changes
    return Task(name="squares", data=[str(f) for f in folders], bootstrap=Bootstrap(draws=20), **given)


def evaluate(features, task):
    corpus = read_corpus(task)
    evaluation = run_task(features, task, corpus)
    return evaluation, build_result(task, FACTS, corpus, evaluation)


def rows_of(result, section, comparator, metric="balanced_accuracy"):
    rows = [r for r in result["rows"] if (r["section"], r["comparator"], r["metric"]) == (section, comparator, metric)]
    return {row["prompt"]: row for row in rows if row["part"] is None}


def values(result, comparator):
    return {prompt: row["value"] for prompt, row in rows_of(result, "region", comparator).items()}


def test_an_oracle_is_right_a_constant_is_chance_and_box_geometry_is_there(shards):
    task = task_on(shards, comparators=["prompted", "crop", "box_geometry"])
    evaluation, result = evaluate(Told(), task)
    assert values(result, "prompted") == {"box": 1.0, "point": 1.0, "mask": 1.0}
    assert values(result, "crop") == pytest.approx({"box": 1 / 3, "point": 1 / 3, "mask": 1 / 3})
    assert values(result, "box_geometry").keys() == {"box", "point", "mask"}
    seen, _ = evaluate(Told(), replace(task, split="train"))
    assert not any(name == "box_geometry" for _, name in seen.of("region")[0].values)
    assert seen.left_out == [
        "image label 'modality': no image of 'microscopy' in split 'train'",
        "squares: box_geometry, since it learns from the train split, which is measured",
    ]
    told = rows_of(result, "region", "prompted")
    assert [(told[kind]["cases"], told[kind]["images"], told[kind]["groups"]) for kind in ("box", "point", "mask")] == [
        (16, 4, 4),
        (16, 4, 4),
        (12, 4, 4),  # a region without a mask isn't asked by mask
    ]
    assert told["box"]["interval"] == [1.0, 1.0] and told["box"]["classes"] == CLASSES
    [region] = evaluation.of("region")
    assert region.mixed and region.pairs == {"colour": [("red square", "blue square")]}
    assert np.isnan(region.values["mask", "prompted"]).all(axis=1).sum() == 4
    assert result["left_out"] == []


def test_a_misspelt_class_is_an_error_and_an_absent_one_is_said(shards):
    task = task_on(shards, region=RegionTask(["{name}"], ["box"], ["red square", "gren square"]), image=[])
    with pytest.raises(MedpclipError, match="class 'gren square' is in no split .*; did you mean 'green square'"):
        evaluate(Told(), task)
    question = ImageTask("modality", ["{name}"], ["radiograph", "wibble"])
    with pytest.raises(MedpclipError, match="label 'modality': class 'wibble' .*; there are microscopy, radiograph"):
        evaluate(Told(), task_on(shards, image=[question], region=None))
    # A term of the lexicon may be a candidate that no image has; the words count, not the label.
    evaluate(Told(), task_on(shards, image=[replace(question, terms={"wibble": "ultrasound"})], region=None))
    named = RegionTask(["{name}"], ["box"], ["red square", "spleen"])
    result = evaluate(Told(), task_on(shards, region=named, image=[], comparators=["prompted"]))[1]
    assert "squares: no region of 'spleen' in split 'test'" in result["left_out"]
    [warning] = result["warnings"]
    assert warning.startswith("squares: all regions that are asked for are of one class, 'red square'")
    with pytest.raises(MedpclipError, match=r"label 'labels\.finding' is in no sample; its key .* is misspelt"):
        evaluate(Told(), task_on(shards, image=[ImageTask("labels.finding", ["{name}"], ["red square", "spleen"])]))


def test_a_prompt_that_no_region_has_is_said_and_nothing_at_all_is_an_error(tmp_path):
    with ShardWriter(tmp_path / "s") as writer:
        for i in range(4):
            stream = io.BytesIO()
            Image.new("RGB", (40, 40)).save(stream, "PNG")
            regions = [Region(r, CLASSES[r], [2.0 + 9 * r, 2.0, 9.0, 9.0]) for r in range(2)]
            writer.add(Sample(f"s{i}", "s", "test", f"g{i}", "CT", 40, 40, regions=regions), stream.getvalue(), "png")
        writer.finish()
    asked = {"image": [], "comparators": ["unprompted"]}
    result = evaluate(Told(), task_on(tmp_path / "s", region=RegionTask(["{name}"], ["box", "mask"]), **asked))[1]
    assert result["left_out"] == ["s: prompt mask, by which none of its regions can be asked"]
    assert {row["prompt"] for row in result["rows"]} == {"box"}
    with pytest.raises(MedpclipError, match="nothing could be measured .s: prompt mask"):
        evaluate(Told(), task_on(tmp_path / "s", region=RegionTask(["{name}"], ["mask"]), **asked))


def test_one_group_has_no_interval(shards):
    corpus = read_corpus(
        task := task_on(shards, region=RegionTask(["{name}"], ["box"]), image=[], comparators=["crop"])
    )
    for item in corpus.items:
        item.sample.group = "the same"
    result = build_result(task, FACTS, corpus, run_task(Told(), task, corpus))
    assert result["rows"] and {(row["groups"], row["interval"]) for row in result["headline"] + result["rows"]} == {
        (1, None)
    }


def test_the_order_of_the_images_changes_nothing(features, shards):
    task = task_on(
        shards, region=RegionTask(["{name}", "a {name}"], prompts=["point"]), comparators=["prompted", "crop"]
    )
    a = run_task(features, task, read_corpus(task)).of("region")[0]
    backwards = read_corpus(task)
    backwards.sources[0].items.reverse()
    b = run_task(features, task, backwards).of("region")[0]
    position = {(case.item.sample.key, case.region.id): i for i, case in enumerate(b.cases)}
    order = [position[case.item.sample.key, case.region.id] for case in a.cases]
    assert order != sorted(order) and all(np.array_equal(a.values[key], b.values[key][order]) for key in a.values)


def test_at_its_start_a_prompted_model_says_what_it_says_unprompted(features, shards):
    task = task_on(shards, comparators=["prompted", "unprompted"])
    for scores in run_task(features, task, read_corpus(task)).of("region"):
        for kind in task.region.prompts:
            np.testing.assert_allclose(scores.values[kind, "prompted"], scores.values[kind, "unprompted"], atol=1e-4)
            assert np.isfinite(scores.values[kind, "prompted"]).all() or kind == "mask"


def test_swapping_the_texts_of_two_classes_shows(shards, monkeypatch):
    swap = {"red square": "green square", "green square": "red square"}
    original = texts_module.class_texts
    monkeypatch.setattr(texts_module, "class_texts", lambda term, *rest: original(swap.get(term, term), *rest))
    result = evaluate(Told(), task_on(shards, comparators=["prompted"]))[1]
    assert values(result, "prompted")["box"] == pytest.approx(1 / 3)


def test_the_same_run_gives_the_same_bytes(features, shards):
    task = task_on(shards, region=RegionTask(["{name}"], max_regions_per_image=2), comparators=["prompted", "crop"])

    def once():
        evaluation, result = evaluate(Features(features.subject, shown=False), task)
        return json.dumps(result, allow_nan=False), prediction_lines(evaluation)

    first = once()
    assert first == once()
    assert str(shards) not in first[0] + first[1].decode()  # the folder's name only, no path
    rows = [json.loads(line) for line in first[1].splitlines()]
    assert sum(row["section"] == "region" for row in rows) == 8  # two of each image's four


def test_images_are_asked_by_boxes_too(features, shards):
    ways = ["none", "full_box", "small_box", "irrelevant_box"]
    told = {f"squares{i}": "microscopy" if i % 4 == 1 else "radiograph" for i in range(8)}
    question = ImageTask("modality", ["{name}"], prompts=ways, positive="microscopy")
    task = task_on(shards, image=[question], region=None, comparators=["prompted"])
    evaluation, _ = evaluate(Told(told), task)
    [scores] = evaluation.of("image")
    assert list(scores.values) == [("image", "unprompted"), *((way, "prompted") for way in ways[1:])]
    assert scores.positive == scores.classes.index("microscopy") and not evaluation.left_out
    for asked, found in scores.values.items():
        assert (found.argmax(1) == scores.true).all(), asked
    untrained = Features(replace(features.subject, prompted=False), shown=False)
    task = task_on(shards, image=[question], region=RegionTask(["{name}"]), comparators=["prompted", "crop"])
    evaluation = run_task(untrained, task, read_corpus(task))
    assert {name for _, name in evaluation.of("region")[0].values} == {"crop"}
    assert list(evaluation.of("image")[0].values) == [("image", "unprompted")]
    assert sum("never trained with prompts" in note for note in evaluation.left_out) == 4


def test_values_are_asked_in_the_words_of_their_terms(shards):
    told = {f"squares{i}": "blood smear" if i % 4 == 1 else "film" for i in range(8)}
    terms = {"microscopy": "blood smear", "radiograph": "film"}
    question = ImageTask("modality", ["{name}", "a {name}"], terms=terms)
    scores = evaluate(Told(told), task_on(shards, image=[question], region=None))[0].of("image")[0]
    assert scores.classes == ["microscopy", "radiograph"]
    assert (scores.values["image", "unprompted"].argmax(1) == scores.true).all()
    alike = replace(question, terms={"microscopy": "radiograph"})
    with pytest.raises(MedpclipError, match="'microscopy' and 'radiograph' have the same term 'radiograph'"):
        evaluate(Told(told), task_on(shards, image=[alike], region=None))
    with pytest.raises(MedpclipError, match="positive class 'CT', which must be one of two classes"):
        evaluate(Told(told), task_on(shards, image=[replace(question, positive="CT")], region=None))


def test_sources_have_their_own_classes_and_the_headline_is_their_mean(features, shards, tmp_path):
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
    result = evaluate(features, task_on(shards, other, one, image=[], comparators=["unprompted"]))[1]
    rows = [r for r in result["rows"] if r["metric"] == "balanced_accuracy" and r["prompt"] == "box"]
    assert {row["name"] for row in rows} == {"squares", "other"}
    assert any(note.startswith("one: 1 region class") for note in result["left_out"])
    head = next(r for r in result["headline"] if r["prompt"] == "box" and r["metric"] == "balanced_accuracy")
    assert head["sources"] == ["other", "squares"]
    assert head["value"] == pytest.approx(np.mean([row["value"] for row in rows]))


def test_what_cannot_be_measured_is_said(features, shards, tmp_path):
    val = task_on(shards)
    val.split = "val"
    with pytest.raises(MedpclipError, match="no split 'val'"):
        read_corpus(val)
    with pytest.raises(MedpclipError, match="named twice"):
        read_corpus(task_on(shards, shards))
    nothing = task_on(shards, image=[], region=RegionTask(["{name}"], classes=["liver", "spleen"]))
    with pytest.raises(MedpclipError, match="no region to evaluate .*16 regions of other classes"):
        run_task(features, nothing, read_corpus(nothing))
    label = task_on(shards, image=[ImageTask("labels.finding", ["{name}"])])
    with pytest.raises(MedpclipError, match="'labels.finding' has fewer than two values in the data \\(none\\)"):
        run_task(features, label, read_corpus(label))
    described = task_on(shards, image=[], region=RegionTask(["{description}"]))
    with pytest.raises(MedpclipError, match="class 'blue square': the lexicon"):
        run_task(features, described, read_corpus(described))
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


def test_a_case_is_not_asked_about_kinds_of_its_own_class(features, tmp_path):
    lexicon = Lexicon.load()
    assert lexicon.related("blood cell", "red blood cell") and not lexicon.related("platelet", "red blood cell")
    modalities = ["microscopy", "CT", "blood smear microscopy"]
    folder = write_plain(tmp_path / "plain", modalities, ["blood cell", "red blood cell", "nodule"])
    task = task_on(folder, region=RegionTask(["{name}"], prompts=["box"]), comparators=["prompted", "unprompted"])
    evaluation, result = evaluate(features, task)

    [image] = evaluation.of("image")
    assert image.classes == ["CT", "blood smear microscopy", "microscopy"]
    modality = [case.item.sample.modality for case in image.cases]
    values = dict(zip(modality, image.values["image", "unprompted"], strict=True))
    assert np.isneginf(values["microscopy"]).tolist() == [False, True, False]
    assert np.isneginf(values["blood smear microscopy"]).tolist() == [False, False, True]
    assert np.isfinite(values["CT"]).all()

    [region] = evaluation.of("region")
    assert region.mixed and region.pairs == {"kind": [("red blood cell", "nodule")]}
    for scores in region.values.values():
        np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=1e-5)
        assert np.isneginf(scores[region.true == 0]).tolist() == [[False, False, True]] * 3
    notes = [note for note in result["left_out"] if "since one is a kind of the other" in note]
    assert len(notes) == 4 and "for 1 images of 'microscopy' the candidates 'blood smear microscopy'" in " ".join(notes)


def test_cases_with_no_other_candidate_left_are_not_measured(features, tmp_path):
    folder = write_plain(tmp_path / "plain", ["microscopy", "blood smear microscopy"], ["platelet", "nodule", "organ"])
    task = task_on(folder, region=None)
    with pytest.raises(MedpclipError, match="'modality' has only classes that are kinds of one another"):
        run_task(features, task, read_corpus(task))


def test_what_training_saw_stands_in_each_row(shards, tmp_path):
    other = write_shards(tmp_path / "other", source="other")
    task = task_on(shards, other, comparators=["crop"])
    corpus = read_corpus(task)
    evaluation = run_task(Told(), task, corpus)

    def exposures(trained: TrainedOn | None) -> dict[str, set[str]]:
        result = build_result(task, replace(FACTS, trained_on=trained), corpus, evaluation)
        out = {"headline": {row["exposure"] for row in result["headline"]}}
        return out | {name: {r["exposure"] for r in result["rows"] if r["name"] == name} for name in NAMES}

    NAMES = ("modality", "squares", "other")
    assert set.union(*exposures(None).values()) == {"unknown"}
    seen, unseen = {"seen source"}, {"unseen source"}
    one = TrainedOn(["train"], ["squares"], ["red square"], [])
    assert exposures(one) == {"headline": seen, "modality": seen, "squares": seen, "other": unseen}
    terms = exposures(TrainedOn(["train"], ["elsewhere"], ["liver"], []))
    assert terms == {
        "headline": {"unseen term"},
        "modality": unseen,
        "squares": {"unseen term"},
        "other": {"unseen term"},
    }


def test_a_picture_of_another_size_than_its_json_says_is_refused(features, tmp_path):
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
        run_task(features, task, read_corpus(task))


def test_unit_box_falls_back_on_the_mask():
    mask = np.zeros((80, 120), bool)
    mask[10:30, 60:90] = True
    box = unit_box(Region(0, "x", segmentation=encode_mask(mask)), 120, 80)
    assert box is not None and np.allclose(box, [0.5, 0.25, 0.75, 50 / 120])
    assert unit_box(Region(0, "x", points=[[3.0, 4.0]]), 120, 80) is None
