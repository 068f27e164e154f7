"""The single answers, a line each: enough to compute every figure again, and to pair two evaluations case by case."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medpclip.errors import MedpclipError
from medpclip.evaluation.results.answers import Answers, Asked, CaseId, Choices, Labels, Ranks, case_ids, of_scores
from medpclip.evaluation.scores import Case, Evaluation, MultiLabelScores, Ranking, Scores

TOP = 3
Answer = dict[str, Any] | None


def prediction_lines(evaluation: Evaluation) -> bytes:
    """JSON lines, one for each case of each question.

    All lines have section, name, source, key, region (null for an image), nth, group (salted, as the shards have it) and
    answers: prompt -> comparator -> answer. Of a choice `true` is the class, and an answer has `top` (the best classes
    with their probabilities), `brier`, and `score` where the question has a `positive` class. Of several labels `truth`
    maps label -> true or false (unknown ones are left out), and an answer has `scores`, label -> log-probability. Of
    retrieval an answer has `rank` and `found`, depth -> share. What can't be asked has no answer.
    """
    parts = [
        *map(_choice_lines, evaluation.scores),
        *map(_label_lines, evaluation.multi_label),
        *map(_rank_lines, evaluation.rankings),
    ]
    return "".join(line for part in parts for line in part).encode()


def read_predictions(path: Path, classes: dict[tuple[str, str], list[str]]) -> dict[Asked, Answers]:
    """The answers of a predictions.jsonl.

    Args:
        path: the file.
        classes: (section, name) -> the candidates, as result.json's rows have them.

    Raises:
        MedpclipError: no such file, or one that isn't whole.
    """
    lines: dict[Asked, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    try:
        for line in map(json.loads, path.read_bytes().splitlines()):
            for prompt, answers in line["answers"].items():
                for comparator, answer in answers.items():
                    asked = Asked(line["section"], line["name"], prompt, comparator)
                    lines.setdefault(asked, []).append((line, answer))
        return {asked: _read(asked, rows, classes[asked.section, asked.name]) for asked, rows in lines.items()}
    except OSError as error:
        raise MedpclipError(f"{path}: can't be read ({error.strerror}); evaluate again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MedpclipError(
            f"{path}: is not what eval writes beside its result.json ({error!r}); evaluate again"
        ) from None


def top_answers(scores: Scores, case: int, prompt: str, comparator: str, count: int = TOP) -> list[tuple[str, float]]:
    """The best candidates of a case with their probabilities, best first; empty where it can't be asked so."""
    values = scores.values[prompt, comparator][case]
    if np.isnan(values).any():
        return []
    order = np.argsort(-values, kind="stable")[:count]
    return [(scores.classes[i], _short(np.exp(values[i]))) for i in order if np.isfinite(values[i])]


def _choice_lines(scores: Scores) -> Iterator[str]:
    facts: list[dict[str, Any]] = [{"true": scores.classes[case.true]} for case in scores.cases]
    if scores.positive is not None:
        facts = [{"positive": scores.classes[scores.positive]} | fact for fact in facts]

    def answers(asked: tuple[str, str]) -> list[Answer]:
        known = of_scores(scores, *asked)
        brier = map(_short, known.brier)
        score = [{}] * len(known) if known.score is None else [{"score": _short(v)} for v in known.score]
        rest = dict(zip(known.ids, ({"brier": b} | s for b, s in zip(brier, score, strict=True)), strict=True))
        top = (top_answers(scores, i, *asked) for i in range(len(scores.cases)))
        return [
            {"top": [list(one) for one in best]} | rest[case] if best else None
            for case, best in zip(case_ids(scores.cases), top, strict=True)
        ]

    return _lines(scores.section, scores.name, scores.cases, facts, {asked: answers(asked) for asked in scores.values})


def _label_lines(labels: MultiLabelScores) -> Iterator[str]:
    known = ({c: bool(t) for c, t in zip(labels.classes, row, strict=True) if t >= 0} for row in labels.truth)
    facts = [{"truth": truth} for truth in known]

    def answers(values: np.ndarray) -> list[Answer]:
        rows = ([_short(v) for v in row] for row in values)
        return [
            None if np.isnan(row).any() else {"scores": dict(zip(labels.classes, row, strict=True))} for row in rows
        ]

    given = {asked: answers(values) for asked, values in labels.values.items()}
    return _lines("multi_label", labels.name, labels.cases, facts, given)


def _rank_lines(ranking: Ranking) -> Iterator[str]:
    def answers(asked: tuple[str, str]) -> list[Answer]:
        found = ranking.found.get(asked, {})
        return [
            {"rank": int(rank), "found": {str(k): _short(found[k][i]) for k in sorted(found)}} if rank >= 0 else None
            for i, rank in enumerate(ranking.best_rank[asked])
        ]

    facts: list[dict[str, Any]] = [{}] * len(ranking.cases)
    given = {asked: answers(asked) for asked in ranking.best_rank}
    return _lines("retrieval", ranking.name, ranking.cases, facts, given)


def _lines(
    section: str,
    name: str,
    cases: Sequence[Case],
    facts: Sequence[dict[str, Any]],
    answers: dict[tuple[str, str], list[Answer]],
) -> Iterator[str]:
    """A line for each case: whatever it is, its facts, and its answers by prompt and comparator."""
    for i, (case, fact) in enumerate(zip(case_ids(cases), facts, strict=True)):
        given: dict[str, dict[str, Any]] = {}
        for (prompt, comparator), rows in answers.items():
            if (answer := rows[i]) is not None:
                given.setdefault(prompt, {})[comparator] = answer
        line = {"section": section, "name": name} | case._asdict() | {"group": cases[i].group[1]} | fact
        yield json.dumps(line | {"answers": given}, ensure_ascii=False, allow_nan=False) + "\n"


def _read(asked: Asked, rows: list[tuple[dict[str, Any], dict[str, Any]]], classes: list[str]) -> Answers:
    ids = [CaseId(line["source"], line["key"], line["region"], line["nth"]) for line, _ in rows]
    groups = [(line["source"], line["group"]) for line, _ in rows]
    answers = [answer for _, answer in rows]
    if asked.section == "retrieval":
        rank = np.array([answer["rank"] for answer in answers], np.int64)
        depths = answers[0]["found"]
        found = {int(k): np.array([answer["found"][k] for answer in answers], np.float32) for k in depths}
        return Ranks(ids, groups, 0, rank, found)
    if asked.section == "multi_label":
        truth = [[int(line["truth"].get(c, -1)) for c in classes] for line, _ in rows]
        score = [[answer["scores"][c] for c in classes] for answer in answers]
        return Labels(ids, groups, classes, np.array(truth, np.int8), np.array(score, np.float32))
    place = {c: i for i, c in enumerate(classes)}
    positive = rows[0][0].get("positive")
    return Choices(
        ids,
        groups,
        classes,
        np.array([place[line["true"]] for line, _ in rows], np.int64),
        np.array([place[answer["top"][0][0]] for answer in answers], np.int64),
        np.array([answer["top"][0][1] for answer in answers], np.float32),
        np.array([answer["brier"] for answer in answers], np.float32),
        None if positive is None else place[positive],
        None if positive is None else np.array([answer["score"] for answer in answers], np.float32),
    )


def _short(value: np.floating[Any]) -> float:
    """The shortest decimal that is read back as the same float32."""
    return float(str(np.float32(value)))
