"""From scores to the figures that are published, with all that is needed to make them again."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from medpclip.config import to_mapping
from medpclip.evaluation.bootstrap import GroupCounts, mean_of_sources, percentile_interval, resample
from medpclip.evaluation.corpus import Corpus
from medpclip.evaluation.exposure import Exposure, TrainedOn, exposure_of, least, trained_on_warnings
from medpclip.evaluation.metrics import accuracy, balanced_accuracy, confusion_matrix
from medpclip.evaluation.task import COMPARATORS, Bootstrap, Task
from medpclip.evaluation.texts import templates_sha256
from medpclip.evaluation.zero_shot import Evaluation, Scores

FORMAT = 1
METRIC = "balanced_accuracy"
OURS = "prompted"
_PACKAGES = ("medpclip", "torch", "open_clip_torch", "numpy", "pillow", "scikit-learn")


@dataclass
class ModelFacts:
    """Which weights were measured.

    Attributes:
        name: the checkpoint's and its run's folder, or the architecture; never a path, which would tell of its owner.
        weights_sha256: of the weights file; of the tensors, where the weights are random and lie in no file.
        step: of training; None for weights that were not trained here.
        trained_on: None where the checkpoint doesn't say, and for an architecture.
    """

    name: str
    weights_sha256: str
    step: int | None
    trained_on: TrainedOn | None = None


def build_result(task: Task, model: ModelFacts, corpus: Corpus, evaluation: Evaluation) -> dict[str, Any]:
    """The content of result.json without its block `timing`: a pure function of its arguments."""
    trained, templates = model.trained_on, _region_templates(task)
    region = [row for scores in evaluation.region for row in _rows(scores, task, templates, trained)]
    image_templates = [q.templates for q in task.image]
    image = [
        row | {"label": row.pop("source")}
        for scores, own in zip(evaluation.image, image_templates, strict=True)
        for row in _rows(scores, task, own, trained)
    ]
    result = {
        "format": FORMAT,
        "task": to_mapping(task) | {"data": [name for name, _ in corpus.manifests]},
        "split": task.split,
        "model": {"name": model.name, "weights_sha256": model.weights_sha256, "step": model.step},
        "data": [{"folder": name, "manifest_sha256": digest} for name, digest in corpus.manifests],
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "seed": task.seed,
        "warnings": trained_on_warnings(trained, task.split, corpus.manifests),
        "headline": _headline(evaluation.region, task, trained),
        "region": region,
        "differences": [row for scores in evaluation.region for row in _differences(scores, task)],
        "pairs": [row for scores in evaluation.region for row in _pair_rows(scores, task, templates, trained)],
        "image": image,
        "left_out": evaluation.left_out,
    }
    return _finite(result)


def answers(values: np.ndarray) -> np.ndarray:
    """(n, C) log-probabilities -> (n,) the best candidate's index, the first of equals; -1 for rows of NaN."""
    asked = ~np.isnan(values).any(axis=1)
    return np.where(asked, np.argmax(np.where(asked[:, None], values, 0), axis=1), -1)


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


def _region_templates(task: Task) -> list[str]:
    return task.region.templates if task.region is not None else []


def _rows(scores: Scores, task: Task, templates: list[str], trained: TrainedOn | None) -> list[dict[str, Any]]:
    """A row for each prompt kind and comparator."""
    return [
        _row(scores, _Predicted.of(scores, prompt, name), prompt, name, task, templates, trained)
        for prompt, name in scores.values
        if (answers(scores.values[prompt, name]) >= 0).any()
    ]


def _exposure(scores: Scores, trained: TrainedOn | None, classes: Sequence[str]) -> Exposure:
    terms = classes if any(case.region is not None for case in scores.cases) else None
    return exposure_of(trained, {case.item.sample.source for case in scores.cases}, terms)


