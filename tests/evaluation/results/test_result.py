"""Rows of all sections, from scores whose figures are known or counted by hand."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from medpclip.data.schema import Region, Sample
from medpclip.evaluation.corpus import Corpus, Item
from medpclip.evaluation.results.answers import all_answers, common, of_scores
from medpclip.evaluation.results.exposure import TrainedOn
from medpclip.evaluation.results.predictions import prediction_lines, read_predictions
from medpclip.evaluation.results.result import ModelFacts, build_result, task_sha256
from medpclip.evaluation.results.rows import Row
from medpclip.evaluation.scores import Case, Evaluation, MultiLabelScores, Ranking, Scores
from medpclip.evaluation.task import Bootstrap, ImageTask, Published, RegionTask, RetrievalTask, Task

FACTS = ModelFacts("here", "0" * 64, 7)
CLASSES = ["bone", "heart", "lung"]
RNG = np.random.default_rng(0)


def case(source: str, i: int, true: int, region: bool) -> Case:
    box = [float(3 * i % 40), 2.0, 4.0 + i % 7, 5.0]
    regions = [Region(r, CLASSES[true], box) for r in range(2)]
    sample = Sample(f"{source}{i // 2}", source, "test", f"g{i // 4}", "CT", 64, 48, regions=regions)
    folder = SimpleNamespace(folder="f")
    return Case(Item(folder, i // 2, sample), true, regions[i % 2] if region else None)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return (x - np.log(np.exp(x).sum(-1, keepdims=True))).astype(np.float32)


def scores(section="region", name="s", n=40, gain=1.5, seed=0, classes=3, ways=(("box", "prompted"), ("box", "crop"))):
    """Answers that are right more often than by chance; those of later ways less."""
    rng = np.random.default_rng([seed, *name.encode()])
    true = rng.integers(classes, size=n)
    source = name if section in ("region", "robustness") else "s"
    cases = [case(source, i, int(t), section in ("region", "robustness")) for i, t in enumerate(true)]
    out = Scores(section, name, CLASSES[:classes], cases, mixed=section == "region")
    for k, way in enumerate(ways):
        right = np.eye(classes)[true] * gain / (1 + k)
        out.values[way] = log_softmax(rng.normal(size=(n, classes)) + right)
    return out


def evaluation(gain: float = 1.5) -> Evaluation:
    image = scores("image", "modality", classes=2, gain=gain, ways=(("image", "unprompted"), ("full_box", "prompted")))
    image.positive = 1
    region = [scores(name="s", gain=gain), scores(name="t", gain=gain)]
    region[0].pairs = {"place": [("bone", "heart")]}
    region[1].values["point", "prompted"] = np.full_like(region[1].values["box", "prompted"], np.nan)
    worse = scores("robustness", "s", gain=gain / 4, ways=(("box jittered 30%", "prompted"),))
    worse.cases = region[0].cases
    labels = MultiLabelScores("labels.finding", CLASSES, image.cases, RNG.integers(-1, 2, (40, 3)).astype(np.int8))
    labels.truth = np.random.default_rng(1).integers(-1, 2, (40, 3)).astype(np.int8)
    rng = np.random.default_rng(2)
    labels.values["image", "unprompted"] = np.log(rng.random((40, 3))).astype(np.float32)
    ranking = Ranking("image to text: s", image.cases, 12, {("image", "unprompted"): rng.integers(-1, 12, 40)})
    rank = ranking.best_rank["image", "unprompted"]
    ranking.found["image", "unprompted"] = {k: (rank < k).astype(np.float32) / 2 for k in (1, 5)}
    probe = scores("probe", "modality: linear", classes=2, ways=(("image", "unprompted"),))
    return Evaluation([image, *region, probe, worse], [labels], [ranking], ["nothing of note"])


def task(**changes) -> Task:
    given = {
        "image": [
            ImageTask("modality", ["{name}"], positive="heart"),
            ImageTask("labels.finding", ["a {name}"], kind="multi_label"),
        ],
        "region": RegionTask(["{name}"]),
        "retrieval": [RetrievalTask("caption")],
        "bootstrap": Bootstrap(50),
        "published": [Published("other", "accuracy", 71.2, "their paper, table 2")],
    } | changes  # fmt: skip
    return Task("synthetic", ["folder"], **given)


CORPUS = Corpus([], {}, [("folder", "a" * 64)])


@pytest.fixture(scope="module")
def result() -> dict:
    return build_result(task(), FACTS, CORPUS, evaluation())


def find(rows, **wanted):
    [row] = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_all_rows_have_the_same_fields_in_the_same_order(result):
    fields = list(Row.__dataclass_fields__)
    for key in ("headline", "rows", "differences", "pairs", "subgroups"):
        assert all(list(row) == fields for row in result[key])
    assert {row["section"] for row in result["rows"]} == {
        "image", "multi_label", "region", "retrieval", "probe", "robustness"
    }  # fmt: skip
    keys = [(r["section"], r["name"], r["prompt"], r["comparator"], r["metric"]) for r in result["rows"]]
    assert len(set(keys)) == len(keys)
    json.dumps(result, allow_nan=False)


def test_values_are_those_of_sklearn(result):
    image = evaluation().of("image")[0]
    values, true = image.values["image", "unprompted"], image.true
    said = values.argmax(1)
    expected = {
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(true, said),
        "accuracy": sklearn_metrics.accuracy_score(true, said),
        "macro_f1": sklearn_metrics.f1_score(true, said, average="macro"),
        "auroc": sklearn_metrics.roc_auc_score(true, values[:, 1]),
        "average_precision": sklearn_metrics.average_precision_score(true, values[:, 1]),
        "sensitivity": sklearn_metrics.recall_score(true, said),
        "specificity": sklearn_metrics.recall_score(true, said, pos_label=0),
        "brier": 2 * sklearn_metrics.brier_score_loss(true, np.exp(values[:, 1])),
    }
    for metric, value in expected.items():
        row = find(result["rows"], section="image", prompt="image", metric=metric)
        assert row["value"] == pytest.approx(value, abs=1e-6), metric
        assert row["interval"][0] <= row["value"] <= row["interval"][1] or metric in ("ece",)
        assert (row["cases"], row["images"], row["groups"], row["candidates"]) == (40, 20, 10, 2)
    region = {row["metric"] for row in result["rows"] if row["section"] == "region"}
    assert region == {"balanced_accuracy", "accuracy", "macro_f1", "ece", "brier"}
    recall = find(result["rows"], section="retrieval", metric="recall@5")
    rank = evaluation().rankings[0].best_rank["image", "unprompted"]
    assert recall["value"] == pytest.approx((rank[rank >= 0] < 5).mean(), abs=1e-6) and recall["candidates"] == 12
    assert find(result["rows"], section="multi_label", metric="mean_average_precision")["classes"] == CLASSES


def test_every_figure_can_be_had_again_from_the_predictions(result, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(prediction_lines(evaluation()))
    classes = {(row["section"], row["name"]): row["classes"] for row in result["rows"]}
    read, made = read_predictions(path, classes), dict(all_answers(evaluation()))
    assert read.keys() == {asked for asked, given in made.items() if len(given)}
    for asked, given in read.items():
        for name, value in vars(given).items():
            if name != "candidates":
                np.testing.assert_equal(value, getattr(made[asked], name), err_msg=f"{asked} {name}")


def test_predictions_may_hold_any_character(tmp_path):
    scored = scores(n=6)
    odd = [name + chr(0x2028) + chr(0x85) + "\r\n" for name in CLASSES]
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(prediction_lines(Evaluation([replace(scored, classes=odd)])))
    [some, _] = read_predictions(path, {("region", "s"): odd}).values()
    assert some.classes == odd and len(some) == 6


def test_the_headline_is_the_mean_of_the_mixed_sources_and_its_differences_are_paired(result):
    head = find(result["headline"], comparator="prompted", metric="balanced_accuracy")
    parts = [
        find(result["rows"], section="region", name=s, comparator="prompted", metric="balanced_accuracy") for s in "st"
    ]
    assert head["name"] == "MEAN" and head["sources"] == ["s", "t"]
    assert head["value"] == pytest.approx(np.mean([p["value"] for p in parts]), abs=1e-6)
    assert head["cases"] == 80 and head["groups"] == 20
    gain = find(result["differences"], name="MEAN", minus="crop")
    each = [find(result["differences"], section="region", name=s, minus="crop")["value"] for s in "st"]
    assert gain["value"] == pytest.approx(np.mean(each), abs=1e-6) and gain["minus_prompt"] == gain["prompt"] == "box"
    width = gain["interval"][1] - gain["interval"][0]
    alone = [
        find(result["headline"], comparator=c, metric="balanced_accuracy")["interval"] for c in ("prompted", "crop")
    ]
    assert 0 < width < sum(high - low for low, high in alone)


def test_what_a_prompt_or_its_disturbance_costs_is_a_difference(result):
    image = find(result["differences"], section="image")
    assert (image["prompt"], image["minus_prompt"], image["minus"]) == ("full_box", "image", "unprompted")
    robust = find(result["differences"], section="robustness")
    assert (robust["prompt"], robust["minus_prompt"], robust["minus"]) == ("box jittered 30%", "box", "prompted")
    parts = [
        find(result["rows"], name="s", prompt=p, comparator="prompted", metric="balanced_accuracy")["value"]
        for p in ("box jittered 30%", "box")
    ]
    assert robust["value"] == pytest.approx(parts[0] - parts[1])


def test_differences_are_taken_of_common_cases_only():
    given = evaluation()
    region = given.of("region")[0]
    region.values["box", "crop"][10:] = np.nan
    result = build_result(task(), FACTS, CORPUS, given)
    gain = find(result["differences"], section="region", name="s", minus="crop")
    assert gain["cases"] == 10 and gain["groups"] == 3
    a, b = common(of_scores(region, "box", "prompted"), of_scores(region, "box", "crop"))
    right = [[(x.predicted == x.true)[x.true == c].mean() for c in np.unique(x.true)] for x in (a, b)]
    assert gain["value"] == pytest.approx(np.mean(right[0]) - np.mean(right[1]))


def test_the_same_input_gives_the_same_bytes_in_any_order_of_cases():
    first = json.dumps(build_result(task(), FACTS, CORPUS, evaluation()))
    assert first == json.dumps(build_result(task(), FACTS, CORPUS, evaluation()))
    shuffled = evaluation()
    for scores in shuffled.of("region"):
        order = np.random.default_rng(3).permutation(len(scores.cases))
        scores.cases = [scores.cases[i] for i in order]
        scores.values = {asked: values[order] for asked, values in scores.values.items()}
    again = build_result(task(), FACTS, CORPUS, shuffled)
    for key in ("headline", "rows", "pairs"):
        assert again[key] == json.loads(first)[key], key


def test_a_task_is_known_by_what_it_asks():
    assert task_sha256(task()) == task_sha256(replace(task(), name="x", data="elsewhere", batch_size=3, published=[]))
    assert task_sha256(task()) != task_sha256(replace(task(), seed=1))
    assert task_sha256(task()) != task_sha256(task(region=RegionTask(["a {name}"])))


def test_what_training_saw_and_what_others_published(result):
    assert result["published"][0]["value"] == 71.2
    assert {row["exposure"] for row in result["rows"]} == {"unknown"}
    seen = replace(FACTS, trained_on=TrainedOn(["train"], ["s"], ["bone"], []))
    rows = build_result(task(), seen, CORPUS, evaluation())
    assert {r["exposure"] for r in rows["rows"] if r["section"] == "region" and r["name"] == "t"} == {"unseen source"}
    assert {r["exposure"] for r in rows["rows"] if r["section"] != "region"} == {"seen source"}
    assert {r["exposure"] for r in rows["headline"]} == {"seen source"}


def test_confusions_and_reliability_belong_to_rows(result):
    for block in result["confusions"]:
        key = {k: block[k] for k in ("section", "name", "prompt", "comparator")}
        row = find(result["rows"], **key, metric="accuracy")
        counts = np.array(block["counts"])
        assert counts.sum() == row["cases"] and np.trace(counts) / counts.sum() == pytest.approx(row["value"], abs=1e-6)
        bins = find(result["calibration"], **key)["bins"]
        assert sum(b["cases"] for b in bins) == row["cases"]
        error = sum(b["cases"] * abs(b["confidence"] - b["accuracy"]) for b in bins if b["cases"]) / row["cases"]
        assert find(result["rows"], **key, metric="ece")["value"] == pytest.approx(error, abs=1e-6)
