"""The evidence's runner: plan, figures against brute force, tables, jobs that are not done twice."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from medpclip.config import load
from medpclip.data.lexicon.lexicon import Lexicon
from medpclip.errors import MedpclipError
from medpclip.evaluation.results.answers import Asked, CaseId, Choices
from medpclip.evaluation.task import load_task
from medpclip.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "evidence"
MODULES = (
    *(
        "shards",
        "plan",
        "costs",
        "jobs",
        "figures",
        "trained",
        "notation",
        "region_tables",
        "tables",
        "picture",
        "reading",
        "run",
    ),
)


@pytest.fixture(scope="module")
def evidence() -> Iterator[dict[str, ModuleType]]:
    """The scripts by their names; they import one another as siblings."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


def answers(source: str, classes: list[str], true: list[int], predicted: list[int], groups: list[str]) -> Choices:
    n = len(true)
    ids = [CaseId(source, f"{source}-{i}", i, 0) for i in range(n)]
    ones = np.ones(n, np.float32)
    return Choices(
        ids, [(source, g) for g in groups], classes, np.array(true), np.array(predicted), ones, np.zeros(n, np.float32)
    )


def random_run(rng: np.random.Generator, sources: dict[str, int], right: float) -> dict[Asked, Any]:
    """Answers that are right with a chance, of groups that are drawn from 12 names."""
    out = {}
    for source, classes in sources.items():
        true = rng.integers(classes, size=60)
        wrong = (true + rng.integers(1, classes, size=60)) % classes
        predicted = np.where(rng.random(60) < right, true, wrong)
        groups = [f"g{i}" for i in rng.integers(12, size=60)]
        names = [f"class {c}" for c in range(classes)]
        for prompt in ("box", "point", "mask"):
            asked = Asked("region", source, prompt, "prompted")
            out[asked] = answers(source, names, true.tolist(), predicted.tolist(), groups)
    return out


def test_runs_are_configurations_that_load(evidence: dict[str, ModuleType]) -> None:
    plan, jobs = evidence["plan"], evidence["jobs"]
    assert set(plan.SOURCES) == {Path(p).name for p in yaml.safe_load(jobs.LAUNCH.read_text())["data"]["shards"]}
    for table in plan.TABLES.values():
        assert (ROOT / table.task).is_file()
        for run in table.runs:
            overrides = [text for text in run.overrides if "anchor" not in text]  # which needs weights to hold on to
            load(TrainConfig, jobs.LAUNCH, overrides)
            load_task(ROOT / table.task, run.asked)


def test_names_stand_for_one_run_each(evidence: dict[str, ModuleType]) -> None:
    """Tables share runs by their names."""
    plan = evidence["plan"]
    of_name: dict[str, Any] = {}
    for table in plan.TABLES.values():
        assert len({run.name for run in table.runs}) == len(table.runs)
        for run in table.runs:
            assert of_name.setdefault(run.name, run) == run
            assert run.after is None or run.after in [r.name for r in table.runs[: table.runs.index(run)]]
            assert set(run.without) <= set(plan.SOURCES)
        assert table.against in ("", "best comparator", *(run.name for run in table.runs))


def test_terms_and_sources_of_the_plan_are_known(evidence: dict[str, ModuleType]) -> None:
    plan = evidence["plan"]
    assert set(plan.TERMS) <= Lexicon.load().terms.keys()
    assert set(plan.REGION_SOURCES) <= set(plan.SOURCES)
    assert {Path(f).name for f in load_task(ROOT / plan.TASK).folders} == set(plan.SOURCES)
    assert {Path(f).name for f in load_task(ROOT / plan.ROBUSTNESS).folders} == set(plan.MIXED)


def test_models_of_the_main_table_are_of_one_size(evidence: dict[str, ModuleType]) -> None:
    plan, costs = evidence["plan"], evidence["costs"]
    counted = costs.count_costs(plan.TABLES["main"].runs)
    sizes = [cost.parameters for cost in counted.values()]
    assert max(sizes) <= 1.03 * min(sizes)
    assert counted["crop"].flops > 2 * counted["region_tokens"].flops  # a pass for each region