@dataclass
class _Predicted:
    """The cases that were asked in one way.

    Attributes:
        true, predicted: (n,) indices into `classes`.
        groups: (n,) indices in [0, group_count).
        images: (n,) indices of images.
    """

    classes: list[str]
    true: np.ndarray
    predicted: np.ndarray
    groups: np.ndarray
    group_count: int
    images: int

    @classmethod
    def of(cls, scores: Scores, prompt: str, name: str, pair: tuple[str, str] | None = None) -> _Predicted:
        values, true, classes = scores.values[prompt, name], scores.true, scores.classes
        if pair is not None:
            columns = [classes.index(c) for c in pair]
            values, classes = values[:, columns], list(pair)
            true = np.select([true == c for c in columns], range(len(columns)), -1)
        predicted = answers(values)
        # The groups of all cases, asked or not, in one order: the resamples of two comparators pair up.
        candidates = [i for i in range(len(true)) if true[i] >= 0]
        groups = {g: n for n, g in enumerate(sorted({scores.cases[i].group for i in candidates}))}
        used = [i for i in candidates if predicted[i] >= 0]
        return cls(
            classes,
            true[used],
            predicted[used],
            np.array([groups[scores.cases[i].group] for i in used], np.int64),
            len(groups),
            len({(scores.cases[i].group[0], scores.cases[i].item.sample.key) for i in used}),
        )

    @property
    def confusion(self) -> np.ndarray:
        return confusion_matrix(self.true, self.predicted, len(self.classes))

    @property
    def occurring(self) -> list[str]:
        """The classes that some case has."""
        return [self.classes[i] for i in np.unique(self.true)]

    def resampled(self, bootstrap: Bootstrap, source: str) -> np.ndarray:
        """Resamples of a source; the same for all its comparators, others for another source."""
        digest = hashlib.sha256(f"{bootstrap.seed}\n{source}".encode()).digest()
        counts = GroupCounts.of(self.true, self.predicted, self.groups, self.group_count, len(self.classes))
        return resample(counts, bootstrap.draws, int.from_bytes(digest[:8], "little"))


def _row(
    scores: Scores,
    cases: _Predicted,
    prompt: str,
    name: str,
    task: Task,
    templates: list[str],
    trained: TrainedOn | None,
) -> dict[str, Any]:
    confusion = cases.confusion
    return {
        "source": scores.name,
        "exposure": _exposure(scores, trained, cases.occurring),
        "prompt": prompt,
        "comparator": name,
        "metric": METRIC,
        "value": balanced_accuracy(confusion),
        "interval": percentile_interval(cases.resampled(task.bootstrap, scores.name), task.bootstrap.level),
        "level": task.bootstrap.level,
        "accuracy": accuracy(confusion),
        "cases": len(cases.true),
        "images": cases.images,
        "groups": len(np.unique(cases.groups)),
        "split": task.split,
        "classes": cases.classes,
        "templates_sha256": templates_sha256(templates),
        "confusion": confusion.tolist(),
    }


def _headline(regions: list[Scores], task: Task, trained: TrainedOn | None) -> list[dict[str, Any]]:
    """Plain mean over the sources where several region classes occur in one image."""
    mixed = [scores for scores in regions if scores.mixed]
    out = []
    for prompt, name in dict.fromkeys(key for scores in mixed for key in scores.values):
        cases = [(s, _Predicted.of(s, prompt, name)) for s in mixed if (prompt, name) in s.values]
        cases = [(s, c) for s, c in cases if len(c.true)]
        if not cases:
            continue
        draws = mean_of_sources([c.resampled(task.bootstrap, s.name) for s, c in cases])
        out.append(
            {
                "prompt": prompt,
                "comparator": name,
                "metric": f"mean_{METRIC}",
                "value": float(np.mean([balanced_accuracy(c.confusion) for _, c in cases])),
                "interval": percentile_interval(draws, task.bootstrap.level),
                "level": task.bootstrap.level,
                "sources": [s.name for s, _ in cases],
                "exposure": least(_exposure(s, trained, c.occurring) for s, c in cases),
                "cases": sum(len(c.true) for _, c in cases),
            }
        )
    return out


def _differences(scores: Scores, task: Task) -> list[dict[str, Any]]:
    """The model's own answer minus each comparator's, paired: the same groups are resampled for both."""
    out = []
    for prompt, name in scores.values:
        if name == OURS or (prompt, OURS) not in scores.values:
            continue
        ours, other = _Predicted.of(scores, prompt, OURS), _Predicted.of(scores, prompt, name)
        if len(ours.true) != len(other.true) or not len(ours.true):
            continue  # not the same cases, so no pair
        draws = ours.resampled(task.bootstrap, scores.name) - other.resampled(task.bootstrap, scores.name)
        out.append(
            {
                "source": scores.name,
                "prompt": prompt,
                "minus": name,
                "metric": METRIC,
                "value": balanced_accuracy(ours.confusion) - balanced_accuracy(other.confusion),
                "interval": percentile_interval(draws, task.bootstrap.level),
                "level": task.bootstrap.level,
            }
        )
    return out


def _pair_rows(scores: Scores, task: Task, templates: list[str], trained: TrainedOn | None) -> list[dict[str, Any]]:
    """Regions of two classes, with only these two as candidates."""
    out = []
    for kind, pairs in scores.pairs.items():
        for pair in pairs:
            for prompt, name in scores.values:
                cases = _Predicted.of(scores, prompt, name, pair)
                if len(cases.true):
                    out.append({"kind": kind} | _row(scores, cases, prompt, name, task, templates, trained))
    return out


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _finite(data: Any) -> Any:
    """The same with null for what isn't finite."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
