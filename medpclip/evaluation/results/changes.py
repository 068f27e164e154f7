"""Two results of the same tasks, row by row: what B does better or worse than A, on the same cases."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medpclip.errors import MedpclipError
from medpclip.evaluation.metrics.metrics import value_of
from medpclip.evaluation.results.answers import Answers, Asked, common
from medpclip.evaluation.results.measures import LOWER_IS_BETTER, Measured, mean_of, measure, metrics_of, seen_by_metric
from medpclip.evaluation.results.predictions import read_predictions
from medpclip.evaluation.results.result import FORMAT, asked_by
from medpclip.evaluation.results.rows import MEAN, Row
from medpclip.evaluation.task import WRONG_REGION, Bootstrap

_RESULT, _PREDICTIONS = "result.json", "predictions.jsonl"
_ROW = {field.name for field in fields(Row)}
# What is read of a result, and as what.
_WHOLE = {
    "task": dict, "task_sha256": str, "lexicon_sha256": str, "model": dict, "versions": dict, "data": list,
    "headline": list, "rows": list,
}  # fmt: skip
ROUNDING = 1e-6  # of a figure: by another batch size, or read back from predictions.jsonl


@dataclass
class Measurement:
    """One task's result and the answers it was made of.

    Attributes:
        where: its folder, for messages.
        result: of result.json.
    """

    where: Path
    result: dict[str, Any]
    answers: dict[Asked, Answers] = field(default_factory=dict)

    @cached_property
    def rows(self) -> dict[tuple[Asked, str], dict[str, Any]]:
        """Rows with a value, the headline's too, by question and metric."""
        # A mean over one source would be that source once more.
        rows = [*(row for row in self.result["headline"] if len(row["sources"]) > 1), *self.result["rows"]]
        return {(_asked(row), row["metric"]): row for row in rows if row["value"] is not None}


@dataclass(frozen=True)
class Change:
    """A figure of A and of B. `a`, `b` and the difference are shares, on the cases that both have.

    Attributes:
        task: the task's name.
        difference: b minus a.
        interval: of the difference, from resampling the groups of the cases for both alike; None where there is none.
        cases: that both have.
        unpaired: cases that one of them has only.
        groups: how many have a case that A and B answer differently, as far as the metric can tell.
        regressed: whether it counts as worse.
    """

    task: str
    section: str
    name: str
    prompt: str
    comparator: str
    metric: str
    a: float
    b: float
    difference: float
    interval: list[float] | None
    cases: int
    unpaired: int
    groups: int
    regressed: bool = False

    @property
    def gain(self) -> float:
        """The difference, positive where B is better."""
        return -self.difference if self.metric in LOWER_IS_BETTER else self.difference

    def is_worse(self, tolerance: float, strict: bool, level: float = 0.95) -> bool:
        """Whether B loses more than the tolerance (a share), by an interval that excludes 0 unless `strict`.

        Unless `strict` not by fewer groups than `least_groups`, either: where all that differ differ one way, no resample
        has another sign, be they ever so few. Never by what rounding may be, nor by the prompt of a wrong region: who
        follows prompts better names the class that is asked for less often.
        """
        if self.gain >= -max(tolerance, ROUNDING) or self.prompt.endswith(WRONG_REGION):
            return False
        if strict:
            return True
        excludes = self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)
        return excludes and self.groups >= least_groups(level)


@dataclass
class Comparison:
    """What came of comparing.

    Attributes:
        changes: the worst first.
        unlike: why A and B were not measured alike, a line each.
        missing: figures that A has and B has not.
        new: figures that B has and A has not.
        notes: what may explain a change but doesn't forbid to compare.
    """

    changes: list[Change] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def regressions(self) -> list[Change]:
        """The changes that count as worse."""
        return [change for change in self.changes if change.regressed]


def least_groups(level: float) -> int:
    """Of how many groups it would be a surprise at this level that all differ the same way (two-sided sign test): of 6 at
    0.95."""
    return math.ceil(math.log2(2 / (1 - level)) - 1e-9)


def read_results(folder: Path) -> dict[str, Measurement]:
    """A result folder's task, or those of a suite's folder, by name.

    Raises:
        MedpclipError: there is no result, one of another format, or two tasks of one name.
    """
    paths = [folder / _RESULT] if (folder / _RESULT).is_file() else sorted(folder.glob(f"*/{_RESULT}"))
    if not paths:
        raise MedpclipError(
            f"{folder}: holds no {_RESULT}, nor do its folders; give an --out folder of 'medpclip eval'"
        )
    found: dict[str, Measurement] = {}
    for path in paths:
        result = _read_result(path)
        name = result["task"]["name"]
        if name in found:
            raise MedpclipError(f"{path}: task {name!r} is in {found[name].where} too; compare one of them")
        found[name] = Measurement(path.parent, result)
    return found


