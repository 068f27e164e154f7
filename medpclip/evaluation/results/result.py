"""From scores to the figures that are published, with all that is needed to make them again."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medpclip.config import to_mapping
from medpclip.evaluation.code import EMBEDDING_PACKAGES, code_sha256, installed_version
from medpclip.evaluation.corpus import Corpus
from medpclip.evaluation.metrics.calibration import reliability
from medpclip.evaluation.metrics.metrics import confusion_matrix
from medpclip.evaluation.results.answers import Asked, Choices, all_answers
from medpclip.evaluation.results.exposure import TrainedOn, trained_on_warnings
from medpclip.evaluation.results.headline import Measures, differences, headline, labels_apart, pairs
from medpclip.evaluation.results.rows import Row
from medpclip.evaluation.results.subgroups import subgroup_rows
from medpclip.evaluation.scores import Evaluation
from medpclip.evaluation.task import COMPARATORS, Task

FORMAT = 2
_PACKAGES = (*EMBEDDING_PACKAGES, "scikit-learn")
# Keys of a task that don't change what is asked: the data are known by their manifests.
_NOT_ASKED = ("name", "data", "published", "batch_size", "prompts_per_pass")


@dataclass
class ModelFacts:
    """Which weights were measured.

    Attributes:
        name: the checkpoint's and its run's folder, or the architecture; never a path, which would tell of its owner.
        weights_sha256: of the weights file; of the tensors, where the weights are random and lie in no file.
        step: of training; None for weights that were not trained here.
        trained_on: None where the checkpoint doesn't say, and for an architecture.
        settings_sha256: of what decides embeddings beside the weights (`Subject.settings`).
    """

    name: str
    weights_sha256: str
    step: int | None
    trained_on: TrainedOn | None = None
    settings_sha256: str | None = None


def build_result(task: Task, model: ModelFacts, corpus: Corpus, evaluation: Evaluation) -> dict[str, Any]:
    """The content of result.json without its block `timing`: a pure function of its arguments.

    `rows` holds every metric of every question (see `Row`). `headline` are the means over the sources where several
    region classes occur in one image; `differences`, `pairs` and `subgroups` are rows too, of the sections' main metrics.
    Figures are rounded to six digits, so that sums in another order don't show.
    """
    trained = model.trained_on
    measures = Measures.of(task, trained, all_answers(evaluation))
    means, mean_differences = headline(measures, [s.name for s in evaluation.of("region") if s.mixed])
    result = {
        "format": FORMAT,
        "task": to_mapping(task) | {"data": [name for name, _ in corpus.manifests]},
        "task_sha256": task_sha256(task),
        "split": task.split,
        "model": {key: value for key, value in asdict(model).items() if key != "trained_on"},
        "data": [{"folder": name, "manifest_sha256": digest} for name, digest in corpus.manifests],
        "lexicon_sha256": lexicon_sha256(),
        "code_sha256": code_sha256(),
        "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in _PACKAGES},
        "seed": task.seed,
        "warnings": [*trained_on_warnings(trained, task.split, corpus.manifests), *_one_class(evaluation)],
        "published": [asdict(figure) for figure in task.published],
        "headline": _data(means),
        "rows": _data(measures.rows()),
        "differences": _data([*mean_differences, *differences(measures)]),
        "pairs": _data(pairs(evaluation, task, trained)),
        "subgroups": _data([*labels_apart(measures), *subgroup_rows(evaluation, task, trained)]),
        "confusions": [_confusion(asked, given) for asked, given in _choices(measures)],
        "calibration": [_reliability(asked, given, task.calibration_bins) for asked, given in _choices(measures)],
        "left_out": evaluation.left_out,
    }
    return _finite(result)


def task_sha256(task: Task) -> str:
    """SHA-256 of all that a task asks; its name, its data's folders and what changes speed only don't count."""
    return hashlib.sha256(json.dumps(asked_by(to_mapping(task)), sort_keys=True).encode()).hexdigest()


def asked_by(task: dict[str, Any]) -> dict[str, Any]:
    """What of a task, as result.json holds it, changes figures."""
    return {key: value for key, value in task.items() if key not in _NOT_ASKED}


def lexicon_sha256() -> str:
    """SHA-256 of the lexicon's files, which say what classes are kinds of one another and describe them."""
    from medpclip.data.lexicon.lexicon import shipped_files
    from medpclip.files import file_sha256

    lines = (f"{path.name} {file_sha256(path)}\n" for path in sorted(shipped_files()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_sha256(file: Path | None, tensors: dict[str, Any]) -> str:
    """SHA-256 of a file of weights, or of the named tensors where there is no file."""
    from medpclip.files import file_sha256

    if file is not None:
        return file_sha256(file)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).float().numpy().tobytes())
    return digest.hexdigest()


def order_of(name: str) -> tuple[int, str]:
    """Comparators in the tables' fixed order, others after them by name."""
    known: Sequence[str] = COMPARATORS
    return (known.index(name) if name in known else len(known), name)


def _data(rows: Any) -> list[dict[str, Any]]:
    return [row.data() for row in rows if isinstance(row, Row)]


def _one_class(evaluation: Evaluation) -> list[str]:
    """A line for each source of whose classes one only has regions: its balanced accuracy is that one's recall."""
    alone = {s.name: {s.classes[case.true] for case in s.cases} for s in evaluation.of("region")}
    return [
        f"{source}: all regions that are asked for are of one class, {min(classes)!r}, so that what is called balanced "
        "accuracy is the recall of that class"
        for source, classes in alone.items()
        if len(classes) == 1
    ]


def _choices(measures: Measures) -> list[tuple[Asked, Choices]]:
    """Where there are confusions and probabilities to show: not for each of the many disturbances."""
    return [
        (asked, given)
        for asked, given in measures.answers.items()
        if isinstance(given, Choices) and asked.section != "robustness"
    ]


def _confusion(asked: Asked, given: Choices) -> dict[str, Any]:
    counts = confusion_matrix(given.true, given.predicted, len(given.classes))
    return asked._asdict() | {"classes": given.classes, "counts": counts.tolist()}


def _reliability(asked: Asked, given: Choices, bins: int) -> dict[str, Any]:
    curve = reliability(given.confidence, given.true == given.predicted, bins)
    return asked._asdict() | {"bins": [asdict(one) for one in curve]}


def _finite(data: Any) -> Any:
    """The same with null for what isn't finite."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
