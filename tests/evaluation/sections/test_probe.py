import zlib
from typing import Any, cast

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from medpclip.data.schema import Region, Sample
from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import Corpus, Item, Source
from medpclip.evaluation.scores import Case
from medpclip.evaluation.sections import probe as module
from medpclip.evaluation.sections.probe import (
    DEFAULT_STRENGTH,
    TEMPERATURE,
    Learned,
    few,
    linear_probe,
    nearest_neighbours,
    run,
)
from medpclip.evaluation.task import ProbeTask, Task

WIDTH = 12


def blobs(n: int, classes: int, seed: int, noise: float = 0.6) -> Learned:
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=n)
    rows = np.eye(WIDTH)[true] + noise * rng.normal(size=(n, WIDTH))
    return Learned((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), true)


def test_the_linear_probe_is_scikit_learn_s_on_standardised_features():
    train, test = blobs(80, 3, 0), blobs(30, 3, 1)
    mean, deviation = train.features.mean(0, dtype=np.float64), train.features.std(0, dtype=np.float64)
    reference = LogisticRegression(C=DEFAULT_STRENGTH, class_weight="balanced", max_iter=2000, tol=1e-8)
    reference.fit((train.features - mean) / deviation, train.true)
    found = linear_probe(train, None, test.features, 3)
    assert np.allclose(np.exp(found), reference.predict_proba((test.features - mean) / deviation), atol=1e-5)
    assert (found == linear_probe(train, None, test.features, 3)).all()


def test_the_penalty_is_the_best_on_val_and_the_strongest_of_equals(monkeypatch):
    train, val, test = blobs(60, 3, 0, 1.0), blobs(60, 3, 1, 1.0), blobs(40, 3, 2)
    by_strength = {}
    for strength in module.STRENGTHS:
        monkeypatch.setattr(module, "DEFAULT_STRENGTH", strength)
        answers = linear_probe(train, None, val.features, 3).argmax(1)
        recalls = [np.mean(answers[val.true == c] == c) for c in range(3)]
        by_strength[strength] = (np.mean(recalls), linear_probe(train, None, test.features, 3))
    best = max(by_strength, key=lambda s: (by_strength[s][0], -s))
    assert (linear_probe(train, val, test.features, 3) == by_strength[best][1]).all()
    assert len({float(reached) for reached, _ in by_strength.values()}) > 1  # there was something to choose


def test_neighbours_vote_as_scikit_learn_s_do():
    train, test = blobs(70, 3, 0), blobs(25, 3, 1)

    def weigh(distances):
        return np.exp((1 - distances) / TEMPERATURE)

    reference = KNeighborsClassifier(7, weights=weigh, metric="cosine").fit(train.features, train.true)
    found = nearest_neighbours(train, test.features, 4, 7)
    assert np.allclose(np.exp(found[:, :3]), reference.predict_proba(test.features), atol=1e-4)
    assert np.isfinite(found).all() and (found[:, 3] < -20).all()  # a class that nobody has


def test_equals_at_the_edge_share_the_places_left(monkeypatch):
    same = np.eye(WIDTH, dtype=np.float32)[[0, 0, 0, 1]]
    found = np.exp(nearest_neighbours(Learned(same, np.array([0, 1, 1, 2])), same[:1], 3, 2))
    assert np.allclose(found, [[1 / 3, 2 / 3, 0]], atol=1e-6)  # whatever their order
    train, test = blobs(30, 3, 0), blobs(20, 3, 1)
    whole = nearest_neighbours(train, test.features, 3, 500)  # more than there are
    monkeypatch.setattr(module, "_CELLS", 60)
    assert np.allclose(whole, nearest_neighbours(train, test.features, 3, 500), atol=1e-6)


class Fake:
    """An image is a noisy axis of its finding, a region of its category; what a picture is of is in its key."""

    comparators: tuple[str, ...] = ("unprompted", "prompted")
    mask_grid = 4

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def embed(self, requests, name=""):
        rows = np.zeros((len(requests), WIDTH), np.float32)
        for row, request in zip(rows, requests, strict=True):
            self.asked.add(request.comparator)
            sample = request.item.sample
            rng = np.random.default_rng(zlib.crc32(f"{sample.key} {request.prompt is None}".encode()))
            what = sample.labels["finding"] if request.prompt is None else sample.regions[0].category
            row[:] = np.eye(WIDTH)[int(what[-1])] + 0.1 * rng.normal(size=WIDTH)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def source(name: str = "s", classes: int = 3, per_split=(("train", 12), ("val", 6), ("test", 9))) -> Source:
    by_split: dict[str, list[Item]] = {}
    for split, count in per_split:
        for i in range(count):
            own = Region(0, f"category {(i + 1) % classes}", [5.0, 5.0, 20.0, 20.0])
            key = f"{name} {split} {i}"
            sample = Sample(key, name, split, key, "CT", 50, 50, labels={"finding": f"f{i % classes}"}, regions=[own])
            by_split.setdefault(split, []).append(Item(cast(Any, None), i, sample))
    return Source(name, by_split.get("test", []), by_split)


