"""The main metrics again for some of the cases: by modality, by the regions' size, by source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medpclip.evaluation.results.answers import CaseId, all_answers, case_ids
from medpclip.evaluation.results.exposure import TrainedOn
from medpclip.evaluation.results.measures import PRIMARY, measure
from medpclip.evaluation.results.rows import Row, row
from medpclip.evaluation.scores import Case, Evaluation
from medpclip.evaluation.task import Task

# Of a region's size, the square root of its share of the image: the side of a square of its area, against that of a square
# image. Fixed bins (ours), so that tables of different data compare.
SIZES = ((0.02, "below 2 %"), (0.05, "2 to 5 %"), (0.15, "5 to 15 %"), (0.4, "15 to 40 %"), (math.inf, "from 40 %"))
_ORDER = {name: i for i, (_, name) in enumerate(SIZES)}
SECTIONS = ("image", "multi_label", "region", "probe")

Groups = Mapping[str, str]


def subgroup_rows(evaluation: Evaluation, task: Task, trained: TrainedOn | None) -> Iterator[Row]:
    """A row for each subgroup of each question by each prompt and comparator; `part` names it, as "size: 2 to 5 %".

    A division that leaves all cases together has no rows, since they would repeat the question's own.
    """
    questions = [(scores.section, scores.name, scores.cases) for scores in evaluation.scores]
    questions += [("multi_label", labels.name, labels.cases) for labels in evaluation.multi_label]
    groups: dict[tuple[str, str], dict[CaseId, Groups]] = {
        (section, name): {case: groups_of(own) for case, own in zip(case_ids(cases), cases, strict=True)}
        for section, name, cases in questions
        if section in SECTIONS
    }
    for asked, answers in all_answers(evaluation):
        if asked.section not in SECTIONS:
            continue
        own = groups[asked.section, asked.name]
        for part, chosen in parts([own[case] for case in answers.ids]):
            some = answers.take(chosen)
            found = measure(some, asked.name, task.bootstrap, task.calibration_bins, PRIMARY[asked.section])
            for metric, measured in found.items():
                yield row(asked, some, metric, measured, task, trained, part=part)


def groups_of(case: Case) -> Groups:
    """What a case belongs to: division -> group; no size where a region has no extent, or for an image."""
    out = {"modality": case.item.sample.modality, "source": case.item.sample.source}
    area = case.area
    return out if area is None else out | {"size": size_of(area)}


def parts(groups: Sequence[Groups]) -> Iterator[tuple[str, np.ndarray]]:
    """The subgroups of n cases: "division: group" and indices (m,) into them; sizes from small to large, else by name."""
    for division in ("modality", "size", "source"):
        names = [own.get(division) for own in groups]
        known = {name for name in names if name is not None}
        if len(set(names)) > 1:
            for name in sorted(known, key=lambda name: (_ORDER.get(name, 0), name)):
                yield f"{division}: {name}", np.flatnonzero([own == name for own in names])


def size_of(area: float) -> str:
    """The bin of a region that covers a share of its image."""
    side = math.sqrt(area)
    return next(name for edge, name in SIZES if side < edge)