def compare(
    a: dict[str, Measurement],
    b: dict[str, Measurement],
    tolerance: float = 0.0,
    level: float = 0.95,
    strict: bool = False,
    anyway: bool = False,
    metrics: tuple[str, ...] = (),
    comparators: tuple[str, ...] = (),
) -> Comparison:
    """Pair all figures that A and B share.

    Args:
        a, b: as `read_results` gives them.
        tolerance: how much may be lost, a share.
        level: of the intervals.
        strict: count losses too whose interval holds 0.
        anyway: compare what was not measured alike; otherwise `changes` is empty where `unlike` is not.
        metrics, comparators: only these; empty for all.

    Raises:
        MedpclipError: a metric or comparator that neither has, predictions that are missing, not whole or not of their
            result; nothing to compare.
    """
    out = Comparison()
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in a or name not in b:
            out.unlike.append(f"task {name!r} is in {'A' if name in a else 'B'} only")
            continue
        out.unlike += [f"task {name!r}: {line}" for line in unlike(a[name].result, b[name].result)]
        out.notes += [f"task {name!r}: {line}" for line in _notes(a[name].result, b[name].result)]
    if out.unlike and not anyway:
        return out
    _check_known("metric", metrics, {metric for side in (*a.values(), *b.values()) for _, metric in side.rows})
    known = {asked.comparator for side in (*a.values(), *b.values()) for asked, _ in side.rows}
    _check_known("comparator", comparators, known)
    for name in (name for name in a if name in b):
        for side in (a[name], b[name]):
            _read_answers(side)
        rows, others = a[name].rows, b[name].rows
        chosen = [
            (asked, metric)
            for asked, metric in {**rows, **others}
            if metric in (metrics or (metric,)) and asked.comparator in (comparators or (asked.comparator,))
        ]
        paired = set[tuple[Asked, str]]()
        both = [key for key in chosen if key in rows and key in others]
        for change in _changes(name, a[name], b[name], level, both):
            out.changes.append(replace(change, regressed=change.is_worse(tolerance, strict, level)))
            paired.add((Asked(change.section, change.name, change.prompt, change.comparator), change.metric))
        alone = [_words(name, *key) for key in both if key not in paired]
        out.notes += [f"{words}: not compared, A and B have no cases or sources in common for it" for words in alone]
        out.missing += [_words(name, *key) for key in chosen if key not in others]
        out.new += [_words(name, *key) for key in chosen if key not in rows]
    if not out.changes:
        what = f" of {', '.join((*metrics, *comparators))}" if metrics or comparators else ""
        raise MedpclipError(f"A and B have no figure{what} in common; check the folders, --metric and --comparator")
    out.changes.sort(key=lambda change: (not change.regressed, change.gain))
    return out