def probe(*sources: Source, split: Any = "test", features: Any = None, **changes):
    question = ProbeTask(**({"label": "labels.finding"} | changes))
    left_out: list[str] = []
    task = Task("t", "d", split=split, probe=[question])
    found = run(cast(Any, features or Fake()), task, question, Corpus(list(sources), {}, []), left_out)
    return found, left_out


def right(scores, asked) -> float:
    return float((scores.values[asked].argmax(axis=1) == scores.true).mean())


def test_the_linear_probe_is_fitted_to_the_end_so_that_rounding_moves_no_answer(monkeypatch):
    monkeypatch.setattr("medpclip.evaluation.sections.probe.STRENGTHS", (1.0,))  # the slowest to fit
    rng = np.random.default_rng(4)
    true, low = np.arange(120) % 3, rng.normal(size=(20, 96))
    rows = rng.normal(size=96) + 0.1 * (rng.normal(size=(120, 20)) + 0.5 * np.eye(3, 20)[true]) @ low
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    scaled = (rows - rows[:90].mean(0, dtype=np.float64)) / rows[:90].std(0, dtype=np.float64)
    exact = LogisticRegression(C=1.0, class_weight="balanced", max_iter=20000, tol=1e-12).fit(scaled[:90], true[:90])
    found = np.exp(linear_probe(Learned(rows[:90], true[:90]), Learned(rows[90:], true[90:]), rows, 3))
    assert np.abs(found - exact.predict_proba(scaled)).max() < 2e-5


def test_images_of_all_sources_together():
    features = Fake()
    [scores], left_out = probe(source("a"), source("b"), features=features)
    assert (scores.section, scores.name, scores.classes) == ("probe", "labels.finding", ["f0", "f1", "f2"])
    assert list(scores.values) == [("image", "linear_probe"), ("image", "knn")] and len(scores.cases) == 18
    assert all(right(scores, asked) == 1 for asked in scores.values) and not left_out
    assert features.asked == {"unprompted"}
    assert all(
        np.allclose(np.exp(v).sum(axis=1), 1, atol=1e-5) and v.dtype == np.float32 for v in scores.values.values()
    )


def test_regions_each_source_by_itself_by_the_model_s_own_embedding():
    features = Fake()
    found, _ = probe(source("a"), source("b"), features=features, label="region", methods=["knn"], neighbours=3)
    assert [s.name for s in found] == ["a", "b"] and features.asked == {"prompted"}
    assert all(right(s, ("box", "knn")) == 1 and s.classes[0] == "category 0" for s in found)
    features.comparators, features.asked = ("unprompted", "crop"), set()
    probe(source("a"), features=features, label="region", methods=["knn"])
    assert len(features.asked) == 1 and features.asked < {"unprompted", "crop"}


def test_a_region_without_a_box_is_not_asked_and_not_learned_from():
    one = source()
    for split in ("train", "test"):
        one.by_split[split][0].sample.regions[0] = Region(0, "category 1", points=[[9.0, 9.0]])
    [scores], _ = probe(one, label="region", prompts=["box", "point"])
    for method in ("linear_probe", "knn"):
        assert np.isnan(scores.values["box", method][0]).all() and not np.isnan(scores.values["box", method][1:]).any()
        assert not np.isnan(scores.values["point", method]).any()


def test_shots_are_a_seeded_choice_of_each_class():
    items = [Item(cast(Any, None), i, cast(Any, None)) for i in range(40)]
    cases = [Case(item, min(2, i % 5)) for i, item in enumerate(items)]
    chosen = few(cases, 4, 0, "s")
    assert [sum(c.true == t for c in chosen) for t in range(3)] == [4, 4, 4]
    assert [c.item.index for c in chosen] == sorted(c.item.index for c in chosen)
    assert few(cases, 4, 0, "s") == chosen != few(cases, 4, 1, "s") and few(cases, None, 0, "s") == cases
    [scores], _ = probe(source(), shots=1)
    assert list(scores.values) == [("image", "linear_probe, 1 shot"), ("image", "knn, 1 shot")]


def test_a_patient_in_train_and_in_the_measured_split_is_refused():
    leaking = source()
    leaking.by_split["test"][3].sample.group = leaking.by_split["train"][0].sample.group
    for label in ("labels.finding", "region"):
        with pytest.raises(MedpclipError, match=r"1 groups of s are in 'train' and in 'test'") as caught:
            probe(leaking, label=label)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_asked_is_said():
    strange = source(per_split=(("train", 6), ("test", 9)))
    strange.by_split["test"][0].sample.labels["finding"] = "f9"
    strange.by_split["test"][1].sample.labels = {}
    [scores], left_out = probe(strange)
    assert len(scores.cases) == 7 and len(left_out) == 2
    assert "1 images of classes that the train split doesn't have" in left_out[0] and "no val split" in left_out[1]
    [_], left_out = probe(source(), split="val")
    assert "val is what is measured" in left_out[0]
    found, left_out = probe(source(classes=1))
    assert not found and "fewer than two classes" in left_out[0]
    with pytest.raises(MedpclipError, match="set 'split' to 'val' or 'test'"):
        probe(source(), split="train")
