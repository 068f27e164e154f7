"""From the folders of finished jobs to what tables are made of."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from costs import Cost
from figures import BySeed
from jobs import TRAINED, Job, evaluation_folder
from trained import Trained

from medpclip.evaluation.results.answers import Answers, Asked
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
            statistics.median(fact["seconds_per_step"] for fact in facts.values()),
            {seed: fact["weights_sha256"] for seed, fact in facts.items()},
            {seed: fact["code"] for seed, fact in facts.items()},
            answers.get("val", {}),
            answers["test"],
        )
    return out


def _answers(jobs: Sequence[Job], task: Path, split: str) -> BySeed:
    return {job.seed: read_answers(evaluation_folder(job, task, split)) for job in jobs}


def read_answers(folder: Path) -> dict[Asked, Answers]:
    """The answers of an evaluation."""
    rows = json.loads((folder / "result.json").read_bytes())["rows"]
    classes = {(row["section"], row["name"]): row["classes"] for row in rows if row["part"] is None}
    return read_predictions(folder / "predictions.jsonl", classes)
