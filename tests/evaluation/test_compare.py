"""Planted regressions are caught, and what was not measured alike is said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from medpclip.data.schema import Region, Sample
from medpclip.errors import MedpclipError
from medpclip.evaluation.compare import FILE, parse_and_run
from medpclip.evaluation.corpus import Corpus, Item
from medpclip.evaluation.metrics.metrics import value_of
from medpclip.evaluation.results.answers import Asked
from medpclip.evaluation.results.changes import Change, compare, least_groups, read_results
from medpclip.evaluation.results.measures import metrics_of
from medpclip.evaluation.results.predictions import prediction_lines, read_predictions
from medpclip.evaluation.results.result import ModelFacts, build_result
from medpclip.evaluation.scores import Case, Evaluation, Scores
from medpclip.evaluation.task import Bootstrap, RegionTask, Task
from medpclip.files import dump_json

CLASSES = ["bone", "heart", "lung"]
CASES = 90


class Model:
    """Two layers that tell the classes of noisy features apart, and a text weight for each class."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.centres = rng.normal(size=(len(CLASSES), 12))
        self.layers = [rng.normal(size=(12, 32)) / 3, rng.normal(size=(32, 16)) / 3]
        self.texts = self.embed(self.centres)

    def embed(self, x: np.ndarray) -> np.ndarray:
        x = np.tanh(x @ self.layers[0]) @ self.layers[1]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def scores(self, noise: float) -> np.ndarray:
        rng = np.random.default_rng(6)
        x = self.centres[np.arange(CASES) % len(CLASSES)] + noise * rng.normal(size=(CASES, 12))
        logits = 20 * self.embed(x) @ self.texts.T
        return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def evaluation(model: Model) -> Evaluation:
    found = []
    for source in ("s", "t"):
        cases = []
        for i in range(CASES):
            region = Region(i % 3, CLASSES[i % 3], [4.0, 4.0, 9.0, 9.0])
            sample = Sample(f"{source}{i // 3}", source, "test", f"g{i // 6}", "CT", 64, 64, regions=[region])
            cases.append(Case(Item(None, i // 3, sample), i % 3, region))
        values = {("box", "prompted"): model.scores(0.5), ("box", "unprompted"): model.scores(3.0)}
        found.append(Scores("region", source, CLASSES, cases, values, mixed=True))
    return Evaluation(found)


def write(folder: Path, model: Model, name: str = "organs", manifest: str = "a" * 64, **changes) -> Path:
    task = Task(
        name, "shards", **{"region": RegionTask(["{name}"], prompts=["box"]), "bootstrap": Bootstrap(200)} | changes
    )
    given = evaluation(model)
    facts = ModelFacts("run/step", str(hash(model.layers[0].tobytes())), 3)
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(
        dump_json(build_result(task, facts, Corpus([], {}, [("shards", manifest)]), given))
    )
    (folder / "predictions.jsonl").write_bytes(prediction_lines(given))
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("good") / "a", Model())


def perturbed() -> Model:
    model = Model()
    rng = np.random.default_rng(7)
    model.layers[1] = model.layers[1] + 0.5 * rng.normal(size=model.layers[1].shape)
    return model


def swapped() -> Model:
    model = Model()
    model.texts = model.texts[[1, 0, 2]]
    return model


def test_the_planted_model_is_good(good):
    rows = json.loads((good / "result.json").read_text())["rows"]
    values = [r["value"] for r in rows if r["metric"] == "balanced_accuracy" and r["comparator"] == "prompted"]
    assert min(values) > 0.9


def test_identical_results_differ_nowhere(good, tmp_path, capsys):
    again = write(tmp_path / "b", Model())
    assert (again / "result.json").read_bytes() == (good / "result.json").read_bytes()
    assert parse_and_run([str(good), str(again), "--strict", "--out", str(tmp_path / "c")]) == 0
    assert "0 differ, 0 are worse" in capsys.readouterr().out
    written = json.loads((tmp_path / "c" / FILE).read_text())
    assert len(written["changes"]) == 2 * 2 * 5 + 2 * 3  # sources, comparators, metrics; the headline's
    assert all(c["difference"] == 0 and c["interval"] == [0, 0] and c["unpaired"] == 0 for c in written["changes"])


@pytest.mark.parametrize("fault", [perturbed, swapped])
def test_a_planted_fault_of_the_model_is_caught(good, tmp_path, capsys, fault):
    worse = write(tmp_path / "b", fault())
    assert parse_and_run([str(good), str(worse), "--metric", "balanced_accuracy"]) == 1
    printed = capsys.readouterr().out
    assert "WORSE" in printed and "MEAN" in printed
    assert parse_and_run([str(worse), str(good), "--metric", "balanced_accuracy"]) == 0  # what gets better is no fault
    found = compare(read_results(good), read_results(worse), metrics=("balanced_accuracy",))
    assert [c.gain for c in found.regressions] == sorted(c.gain for c in found.regressions)
    change = next(c for c in found.changes if c.name == "s" and c.comparator == "prompted")
    rows = [json.loads((f / "result.json").read_text())["rows"] for f in (good, worse)]
    a, b = (
        next(
            r["value"]
            for r in side
            if (r["name"], r["comparator"], r["metric"]) == ("s", "prompted", "balanced_accuracy")
        )
        for side in rows
    )
    assert (change.a, change.b) == (a, b) and change.difference == pytest.approx(b - a)
    assert change.regressed and change.interval[1] < 0 and change.cases == CASES
    lost = 100 * (a - b)
    assert parse_and_run([str(good), str(worse), "--metric", "balanced_accuracy", "--tolerance", f"{lost - 0.01}"]) == 1
    assert parse_and_run([str(good), str(worse), "--metric", "balanced_accuracy", "--tolerance", "99"]) == 0


def test_changed_templates_are_said_and_compared_only_anyway(good, tmp_path, capsys):
    other = write(tmp_path / "b", swapped(), region=RegionTask(["a picture of {name}"], prompts=["box"]))
    assert parse_and_run([str(good), str(other)]) == 2
    printed = capsys.readouterr().out
    assert "key 'region.templates' is" in printed and "the templates of region 's' differ" in printed
    assert "WORSE" not in printed and "--anyway" in printed
    assert parse_and_run([str(good), str(other), "--anyway"]) == 1
    assert "WORSE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"manifest": "b" * 64}, "the manifest of shards (bbbbbbbbbbbb) is of B only"),
        ({"split": "val"}, 'the task\'s key \'split\' is "test" in A, "val" in B'),
        ({"seed": 4}, "the task's key 'seed' is 0 in A, 4 in B"),
        ({"calibration_bins": 5}, "key 'calibration_bins' is 15 in A, 5 in B"),
        ({"name": "others"}, "task 'organs' is in A only"),
    ],
)
def test_what_was_not_measured_alike_is_named(good, tmp_path, capsys, changes, words):
    other = write(tmp_path / "b", Model(), **changes)
    assert parse_and_run([str(good), str(other)]) == 2
    assert words in capsys.readouterr().out


