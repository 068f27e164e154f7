"""Evaluation while a run goes on: the tasks of `medpclip eval`, on a copy of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import Corpus, read_corpus
from medpclip.evaluation.embedding.features import Features
from medpclip.evaluation.results.exposure import TrainedOn
from medpclip.evaluation.results.measures import PRIMARY
from medpclip.evaluation.results.predictions import prediction_lines
from medpclip.evaluation.results.result import ModelFacts, build_result, weights_sha256
from medpclip.evaluation.run import run_task
from medpclip.evaluation.scores import Evaluation
from medpclip.evaluation.subject import Subject
from medpclip.evaluation.suite import folder_name
from medpclip.evaluation.task import Task, load_task
from medpclip.files import dump_json, write_atomically
from medpclip.models.region_clip import RegionCLIP

EVALUATION = "evaluation"
_WORKERS = 2  # threads that decode; the training's own loader goes on meanwhile


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Asked:
    """A task that was read and whose data were found.

    Attributes:
        name: the task's, as a folder may be called.
    """

    name: str
    task: Task
    corpus: Corpus


def read_tasks(paths: Sequence[Path]) -> list[Asked]:
    """All tasks with the facts of their data, so that a mistake shows before training and not after hours of it.

    Raises:
        MedpclipError: a task or its data can't be read, two have one name, or a package is missing.
    """
    if paths and find_spec("sklearn") is None:
        raise MedpclipError(
            "key 'evaluation.tasks' needs scikit-learn; install the extra: pip install 'medpclip[eval]'"
        )
    found: dict[str, Path] = {}
    tasks = []
    for path in paths:
        task = load_task(path)
        name = folder_name(task)
        if name in found:
            raise MedpclipError(f"{path}: its name {task.name!r} is that of {found[name]} too; rename one of them")
        found[name] = path
        tasks.append(Asked(name, task, read_corpus(task)))
    return tasks


class Evaluator:
    """Measures weights on tasks. Neither the model in training nor a random state notices.

    Args:
        model: as it was built, before an engine takes it; copied, with its tokenizer shared.
        tasks: what to measure.
        device: where to compute. The copy is in CPU memory otherwise.
        out: the run's folder.
        trained_on: what the training sees, so that results can say what they show.
    """

    def __init__(
        self,
        model: RegionCLIP,
        tasks: Sequence[Asked],
        device: torch.device,
        out: Path,
        trained_on: TrainedOn | None = None,
    ) -> None:
        self.tasks, self.device, self.out, self.trained_on = tasks, device, out, trained_on
        shared = {id(model.tokenizer): model.tokenizer}
        self._copy: RegionCLIP = copy.deepcopy(model, shared).cpu().requires_grad_(False).eval()

    def evaluate(
        self, weights: Mapping[str, Tensor], step: int, alive: Callable[[], None] = _nothing
    ) -> dict[str, float]:
        """Run all tasks; write result.json and predictions.jsonl to RUN/evaluation/step-N/TASK for each.

        Args:
            weights: the whole state dict, as an engine's `weights` or `average` gives it.
            step: of training.
            alive: called after every forward of a tower.

        Returns:
            As `flat` names them, after the task's name.

        Raises:
            MedpclipError: an unreadable image, or a result that can't be written.
        """
        figures: dict[str, float] = {}
        self._copy.load_state_dict(dict(weights))
        facts = ModelFacts(
            f"{self.out.absolute().name}/step-{step:08d}", weights_sha256(None, dict(weights)), step, self.trained_on
        )
        with _random_states_kept(self.device):
            try:
                subject = Subject.of_model(self._copy.to(self.device), facts, prompted=True)
                for asked in self.tasks:
                    measured = run_task(_features(subject, asked.task, alive), asked.task, asked.corpus)
                    result = build_result(asked.task, subject.facts, asked.corpus, measured)
                    self._write(result, measured, step, asked.name)
                    figures |= {f"{asked.name}/{name}": value for name, value in flat(result).items()}
            finally:
                self._copy.cpu()
        return figures

    def _write(self, result: dict[str, Any], measured: Evaluation, step: int, name: str) -> None:
        folder = self.out / EVALUATION / f"step-{step:08d}" / name
        path = folder / "result.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "predictions.jsonl", prediction_lines(measured))
            write_atomically(path, dump_json(result))
        except OSError as error:
            raise MedpclipError(f"{path}: can't be written ({error.strerror}); make room, then --resume") from None


def flat(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that a result's sections are judged by, under one name each; those that could not be had are left out.

    "region/SOURCE/PROMPT/COMPARATOR/balanced_accuracy", where the mean over several sources is that of source "MEAN";
    "image/LABEL/balanced_accuracy" by the image embedding; other sections as regions.
    """
    out: dict[str, float] = {}
    means = [row for row in result["headline"] if len(row["sources"]) > 1]
    for row in (*result["rows"], *means):
        if row["value"] is None or row["part"] is not None or not row["metric"].startswith(PRIMARY[row["section"]]):
            continue
        asked = [] if row["prompt"] == "image" and row["section"] == "image" else [row["prompt"], row["comparator"]]
        out["/".join((row["section"], row["name"], *asked, row["metric"]))] = row["value"]
    return out


def _features(subject: Subject, task: Task, alive: Callable[[], None]) -> Features:
    """Embeddings in memory: the next evaluation has other weights."""
    return Features(
        subject,
        workers=_WORKERS,
        batch_size=task.batch_size,
        prompts_per_pass=task.prompts_per_pass,
        seed=task.seed,
        alive=alive,
    )


@contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