def unlike(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    """In what two results of a task were not measured alike."""
    in_a, in_b = ({row["manifest_sha256"]: row["folder"] for row in result["data"]} for result in (a, b))
    for side, own, other in (("A", in_a, in_b), ("B", in_b, in_a)):
        for digest in sorted(own.keys() - other.keys()):
            yield f"the manifest of {own[digest]} ({digest[:12]}) is of {side} only"
    if a["task_sha256"] != b["task_sha256"]:
        yield from _unlike_keys(asked_by(a["task"]), asked_by(b["task"]))
    if a["lexicon_sha256"] != b["lexicon_sha256"]:
        yield "the lexicon differs, which describes classes and says which are kinds of one another"
    questions = [{(row["section"], row["name"]): row for row in result["rows"]} for result in (a, b)]
    for (section, name), row in questions[0].items():
        other = questions[1].get((section, name), row)
        for key, what in (
            ("classes", "classes"),
            ("candidates", "number of candidates"),
            ("templates_sha256", "templates"),
        ):
            if row[key] != other[key]:
                yield f"the {what} of {section} {name!r} differ"


def _unlike_keys(a: dict[str, Any], b: dict[str, Any], where: str = "") -> Iterator[str]:
    for key in [*a, *(key for key in b if key not in a)]:
        mine, others = a.get(key), b.get(key)
        if isinstance(mine, dict) and isinstance(others, dict):
            yield from _unlike_keys(mine, others, f"{where}{key}.")
        elif mine != others:
            yield f"the task's key '{where}{key}' is {_shown(mine)} in A, {_shown(others)} in B"


def _notes(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    for package, version in a["versions"].items():
        if (other := b["versions"].get(package)) != version:
            yield f"{package} is {version} in A, {other} in B"
    if a.get("code_sha256") != b.get("code_sha256"):
        yield "medpclip's code differs"
    if a["model"]["weights_sha256"] == b["model"]["weights_sha256"]:
        yield "the weights are the same"


def _check_known(what: str, asked: tuple[str, ...], known: set[str]) -> None:
    for name in asked:
        if name not in known:
            raise MedpclipError(f"--{what} {name}: in neither result; there are {', '.join(sorted(known))}")


def _changes(
    task: str, a: Measurement, b: Measurement, level: float, chosen: Iterable[tuple[Asked, str]]
) -> Iterator[Change]:
    given = a.result["task"]
    bootstrap = Bootstrap(given["bootstrap"]["draws"], given["bootstrap"]["seed"], level)
    known = {
        asked: _Both.of(asked, a.answers[asked], b.answers[asked], bootstrap, given["calibration_bins"])
        for asked in a.answers
        if asked in b.answers
    }
    for asked, metric in chosen:
        sources = a.rows[asked, metric]["sources"] if asked.name == MEAN else [asked.name]
        parts = [known[part] for part in (asked._replace(name=source) for source in sources) if part in known]
        if len(parts) < len(sources) or any(metric not in part.a or metric not in part.b for part in parts):
            continue
        mine, others = (
            mean_of([side[metric] for side in sides]) for sides in zip(*((p.a, p.b) for p in parts), strict=True)
        )
        change = others - mine
        cases, unpaired = sum(part.cases for part in parts), sum(part.unpaired for part in parts)
        groups = sum(part.changed_groups(metric) for part in parts)
        alone = sum(len(set(part.answers[0].groups)) for part in parts) == 1  # one group can't be resampled
        if np.isfinite(change.value):
            figures = (mine.rounded, others.rounded, change.rounded, None if alone else change.interval(level))
            yield Change(task, *asked, metric, *figures, cases, unpaired, groups)


@dataclass
class _Both:
    """The metrics of A's and of B's answers to the cases that both have."""

    a: dict[str, Measured]
    b: dict[str, Measured]
    answers: tuple[Answers, Answers]
    unpaired: int

    @classmethod
    def of(cls, asked: Asked, a: Answers, b: Answers, bootstrap: Bootstrap, bins: int) -> _Both:
        mine, others = common(a, b)
        unpaired = len(a) + len(b) - 2 * len(mine)
        left, right = (measure(answers, asked.name, bootstrap, bins) for answers in (mine, others))
        return cls(left, right, (mine, others), unpaired)

    @property
    def cases(self) -> int:
        return len(self.answers[0])

    def changed_groups(self, metric: str) -> int:
        """How many groups have a case that A and B answer differently, as far as the metric can tell."""
        mine, others = (seen_by_metric(answers, metric).reshape(self.cases, -1) for answers in self.answers)
        differ = (mine != others).any(axis=1)
        return len({group for group, one in zip(self.answers[0].groups, differ, strict=True) if one})


def _read_answers(side: Measurement) -> None:
    """Fill in the answers, and make sure that the result was made of them."""
    classes = {(row["section"], row["name"]): row["classes"] for row in side.result["rows"]}
    path, bins = side.where / _PREDICTIONS, side.result["task"]["calibration_bins"]
    side.answers = read_predictions(path, classes)
    for (asked, metric), row in side.rows.items():
        if asked.name == MEAN:
            continue
        given = side.answers.get(asked)
        scored = None if given is None else metrics_of(given, bins).get(metric)
        value = None if given is None or scored is None else value_of(scored, len(given))
        if value is None or not abs(value - row["value"]) <= ROUNDING:  # nor is NaN what was measured
            raise MedpclipError(
                f"{path}: doesn't give the {_RESULT} beside it ({_words('', asked, metric)}); evaluate again"
            )


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MedpclipError(f"{path}: is not a whole result ({error}); evaluate again") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        found = result.get("format") if isinstance(result, dict) else None
        raise MedpclipError(f"{path}: key 'format' is {found!r}, expected {FORMAT}; evaluate again with this version")
    for key, kind in _WHOLE.items():
        if not isinstance(result.get(key), kind):
            raise MedpclipError(f"{path}: key '{key}' is missing or no {kind.__name__}; evaluate again")
    if not isinstance(result["task"].get("name"), str):
        raise MedpclipError(f"{path}: key 'task.name' is missing or no text; evaluate again")
    if not all(isinstance(row, dict) and row.keys() >= _ROW for row in [*result["headline"], *result["rows"]]):
        raise MedpclipError(f"{path}: a row lacks one of the keys {', '.join(sorted(_ROW))}; evaluate again")
    return result


def _asked(row: dict[str, Any]) -> Asked:
    return Asked(row["section"], row["name"], row["prompt"], row["comparator"])


def _words(task: str, asked: Asked, metric: str) -> str:
    return ", ".join(word for word in (task, *asked, metric) if word)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