def test_what_changes_speed_only_is_no_difference(good, tmp_path):
    other = write(tmp_path / "b", Model(), batch_size=3, prompts_per_pass=2)
    assert parse_and_run([str(good), str(other)]) == 0


def test_a_figure_that_is_lost_counts_as_worse(good, tmp_path, capsys):
    other = write(tmp_path / "b", Model())
    result = json.loads((other / "result.json").read_text())
    result["rows"] = [row for row in result["rows"] if row["comparator"] != "unprompted" or row["name"] != "t"]
    (other / "result.json").write_bytes(dump_json(result))
    assert parse_and_run([str(good), str(other)]) == 1
    assert "in A only: organs, region, t, box, unprompted, balanced_accuracy" in capsys.readouterr().out
    assert parse_and_run([str(good), str(other), "--anyway"]) == parse_and_run([str(other), str(good)]) == 0


def test_suites_are_paired_by_task(good, tmp_path, capsys):
    for side, model in (("a", Model()), ("b", swapped())):
        write(tmp_path / side / "organs", Model())
        write(tmp_path / side / "bones", model, name="bones")
    assert parse_and_run([str(tmp_path / "a"), str(tmp_path / "b"), "--metric", "accuracy"]) == 1
    printed = capsys.readouterr().out
    assert {line.split()[0] for line in printed.splitlines() if line.endswith("WORSE")} == {"bones"}


