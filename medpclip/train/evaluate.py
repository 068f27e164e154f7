"""Evaluation while a run goes on: the tasks of `medpclip eval`, on a copy of the weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import Corpus, read_corpus
from medpclip.evaluation.exposure import TrainedOn
from medpclip.evaluation.result import METRIC, ModelFacts, build_result, weights_sha256
from medpclip.evaluation.task import Task, load_task
from medpclip.evaluation.zero_shot import run_task
from medpclip.files import dump_json, write_atomically
from medpclip.models.region_clip import RegionCLIP

EVALUATION = "evaluation"


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
        name = re.sub(r"[^\w.-]+", "-", task.name).strip("-.") or "task"
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
        """Run all tasks; write RUN/evaluation/step-N/TASK/result.json for each.

        Args:
            weights: the whole state dict, as an engine's `weights` or `average` gives it.
            step: of training.
            alive: called before every forward of a tower.

        Returns:
            "TASK/region/SOURCE/PROMPT/COMPARATOR/balanced_accuracy" and "TASK/image/LABEL/balanced_accuracy"; the mean
            over several sources is that of source "MEAN".

        Raises:
            MedpclipError: an unreadable image, or a result that can't be written.
        """
        figures: dict[str, float] = {}
        self._copy.load_state_dict(dict(weights))
        facts = ModelFacts(
            f"{self.out.absolute().name}/step-{step:08d}", weights_sha256(None, dict(weights)), step, self.trained_on
        )
        with _random_states_kept(self.device), _signs_of_life(self._copy, alive):
            try:
                self._copy.to(self.device)
                for asked in self.tasks:
                    measured = run_task(self._copy, asked.task, asked.corpus, self.device)
                    result = build_result(asked.task, facts, asked.corpus, measured)
                    self._write(result, step, asked.name)
                    figures |= {f"{asked.name}/{name}": value for name, value in flat(result).items()}
            finally:
                self._copy.cpu()
        return figures

    def _write(self, result: dict[str, Any], step: int, name: str) -> None:
        path = self.out / EVALUATION / f"step-{step:08d}" / name / "result.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, dump_json(result))
        except OSError as error:
            raise MedpclipError(f"{path}: can't be written ({error.strerror}); make room, then --resume") from None


def flat(result: Mapping[str, Any]) -> dict[str, float]:
    """A result's balanced accuracies under one name each; those that could not be had are left out."""
    rows: list[tuple[Any, ...]] = []
    rows += [(row["value"], "region", row["source"], row["prompt"], row["comparator"]) for row in result["region"]]
    means = (row for row in result["headline"] if len(row["sources"]) > 1)
    rows += [(row["value"], "region", "MEAN", row["prompt"], row["comparator"]) for row in means]
    rows += [(row["value"], "image", row["label"]) for row in result["image"]]
    return {"/".join((*names, METRIC)): value for value, *names in rows if value is not None}


@contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def _signs_of_life(model: RegionCLIP, alive: Callable[[], None]) -> Iterator[None]:
    def hook(module: nn.Module, inputs: Any) -> None:
        alive()

    towers: list[nn.Module] = [model.visual, model.fusion, getattr(model.clip, "text", model.clip).transformer]
    handles = [tower.register_forward_pre_hook(hook) for tower in towers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
