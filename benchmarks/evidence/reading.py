"""From the folders of finished jobs to what tables are made of."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from costs import Cost
from figures import BySeed
from jobs import TRAINED, Job, evaluation_folder
from shards import shard_folders
from trained import Trained

from medpclip.data.shards import read_manifest
from medpclip.evaluation.results.answers import Answers, Asked, Choices
from medpclip.evaluation.results.predictions import read_predictions


def trained_runs(
    jobs: Sequence[Job], costs: Mapping[str, Cost], task: Path, splits: Sequence[str]
) -> dict[str, Trained]:
    """Name -> what is known of the run, from the folders of its jobs."""
    out = {}
    for name in dict.fromkeys(job.run.name for job in jobs):
        own = [job for job in jobs if job.run.name == name]
        facts = {job.seed: json.loads((job.folder / TRAINED).read_bytes()) for job in own}
        answers = {split: _answers(own, task, split) for split in splits}
        out[name] = Trained(
            own[0].steps,
            costs[name],
            {seed: fact["weights_sha256"] for seed, fact in facts.items()},
            {seed: fact["code"] for seed, fact in facts.items()},
            {job.seed: frozenset(_code(evaluation_folder(job, task, split)) for split in splits) for job in own},
            answers.get("val", {}),
            answers.get("test", {}),
        )
    return out


def _answers(jobs: Sequence[Job], task: Path, split: str) -> BySeed:
    out = {}
    for job in jobs:
        learned = _train_classes(job)
        given = read_answers(evaluation_folder(job, task, split))
        out[job.seed] = {asked: of_classes(answers, asked, learned) for asked, answers in given.items()}
    return out


def _code(folder: Path) -> str:
    code: str = json.loads((folder / "result.json").read_bytes())["code_sha256"]
    return code


def _train_classes(job: Job) -> dict[str, set[str]]:
    """Source -> the classes of which the seed's train split has a region: of those with few regions, some have none."""
    folders = shard_folders(job.folder.parents[2], job.seed)
    return {name: set(read_manifest(folder)["splits"]["train"]["category"]) for name, folder in folders.items()}


def of_classes(answers: Answers, asked: Asked, learned: Mapping[str, Collection[str]]) -> Answers:
    """Of a question about regions, the cases of classes that could be learned from their source; others as they are."""
    if asked.section not in ("region", "robustness") or not isinstance(answers, Choices):
        return answers
    known = np.array([name in learned[asked.name] for name in answers.classes], bool)
    return answers.take(np.flatnonzero(known[answers.true]))


def read_answers(folder: Path) -> dict[Asked, Answers]:
    """The answers of an evaluation."""
    rows = json.loads((folder / "result.json").read_bytes())["rows"]
    classes = {(row["section"], row["name"]): row["classes"] for row in rows if row["part"] is None}
    return read_predictions(folder / "predictions.jsonl", classes)