def test_unusable_input_is_one_line(good, tmp_path):
    with pytest.raises(MedpclipError, match=r"holds no result\.json"):
        parse_and_run([str(tmp_path), str(good)])
    broken = write(tmp_path / "b", Model())
    (broken / "predictions.jsonl").write_text('{"section": "region"}\n')
    with pytest.raises(MedpclipError, match=r"predictions\.jsonl: is not what eval writes"):
        parse_and_run([str(good), str(broken)])
    (broken / "predictions.jsonl").write_bytes(prediction_lines(evaluation(swapped())))
    with pytest.raises(MedpclipError, match=r"doesn't give the result\.json beside it \(region, s, box, prompted"):
        parse_and_run([str(good), str(broken)])
    (broken / "predictions.jsonl").unlink()
    with pytest.raises(MedpclipError, match="can't be read"):
        parse_and_run([str(good), str(broken)])
    (broken / "result.json").write_text('{"format": 1}')
    with pytest.raises(MedpclipError, match="key 'format' is 1, expected 2"):
        parse_and_run([str(good), str(broken)])
    (broken / "result.json").write_text('{"format": 2}')
    with pytest.raises(MedpclipError, match="result.json: key 'task' is missing or no dict; evaluate again"):
        parse_and_run([str(good), str(broken)])
    rest = json.loads((good / "result.json").read_text())
    for change, told in (({"rows": [{}]}, "a row lacks one of the keys"), ({"rows": {}}, "key 'rows' is .* no list")):
        (broken / "result.json").write_text(json.dumps(rest | change))
        with pytest.raises(MedpclipError, match=told):
            parse_and_run([str(good), str(broken)])
    odd = [row | {"metric": "acuracy"} for row in rest["rows"]]
    (broken / "result.json").write_text(json.dumps(rest | {"rows": odd, "headline": []}))
    (broken / "predictions.jsonl").write_bytes((good / "predictions.jsonl").read_bytes())
    with pytest.raises(MedpclipError, match=r"doesn't give the result\.json beside it"):
        parse_and_run([str(good), str(broken), "--anyway"])
    with pytest.raises(MedpclipError, match="--comparator promted: in neither result; there are prompted, unprompted"):
        parse_and_run([str(good), str(good), "--comparator", "promted"])
    with pytest.raises(MedpclipError, match="--metric acuracy: in neither result; there are accuracy, balanced"):
        parse_and_run([str(good), str(good), "--metric", "acuracy"])
    with pytest.raises(SystemExit) as caught:
        parse_and_run([str(good), str(good), "--tolerance", "-1"])
    assert caught.value.code == 2


