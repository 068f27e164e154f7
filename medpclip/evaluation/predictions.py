"""The single answers, a line each, for whoever wants to look closer than the tables do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from medpclip.evaluation.zero_shot import Evaluation, Scores

TOP = 3


def prediction_lines(evaluation: Evaluation) -> bytes:
    """JSON lines: level, source or label, key, region, true, top: {prompt: {comparator: [[class, p], ...]}}."""
    rows = [*_lines(evaluation.image, "image"), *_lines(evaluation.region, "region")]
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


def top_answers(scores: Scores, case: int, prompt: str, comparator: str, count: int = TOP) -> list[tuple[str, float]]:
    """The best candidates of a case with their probabilities, best first; empty where it can't be asked so."""
    values = scores.values[prompt, comparator][case]
    if np.isnan(values).any():
        return []
    order = np.argsort(-values, kind="stable")[:count]
    return [(scores.classes[i], float(np.exp(values[i]))) for i in order if np.isfinite(values[i])]


def _lines(parts: list[Scores], level: str) -> Iterator[dict[str, Any]]:
    for scores in parts:
        for i, case in enumerate(scores.cases):
            top: dict[str, dict[str, list[list[Any]]]] = {}
            for prompt, comparator in scores.values:
                best = top_answers(scores, i, prompt, comparator)
                if best:
                    top.setdefault(prompt, {})[comparator] = [[name, round(p, 4)] for name, p in best]
            name = {"label" if level == "image" else "source": scores.name}
            region = {"region": case.region.id} if case.region is not None else {}
            true = scores.classes[case.true]
            yield {"level": level} | name | {"key": case.item.sample.key} | region | {"true": true, "top": top}