def test_equal_compute(evidence: dict[str, ModuleType], tmp_path: Path) -> None:
    plan, costs, jobs = evidence["plan"], evidence["costs"], evidence["jobs"]
    runs = (plan.TOKENS, plan.GLIMPSE, plan.CONDITIONED)
    counted = {run.name: costs.Cost(1, 1, flops) for run, flops in zip(runs, (1.0e9, 2.0e9, 4.0e9), strict=True)}
    table = plan.Table("t", "t", runs, equal_compute=True)
    made = jobs.make_jobs(table, tmp_path, [0, 1], 100, counted, "glimpse_4")
    assert [job.steps for job in made] == [200, 100, 50] * 2
    assert len({job.folder for job in made}) == 6
    near = {plan.TOKENS.name: 1.0e9, plan.GLIMPSE.name: 1.0e9 * 0.99, plan.CONDITIONED.name: 1.0e9 * 0.9}
    counted = {name: costs.Cost(1, 1, flops) for name, flops in near.items()}
    made = jobs.make_jobs(table, tmp_path, [0], 100, counted, plan.TOKENS.name)
    assert [job.steps for job in made] == [100, 100, 111]  # what is hardly cheaper is a run of the other table
    assert [job.run.asked for job in made] == [(), (), plan.REGIONS_ALONE]


def test_a_figure_is_what_brute_force_says(evidence: dict[str, ModuleType]) -> None:
    """Two seeds that share groups: each resample of the union of groups, by a loop over cases."""
    figures = evidence["figures"]
    from medpclip.evaluation.metrics.bootstrap import _weights, seed_of

    rng = np.random.default_rng(3)
    run = {seed: random_run(rng, {"a": 3}, 0.6) for seed in (0, 1)}
    asked = Asked("region", "a", "box", "prompted")
    found = figures.figure(run, asked, figures.named("balanced_accuracy"))
    union = sorted({g for seed in run.values() for g in seed[asked].groups})
    weights = next(_weights(figures.DRAWS, len(union), len(union), seed_of(figures.SEED, "a")))[:20]
    for draw, weight in enumerate(weights):
        means = []
        for seed in run.values():
            given = seed[asked]
            recalls = []
            for c in range(3):
                own = [weight[union.index(g)] for g, t in zip(given.groups, given.true, strict=True) if t == c]
                hits = [
                    weight[union.index(g)]
                    for g, t, p in zip(given.groups, given.true, given.predicted, strict=True)
                    if t == c and p == c
                ]
                if sum(own):
                    recalls.append(sum(hits) / sum(own))
            means.append(np.mean(recalls))
        assert found.draws[draw] == pytest.approx(np.mean(means), abs=1e-12)
    plain = [np.mean([np.mean(s[asked].predicted[s[asked].true == c] == c) for c in range(3)]) for s in run.values()]
    assert found.value == pytest.approx(np.mean(plain))
    assert [found.by_seed[s] for s in (0, 1)] == pytest.approx(plain)


def test_differences_are_paired(evidence: dict[str, ModuleType]) -> None:
    figures = evidence["figures"]
    rng = np.random.default_rng(0)
    run = {0: random_run(rng, {"a": 2, "b": 4}, 0.7)}
    one = figures.over_sources(run, ["a", "b"], "box", figures.named("balanced_accuracy"))
    same = one - figures.over_sources(run, ["b", "a"], "mask", figures.named("balanced_accuracy"))
    assert same.interval == pytest.approx([0, 0])
    assert same.value == pytest.approx(0)
    better = figures.over_sources(
        {0: random_run(rng, {"a": 2, "b": 4}, 1.0)}, ["a", "b"], "box", figures.named("accuracy")
    )
    assert better.value == 1
    assert (better - one).interval[0] > 0


def test_clicks_are_compared_on_regions_that_have_both(evidence: dict[str, ModuleType]) -> None:
    figures = evidence["figures"]
    point, mask = (figures.region("a", prompt) for prompt in ("point", "mask"))
    clicked = answers("a", ["x", "y"], [0, 0, 1, 1], [0, 0, 1, 0], ["g", "h", "i", "j"])
    masked = clicked.take([1, 2, 3])  # the first region has no mask
    masked.predicted = np.array([1, 1, 1])
    given = {0: {point: clicked, mask: masked}, 1: {point: clicked}}
    apart = figures.paired(given, [(point, mask), (mask, figures.region("b", "mask"))], figures.ACCURACY)
    assert apart.value == pytest.approx((1 + 0.5) / 2 - (0 + 1) / 2) and list(apart.by_seed) == [0]
    assert figures.paired({1: given[1]}, [(point, mask)], figures.ACCURACY) is None


