"""The configuration: what a file may say, what the messages name, and that writing and reading agree."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medpclip import config
from medpclip.errors import MedpclipError


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-3
    name: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float | None = None


@dataclass
class Source:
    path: Path
    weight: float = 1.0


@dataclass
class Train:
    steps: int = 100
    optimizer: Optimizer = field(default_factory=Optimizer)
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")


@dataclass
class Run:
    out: Path
    train: Train = field(default_factory=Train)
    sources: list[Source] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    warmup: Optimizer | None = None
    notes: str | None = None
    shape: int | list[int] = 3
    either: Optimizer | Source | None = None


def read(text: str, tmp_path: Path, *overrides: str) -> Run:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(Run, path, overrides)


def complaint(text: str, tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(MedpclipError) as caught:
        read(text, tmp_path, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(tmp_path) + "/", "")


def test_a_file_becomes_the_dataclasses(tmp_path: Path) -> None:
    run = read(
        """
        out: runs/a
        train: {steps: 5, optimizer: {lr: 1e-4, betas: [0.8, 1]}}
        sources: [{path: a}, {path: b, weight: 2}]
        weights: {x: 1}
        """,
        tmp_path,
    )
    assert run == Run(
        out=Path("runs/a"),
        train=Train(steps=5, optimizer=Optimizer(lr=1e-4, betas=(0.8, 1.0))),
        sources=[Source(Path("a")), Source(Path("b"), 2.0)],
        weights={"x": 1.0},
    )
    assert isinstance(run.train.optimizer, Optimizer) and isinstance(run.sources[1].weight, float)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out: a\ntrain: {optimzer: {}}", "run.yaml: key 'train.optimzer' is unknown; did you mean 'train.optimizer'?"),
        ("out: a\ntrain: {steps: abc}", "run.yaml: key 'train.steps' is 'abc', expected an integer"),
        ("out: a\ntrain: {steps: '5'}", "run.yaml: key 'train.steps' is '5', expected an integer"),
        ("out: a\ntrain: {steps: true}", "run.yaml: key 'train.steps' is true, expected an integer"),
        ("out: a\ntrain: {frozen: 1}", "run.yaml: key 'train.frozen' is 1, expected true or false"),
        ("out: a\nnotes: 3", "run.yaml: key 'notes' is 3, expected text"),
        ("out: a\nnotes: [1]", "run.yaml: key 'notes' is [1], expected text"),
        ("out: a\ntrain: 3", "run.yaml: key 'train' is 3, expected a mapping"),
        ("out: a\ntrain: null", "run.yaml: key 'train' is null, expected a mapping"),
        ("out: a\nsources: {path: a}", 'run.yaml: key \'sources\' is {"path": "a"}, expected a list'),
        ("out: a\nsources: [{path: a}, {weight: 1}]", "run.yaml: key 'sources.1.path' is missing; add it"),
        (
            "out: a\nsources: [{path: a, wieght: 1}]",
            "key 'sources.0.wieght' is unknown; did you mean 'sources.0.weight'?",
        ),
        ("out: a\nweights: {x: y}", "run.yaml: key 'weights.x' is 'y', expected a number"),
        ("out: a\nshape: x", "run.yaml: key 'shape' is 'x', expected an integer or a list"),
        ("out: a\nwarmup: {name: adam}", "key 'warmup.name' is 'adam', expected one of 'adamw', 'sgd'"),
        ("out: a\nwarmup: {lrr: 1}", "key 'warmup.lrr' is unknown; did you mean 'warmup.lr'?"),
        ("out: a\neither: {lrr: 1}", "key 'either.lrr' is unknown; did you mean 'either.lr'?"),
        ("out: a\nbetas: [1, 2]", "key 'betas' is unknown; did you mean 'train.optimizer.betas'?"),
        ("out: a\nzzzz: 1", "key 'zzzz' is unknown; known here: out, train, sources, weights, warmup, notes, shape"),
        ("out: a\ntrain: {steps: 0}", "run.yaml: key 'train': steps must be at least 1"),
        ("otu: a", "run.yaml: key 'otu' is unknown; did you mean 'out'? (and 1 more)"),
        ("notes: a", "run.yaml: key 'out' is missing; add it"),
        ("out: a\nout: b", "run.yaml: line 2: key 'out' is stated twice; keep one"),
        ("out: a\ntrain: {steps: 1, steps: 2}", "run.yaml: line 2: key 'steps' is stated twice; keep one"),
        ("out: a\nweights: {no: 1}", "run.yaml: key 'weights.False' is False, which isn't text; quote it"),
        ("out: a\nnotes: 2020-01-01", "run.yaml: key 'notes' is a date; write text (quoted), a number or a list"),
        ("out: a\nnotes: 2020-99-99", "quote it"),
        ("out: a\nnotes: !!python/name:os.system", "run.yaml: line 2: could not determine a constructor"),
        ("out: a\nnotes: [1", "run.yaml: line 2: expected ',' or ']'"),
        ("out: &x [*x]", "run.yaml: an alias contains itself"),
        ("out: \x07", "run.yaml: is no YAML"),
        ("", "run.yaml: is empty"),
        ("- a", 'run.yaml: holds ["a"]; expected a mapping'),
        ("a", "run.yaml: holds 'a'; expected a mapping"),
    ],
)
def test_faults_are_one_line_with_file_key_and_remedy(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in complaint(text, tmp_path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match="none.yaml: no such file"):
        config.load(Run, tmp_path / "none.yaml")
    with pytest.raises(MedpclipError, match="can't be read"):
        config.load(Run, tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"out: \xe9")
    with pytest.raises(MedpclipError, match="not UTF-8"):
        config.load(Run, tmp_path / "latin.yaml")


def test_merge_keys_may_be_overridden_through_several_levels(tmp_path: Path) -> None:
    text = "out: a\nweights: &a {x: 1}\ntrain: {steps: 2}\nwarmup: &b {lr: 1}\neither: &c {<<: *b, lr: 2}\n"
    assert read(text, tmp_path).either == Optimizer(lr=2.0)
    (tmp_path / "m.yaml").write_text("p: &p {x: 1}\nq: {<<: &q {<<: *p, x: 2}, x: 3}\nr: *q\n")
    assert config.read_yaml(tmp_path / "m.yaml") == {"p": {"x": 1}, "q": {"x": 3}, "r": {"x": 2}}


@pytest.mark.parametrize(
    ("override", "get", "expected"),
    [
        ("train.optimizer.lr=1e-4", lambda run: run.train.optimizer.lr, 1e-4),
        ("train.optimizer.betas=[0.5, 0.6]", lambda run: run.train.optimizer.betas, (0.5, 0.6)),
        ("train.steps=7", lambda run: run.train.steps, 7),
        ("train.frozen=true", lambda run: run.train.frozen, True),
        ("notes=null", lambda run: run.notes, None),
        ("notes=", lambda run: run.notes, None),
        ("notes=a=b", lambda run: run.notes, "a=b"),
        ("notes='1e-4'", lambda run: run.notes, "1e-4"),
        ("warmup.lr=2", lambda run: run.warmup, Optimizer(lr=2.0)),
        ("sources.0.weight=3", lambda run: run.sources, [Source(Path("s"), 3.0)]),
        ("weights.new=3", lambda run: run.weights, {"new": 3.0}),
        ("sources=[{path: x}]", lambda run: run.sources, [Source(Path("x"))]),
    ],
)
def test_overrides(override: str, get: Any, expected: Any, tmp_path: Path) -> None:
    run = read("out: a\nnotes: n\nsources: [{path: s}]\ntrain: {frozen: false}", tmp_path, override)
    assert get(run) == expected


def test_later_overrides_win(tmp_path: Path) -> None:
    assert read("out: a", tmp_path, "train.steps=3", "train.steps=4").train.steps == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.optimzer.lr=1", "override 'train.optimzer.lr=1': key 'train.optimzer' is unknown; did you mean"),
        ("train.steps=abc", "override 'train.steps=abc': key 'train.steps' is 'abc', expected an integer"),
        ("train={steps: abc}", "override 'train={steps: abc}': key 'train.steps' is 'abc', expected an integer"),
        ("train.steps.x=1", "override 'train.steps.x=1': key 'train.steps' is 5, which has no keys inside"),
        ("sources.1.weight=3", "override 'sources.1.weight=3': key 'sources' is a list of 1; '1' is no position in it"),
        ("sources.a=3", "'a' is no position in it"),
        ("notes", "override 'notes': has another form than key=value"),
        ("=3", "override '=3': has another form than key=value"),
        ("train..steps=3", "has another form than key=value"),
        ("notes=[1", "override 'notes=[1': line 1: expected"),
    ],
)
def test_a_faulty_override_is_named(override: str, expected: str, tmp_path: Path) -> None:
    assert expected in complaint("out: a\ntrain: {steps: 5}\nsources: [{path: s}]", tmp_path, override)


def test_a_fault_in_the_file_is_not_blamed_on_an_override(tmp_path: Path) -> None:
    assert complaint("out: a\nnotes: 3", tmp_path, "train.steps=3").startswith("run.yaml: key 'notes'")


def test_from_mapping_names_its_source() -> None:
    assert config.from_mapping(Source, {"path": "a"}, "task") == Source(Path("a"))
    with pytest.raises(MedpclipError, match="^task: key 'pat' is unknown; did you mean 'path'"):
        config.from_mapping(Source, {"pat": "a"}, "task")
    with pytest.raises(MedpclipError, match="^task: key 'path' is a PosixPath"):
        config.from_mapping(Source, {"path": Path("a")}, "task")


def test_dumped_infinity_and_number_like_text_survive(tmp_path: Path) -> None:
    run = Run(out=Path("1e5"), notes="1e-4", weights={"null": math.inf, "1e3": -math.inf, "<<": 0.0, "=": 1.0})
    assert read(config.dump_yaml(run), tmp_path) == run


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.floats(allow_nan=False)
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12).map(Path)
OPTIMIZERS = st.builds(
    Optimizer, NUMBERS, st.sampled_from(["adamw", "sgd"]), st.tuples(NUMBERS, NUMBERS), st.none() | NUMBERS
)
RUNS = st.builds(
    Run,
    out=PATHS,
    train=st.builds(Train, st.integers(min_value=1), OPTIMIZERS, st.booleans()),
    sources=st.lists(st.builds(Source, PATHS, NUMBERS), max_size=3),
    weights=st.dictionaries(TEXT, NUMBERS, max_size=3),
    warmup=st.none() | OPTIMIZERS,
    notes=st.none() | TEXT | st.sampled_from(["1e-4", "1_0e3", "no", "~", "0x1f", "1:30", "2020-01-01", "- a", "#"]),
    shape=st.integers() | st.lists(st.integers(), max_size=3),
    either=st.none() | OPTIMIZERS | st.builds(Source, PATHS, NUMBERS),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=RUNS)
def test_what_is_written_reads_back_equal(run: Run, tmp_path: Path) -> None:
    assert read(config.dump_yaml(run), tmp_path) == run
    assert config.from_mapping(Run, config.to_mapping(run), "mapping") == run


def test_the_module_needs_no_torch() -> None:
    code = "import medpclip.config, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
