"""The report's gallery: right and wrong answers with the prompt drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medpclip.evaluation.corpus import rng_for
from medpclip.evaluation.report.figures import Picture, data_uri, prompted_picture
from medpclip.evaluation.report.tables import heading
from medpclip.evaluation.results.headline import OURS
from medpclip.evaluation.results.predictions import top_answers
from medpclip.evaluation.results.result import order_of
from medpclip.evaluation.scores import Evaluation, Scores


@dataclass
class Card:
    """A case of the gallery.

    Attributes:
        prompt: how it was asked.
        question: the source, or the label of an image.
        answers: class, percent, whether it is the true one.
        others: what the other comparators answer: heading, class, whether it is the true one.
    """

    picture: Picture
    prompt: str
    question: str
    true: str
    right: bool
    answers: list[tuple[str, str, bool]]
    others: list[tuple[str, str, bool]]


def cards(evaluation: Evaluation, seed: int, count: int) -> Iterator[Card]:
    """Cases of all sources and prompt kinds in turn, right and wrong ones alternating where there are both."""
    queues = [
        queue
        for scores in (*evaluation.of("region"), *evaluation.of("image"))
        for prompt in dict.fromkeys(prompt for prompt, _ in scores.values)
        if scores.section == "region" or prompt == "image"
        for queue in _queues(scores, prompt, seed)
    ]
    shown: set[tuple[str, str]] = set()
    while queues and count > 0:
        scores, prompt, cases = queue = queues.pop(0)
        images = ((i, (scores.name, scores.cases[i].item.sample.key)) for i in cases)
        fresh = next(((i, image) for i, image in images if image not in shown), None)  # an image is shown once
        if fresh is not None:
            shown.add(fresh[1])
            yield _card(scores, fresh[0], prompt, seed)
            count -= 1
            queues.append(queue)


def _queues(scores: Scores, prompt: str, seed: int) -> list[tuple[Scores, str, list[int]]]:
    """The right and the wrong cases of one prompt kind, each in a seeded order."""
    name = OURS if (prompt, OURS) in scores.values else min((n for p, n in scores.values if p == prompt), key=order_of)
    right: list[int] = []
    wrong: list[int] = []
    for i in rng_for(seed, "gallery", scores.name, prompt).permutation(len(scores.cases)):
        top = top_answers(scores, i, prompt, name, 1)
        if top:
            (right if top[0][0] == scores.classes[scores.cases[i].true] else wrong).append(int(i))
    return [(scores, prompt, right), (scores, prompt, wrong)]


def _card(scores: Scores, index: int, prompt: str, seed: int) -> Card:
    case = scores.cases[index]
    true = scores.classes[case.true]
    names = sorted((n for p, n in scores.values if p == prompt), key=order_of)
    best = top_answers(scores, index, prompt, names[0])
    others = [(heading(n), top_answers(scores, index, prompt, n, 1)) for n in names[1:]]
    jpeg = prompted_picture(case, prompt, seed)
    what = "" if case.region is None else f" with a {prompt} prompt"
    text = f"{case.item.sample.modality} image{what}, true class {true}; the first answer is {best[0][0]}"
    return Card(
        Picture(data_uri(jpeg, "jpeg"), text, ""),
        "the image embedding" if case.region is None else prompt,
        scores.name,
        true,
        best[0][0] == true,
        [(name, f"{100 * p:.0f} %", name == true) for name, p in best],
        [(heading, top[0][0], top[0][0] == true) for heading, top in others if top],
    )
