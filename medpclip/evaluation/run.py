"""Runs a task on a model: all its sections, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import Corpus
from medpclip.evaluation.embedding.features import Features
from medpclip.evaluation.results.answers import all_answers
from medpclip.evaluation.scores import Evaluation
from medpclip.evaluation.sections.multi_label import multi_label
from medpclip.evaluation.sections.zero_shot import image_level, region_level
from medpclip.evaluation.task import BOX_GEOMETRY, OWN, ComparatorName, Task


def run_task(features: Features, task: Task, corpus: Corpus) -> Evaluation:
    """Evaluate a model.

    Args:
        features: what the model says.
        task: what to measure.
        corpus: the task's data, as `read_corpus` gives it.

    Raises:
        MedpclipError: nothing can be measured, an unreadable picture.
    """
    evaluation = Evaluation([])
    task = _possible(features, task, evaluation.left_out)
    for question in task.image:
        if question.kind == "multi_label":
            evaluation.multi_label.append(multi_label(features, task, question, corpus, evaluation.left_out))
        else:
            evaluation.scores.append(image_level(features, task, question, corpus, evaluation.left_out))
    if task.region is not None:
        evaluation.scores += region_level(features, task, corpus, evaluation.left_out)
    _further_sections(features, task, corpus, evaluation)
    if not any(len(given) for _, given in all_answers(evaluation)):
        raise MedpclipError(
            f"task {task.name!r}: nothing could be measured ({'; '.join(evaluation.left_out)}); change what it asks, or its data"
        )
    evaluation.speed = features.speed
    return evaluation


def _further_sections(features: Features, task: Task, corpus: Corpus, evaluation: Evaluation) -> None:
    if task.retrieval:
        from medpclip.evaluation.sections import retrieval

        for asked in task.retrieval:
            evaluation.rankings += retrieval.run(features, task, asked, corpus, evaluation.left_out)
    if task.probe:
        from medpclip.evaluation.sections import probe

        for question in task.probe:
            evaluation.scores += probe.run(features, task, question, corpus, evaluation.left_out)
    if task.robustness is not None:
        from medpclip.evaluation.sections import robustness

        evaluation.scores += robustness.run(features, task, evaluation.of("region"), evaluation.left_out)


def _possible(features: Features, task: Task, left_out: list[str]) -> Task:
    """The task without what the model can't be asked, which is noted.

    Raises:
        MedpclipError: nothing is left.
    """
    if features.subject.model is None:
        sections = [name for name in ("image", "region", "retrieval", "robustness") if getattr(task, name)]
        if not task.probe:
            raise MedpclipError(
                f"task {task.name!r}: {features.subject.facts.name} is an image tower without texts, which only a section "
                f"'probe' can measure; add one, or give the model it was exported from"
            )
        left_out += [f"{name}: the model is an image tower without texts" for name in sections]
        task = replace(task, image=[], region=None, retrieval=[], robustness=None)
    own, robustness = _at_hand(features, task.comparators), task.robustness
    left_out += [f"{name}: {_why(name)}" for name in task.comparators if name not in own]
    if robustness is not None and robustness.comparators is not None:
        robustness = replace(robustness, comparators=_at_hand(features, robustness.comparators) or None)
    return replace(task, comparators=own or ["unprompted"], robustness=robustness)


def _at_hand(features: Features, names: Sequence[ComparatorName]) -> list[ComparatorName]:
    return [name for name in names if name in features.comparators or name == BOX_GEOMETRY]


def _why(name: str) -> str:
    return "the model was never trained with prompts" if name in OWN else "the model is an image tower alone"