def test_a_few_answers_that_happen_to_differ_one_way_are_not_worse(good, tmp_path, capsys):
    """No resample of one flipped answer has another sign than it."""
    for flips, verdict in ((1, 0), (5, 0), (6, 1)):
        result, lines = json.loads((good / "result.json").read_text()), []
        flipped = set[str]()
        for line in map(json.loads, (good / "predictions.jsonl").read_text().splitlines()):
            top = line["answers"]["box"]["prompted"]["top"]
            # The first right answer of a group of source s is wrong from now on.
            new = line["name"] == "s" and len(flipped) < flips and line["group"] not in flipped
            if new and top[0][0] == line["true"]:
                top[0], top[1] = [top[1][0], top[0][1]], [top[0][0], top[1][1]]
                flipped.add(line["group"])
            lines.append(line)
        folder = tmp_path / str(flips)
        folder.mkdir()
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        known = {(row["section"], row["name"]): row["classes"] for row in result["rows"]}
        read = read_predictions(folder / "predictions.jsonl", known)
        for row in result["rows"]:
            asked = Asked(row["section"], row["name"], row["prompt"], row["comparator"])
            row["value"] = value_of(metrics_of(read[asked], 15)[row["metric"]], len(read[asked]))
        (folder / "result.json").write_text(json.dumps(result | {"headline": []}))
        command = [str(good), str(folder), "--metric", "accuracy", "--comparator", "prompted", "--anyway"]
        assert parse_and_run(command) == verdict, flips
        printed = capsys.readouterr().out
        assert ("losses don't count, since fewer than 6 groups differ" in printed) is (flips < 6)
        assert parse_and_run([*command, "--strict"]) == 1
    found = compare(read_results(good), read_results(folder), anyway=True, comparators=("prompted",))
    changes = {(c.name, c.metric): c for c in found.changes}
    assert changes["s", "accuracy"].groups == 6 and changes["t", "accuracy"].groups == 0
    assert {c.comparator for c in found.changes} == {"prompted"}


@pytest.mark.parametrize(("level", "least"), [(0.95, 6), (0.9, 5), (0.99, 8), (0.5, 2), (0.75, 3)])
def test_least_groups_are_those_of_the_sign_test(level, least):
    assert least_groups(level) == least
    assert binomtest(0, least).pvalue <= 1 - level + 1e-12 and binomtest(0, least - 1).pvalue > 1 - level


def test_one_group_can_not_be_resampled(tmp_path):
    sides = []
    for name, model in (("a", Model()), ("b", swapped())):
        folder = write(tmp_path / name, model)
        lines = [json.loads(line) | {"group": "g"} for line in (folder / "predictions.jsonl").read_text().splitlines()]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sides.append(read_results(folder))
    changes = compare(*sides, metrics=("accuracy",)).changes
    assert {change.interval for change in changes if change.name != "MEAN"} == {None}
    assert min(change.gain for change in changes) < -0.1 and not any(change.regressed for change in changes)


def test_a_mean_over_one_source_is_not_counted_beside_it(good):
    sides = [read_results(good), read_results(good)]
    for side in sides:
        for row in side["organs"].result["headline"]:
            row["sources"] = ["s"]
    assert "MEAN" not in {change.name for change in compare(*sides).changes}


CHANGE = Change("t", "region", "s", "box", "prompted", "accuracy", 0.5, 0.49, -0.01, [-0.02, -0.001], 9, 0, 6)


@pytest.mark.parametrize(
    ("change", "tolerance", "strict", "worse"),
    [
        ({}, 0.0, False, True),
        ({}, 0.01, False, False),
        ({"interval": [-0.02, 0.0]}, 0.0, False, False),
        ({"interval": [-0.02, 0.0]}, 0.0, True, True),
        ({"interval": None}, 0.0, False, False),
        ({"groups": 5}, 0.0, False, False),
        ({"groups": 5}, 0.0, True, True),
        ({"metric": "ece"}, 0.0, False, False),
        ({"metric": "ece", "difference": 0.01, "interval": [0.001, 0.02]}, 0.0, False, True),
        ({"difference": 0.01, "interval": [0.001, 0.02]}, 0.0, True, False),
        ({"difference": -1e-8, "interval": [-2e-8, -1e-9]}, 0.0, True, False),  # rounding
        ({"section": "robustness", "prompt": "box of wrong region"}, 0.0, True, False),
        ({"section": "robustness", "prompt": "box missing"}, 0.0, False, True),
    ],
)
def test_what_counts_as_worse(change, tolerance, strict, worse):
    assert replace(CHANGE, **change).is_worse(tolerance, strict) is worse