def test_recall_of_some_terms_keeps_all_candidates(evidence: dict[str, ModuleType]) -> None:
    figures = evidence["figures"]
    given = answers("a", ["x", "y", "z"], [0, 0, 1, 1, 2], [0, 2, 1, 0, 2], ["1", "2", "3", "4", "5"])
    asked = Asked("region", "a", "box", "prompted")
    found = figures.figure({0: {asked: given}}, asked, figures.recall_of(["x", "z"]))
    assert found.value == pytest.approx((0.5 + 1) / 2)
    assert figures.figure({0: {asked: given}}, asked, figures.recall_of(["w"])) is None


def test_classes_that_could_not_be_learned_are_not_asked_for(evidence: dict[str, ModuleType]) -> None:
    reading, figures = evidence["reading"], evidence["figures"]
    given = answers("a", ["x", "y", "z"], [0, 1, 2, 0], [0, 2, 2, 1], ["g", "h", "i", "j"])
    kept = reading.of_classes(given, figures.region("a", "box"), {"a": ["x", "z"]})
    assert kept.true.tolist() == [0, 2, 0] and kept.classes == ["x", "y", "z"] and len(kept.ids) == 3
    image = Asked("image", "modality", "image", "unprompted")
    assert reading.of_classes(given, image, {}) is given


def test_the_best_comparator_is_chosen_by_validation(evidence: dict[str, ModuleType]) -> None:
    figures = evidence["figures"]
    rng = np.random.default_rng(1)
    validation = {name: {0: random_run(rng, {"a": 3}, right)} for name, right in (("crop", 0.5), ("blurred", 0.95))}
    assert figures.best(validation, ["crop", "blurred", "not there"], ["a"], "box") == "blurred"
    assert figures.best(validation, ["crop"], ["a"], "scribble") is None


def test_tables_are_made_of_any_layout(evidence: dict[str, ModuleType]) -> None:
    plan, tables, costs, trained = (evidence[name] for name in ("plan", "tables", "costs", "trained"))
    rng = np.random.default_rng(2)
    for table in plan.TABLES.values():
        runs = {}
        for run in table.runs:
            by_seed = {seed: random_run(rng, dict.fromkeys(plan.MIXED, 3), 0.8) for seed in (0, 1)}
            for given in by_seed.values():
                for section, name, prompt, comparator in (
                    ("image", "modality", "image", "unprompted"),
                    ("image", "modality", "full_box", "prompted"),
                    ("robustness", "btcv_ct", "box jittered 10%", "prompted"),
                ):
                    some = given[Asked("region", "btcv_ct", "box", "prompted")]
                    given[Asked(section, name, prompt, comparator)] = some
            hashes, code = {0: "a" * 64, 1: "b" * 64}, {0: "e" * 64, 1: "f" * 64}
            measured_by = dict.fromkeys((0, 1), frozenset({"1" * 64, "2" * 64}))
            runs[run.name] = trained.Trained(9, costs.Cost(10, 5, 1e9), hashes, code, measured_by, by_seed, by_seed)
        text = tables.render(table, runs, tables.Provenance("the command", [0, 1], {0: "c" * 64, 1: "d" * 64}))
        assert "the command" in text and "aaaaaaaaaaaa" in text and "nan" not in text
        assert "| measured by code 222222222222 | all | all |" in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert "| code eeeeeeeeeeee | all | – |" in rows
        assert any(plan.way_of(run) in row for run in table.runs for row in rows)
    alike = {run.name: runs["region_tokens"] for run in plan.TABLES["main"].runs}
    provenance = tables.Provenance("c", [0, 1], {0: "c" * 64, 1: "d" * 64})
    main = tables.render(plan.TABLES["main"], alike, provenance)
    assert re.search(r"chosen on\s+validation", main)
    assert "+0.0 [+0.0, +0.0], seeds +0.0 to +0.0" in main  # a twin of the best differs from it by nothing


def test_a_best_comparator_is_compared_by_the_prompts_that_another_is_best_by(
    evidence: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, tables, costs, trained = (evidence[name] for name in ("plan", "tables", "costs", "trained"))
    table, runs = plan.TABLES["main"], {}
    for run in table.runs:
        by_seed = {0: random_run(np.random.default_rng(0), dict.fromkeys(plan.MIXED, 3), 0.8)}
        hashes, code, measured_by = {0: "a" * 64}, {0: "e" * 64}, {0: frozenset("f")}
        runs[run.name] = trained.Trained(9, costs.Cost(10, 5, 1e9), hashes, code, measured_by, by_seed, by_seed)
    best = {"box": "crop", "point": "crop", "mask": "blurred"}
    monkeypatch.setattr(evidence["region_tables"], "_against", lambda table, runs, prompt: best[prompt])
    text = tables.render(table, runs, tables.Provenance("c", [0], {0: "c" * 64}))
    rows = text.split("Difference in points")[1].split("By one click")[0].splitlines()
    same = "+0.0 [+0.0, +0.0]"
    assert f"| crop | – | – | {same} |" in rows and f"| blurred | {same} | {same} | – |" in rows
    best["mask"] = "crop"
    text = tables.render(table, runs, tables.Provenance("c", [0], {0: "c" * 64}))
    assert "| crop |" not in text.split("Difference in points")[1].split("By one click")[0]


def test_a_picture_shows_every_way_and_is_the_same_each_time(evidence: dict[str, ModuleType], tmp_path: Path) -> None:
    plan, costs, trained, picture = (evidence[name] for name in ("plan", "costs", "trained", "picture"))
    runs = {}
    for i, run in enumerate(plan.TABLES["main"].runs):
        by_seed = {0: random_run(np.random.default_rng(i), dict.fromkeys(plan.MIXED, 3), 0.4 + 0.04 * i)}
        runs[run.name] = trained.Trained(9, costs.Cost(1, 1, 1.0), {0: "a"}, {0: "b"}, {0: frozenset("c")}, {}, by_seed)
    for name in ("a.svg", "b.svg"):
        picture.draw_ways(runs, tmp_path / "images" / name)
    drawn = (tmp_path / "images" / "a.svg").read_text()
    assert drawn == (tmp_path / "images" / "b.svg").read_text()
    heights = {name: float(re.search(rf'y="([\d.]+)"[^>]*>{name}<', drawn)[1]) for name in runs}  # type: ignore[index]
    assert heights["roi_align"] < heights["region_tokens"]  # the better one is on top


def test_markers(evidence: dict[str, ModuleType], tmp_path: Path) -> None:
    tables, page = evidence["tables"], tmp_path / "results.md"
    page.write_text("# Results\n\n<!-- table: main -->\nold\n<!-- end: main -->\nrest\n")
    tables.write_between_markers(page, "main", "new")
    assert page.read_text() == "# Results\n\n<!-- table: main -->\nnew\n<!-- end: main -->\nrest\n"
    with pytest.raises(MedpclipError, match="lacks the line"):
        tables.write_between_markers(page, "compute", "new")


def test_the_page_has_a_place_for_each_table(evidence: dict[str, ModuleType]) -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name in evidence["plan"].TABLES:
        assert text.count(f"<!-- table: {name} -->") == text.count(f"<!-- end: {name} -->") == 1


@pytest.fixture
def trained(
    evidence: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[list[str]]]:
    """A jobs module whose medpclip writes what training and evaluation leave behind; yields the commands."""
    jobs, calls = evidence["jobs"], []

    def medpclip(words: list[str], log: Path) -> None:
        calls.append(words)
        if words[0] == "train":
            out = Path(next(w for w in words if w.startswith("out=")).removeprefix("out=").strip('"'))
            checkpoint = out / "checkpoints" / "step-00000009"
            (checkpoint / "engine").mkdir(parents=True)
            (checkpoint / "meta.json").write_text('{"config": {"model": {}}, "code": "0"}')
            (checkpoint / "model.safetensors").write_text("weights")
            line = '{"kind": "train", "images_per_second": 64, "regions_per_second": 128, "texts": 5}\n'
            (out / "log.jsonl").write_text(line)

    monkeypatch.setattr(jobs, "_medpclip", medpclip)
    monkeypatch.setattr(jobs, "manifest_hashes", lambda out, seed: {"a": "b"})
    yield calls


def test_what_is_done_is_not_done_again(
    evidence: dict[str, ModuleType], tmp_path: Path, trained: list[list[str]]
) -> None:
    jobs, plan, costs = evidence["jobs"], evidence["plan"], evidence["costs"]
    table = plan.Table("t", "t", (plan.IMAGE_ONLY, plan.Run("next", after="image_only")), layout="images")
    counted = {run.name: costs.Cost(1, 1, 1e9) for run in table.runs}
    made = jobs.make_jobs(table, tmp_path, [0], 9, counted)
    for _ in range(2):
        jobs.Runner(tmp_path, "cpu", counted).do(made, ROOT / plan.TASK, ("val", "test"), 2)
    assert [words[0] for words in trained].count("train") == 2
    assert [words[0] for words in trained].count("eval") == 4  # val and test of either
    second = next(words for words in trained if "model.pretrained=" in " ".join(words))
    assert f'model.pretrained="{made[0].folder / "run"}"' in second
    facts = jobs._read(made[0].folder / jobs.TRAINED)
    assert (facts["seconds_per_step"], facts["regions_per_step"]) == (0.5, 64)
    assert not list(tmp_path.rglob("engine"))


def test_a_folder_of_another_run_is_refused(
    evidence: dict[str, ModuleType], tmp_path: Path, trained: list[list[str]]
) -> None:
    jobs, plan = evidence["jobs"], evidence["plan"]
    job = jobs.Job(plan.Run("a", ("optimizer.lr=1e-4",)), 0, 9, tmp_path / "a")
    jobs.train(job, tmp_path, "cpu")
    other = jobs.Job(plan.Run("a", ("optimizer.lr=2e-4",)), 0, 9, tmp_path / "a")
    with pytest.raises(MedpclipError, match="holds a run of another configuration"):
        jobs.train(other, tmp_path, "cpu")


def test_a_default_that_changed_is_another_configuration(
    evidence: dict[str, ModuleType], tmp_path: Path, trained: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the launch file doesn't name is part of a run too; where it lies and what it runs on is not."""
    jobs, plan = evidence["jobs"], evidence["plan"]
    job = jobs.Job(plan.Run("a"), 0, 9, tmp_path / "a")
    assert jobs.train(job, tmp_path, "cpu")
    assert not jobs.train(job, tmp_path, "cuda")

    def changed(*args: Any) -> TrainConfig:
        config = load(*args)
        config.optimizer.fusion_lr_scale += 1
        return config

    monkeypatch.setattr(jobs, "load", changed)
    with pytest.raises(MedpclipError, match="holds a run of another configuration"):
        jobs.train(job, tmp_path, "cpu")


def test_a_run_asked_otherwise_is_measured_again(
    evidence: dict[str, ModuleType], tmp_path: Path, trained: list[list[str]]
) -> None:
    jobs, plan = evidence["jobs"], evidence["plan"]
    job = jobs.Job(plan.Run("a"), 0, 9, tmp_path / "a")
    jobs.train(job, tmp_path, "cpu")
    for times in (True, False):
        assert jobs.measure(job, ROOT / plan.TASK, "val", tmp_path, "cpu") is times
    other = jobs.Job(plan.Run("a", asked=("region.templates=['{name}']",)), 0, 9, tmp_path / "a")
    assert jobs.measure(other, ROOT / plan.TASK, "val", tmp_path, "cpu")


def test_a_schedule_is_stretched_to_the_steps(evidence: dict[str, ModuleType], tmp_path: Path) -> None:
    """At equal compute, costly ways have few steps, of which warming up takes the same share."""
    jobs, plan = evidence["jobs"], evidence["plan"]
    whole = load(TrainConfig, jobs.LAUNCH)
    for steps in (whole.steps, whole.steps // 3, 2):
        overrides = jobs.train_overrides(jobs.Job(plan.Run("a"), 0, steps, tmp_path / "a"), tmp_path, "cpu")
        warm_up = load(TrainConfig, jobs.LAUNCH, overrides).optimizer.warmup_steps
        assert warm_up == max(1, round(steps / whole.steps * whole.optimizer.warmup_steps))


def test_sources_left_out_have_no_part_in_training(evidence: dict[str, ModuleType], tmp_path: Path) -> None:
    jobs, plan = evidence["jobs"], evidence["plan"]
    run = next(run for run in plan.TABLES["unseen_sources"].runs if "chula_rbc12" in run.without)
    overrides = jobs.train_overrides(jobs.Job(run, 0, 9, tmp_path / "a"), tmp_path, "cpu")
    config = load(TrainConfig, jobs.LAUNCH, overrides)
    assert not set(run.without) & ({path.name for path in config.data.shards} | config.data.weights.keys())
    assert len(config.data.shards) == len(plan.SOURCES) - len(run.without)


def test_some_rows_alone(evidence: dict[str, ModuleType]) -> None:
    run = evidence["run"]
    assert [r.name for r in run._table("anchoring", ["then_regions"]).runs] == ["image_only", "then_regions"]
    chosen = run._table("unseen_sources", ["placed_crop"]).runs
    assert {evidence["plan"].way_of(r) for r in chosen} == {"placed_crop"}
    assert len(chosen) == 1 + len(evidence["plan"].UNSEEN)


def test_bad_arguments_are_one_line(
    evidence: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = evidence["run"]
    assert run.main(["main", "--only", "nothing", "--out", str(tmp_path)]) == 2
    assert "--only nothing: no run of table main" in capsys.readouterr().err
    assert run.main(["main", "--only", "region_tokens", "--seeds", "0", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
