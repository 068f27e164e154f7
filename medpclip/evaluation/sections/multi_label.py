"""Images that may have several of the classes, or none: each class is weighed against its absence, in words.

The pair of texts, "pneumonia" and "no pneumonia", is that of CheXzero (Tiu et al. 2022, Nature Biomedical Engineering,
section "Methods"); which labels count as unknown is our design.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medpclip.data.lexicon.lexicon import Lexicon
from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import Corpus, values_of
from medpclip.evaluation.embedding.features import Features
from medpclip.evaluation.embedding.texts import TextClassifier, log_softmax
from medpclip.evaluation.scores import Case, MultiLabelScores
from medpclip.evaluation.sections.zero_shot import check_classes, classes_of, embedded_images, terms_of, what_of
from medpclip.evaluation.task import ImageTask, Task


def multi_label(
    features: Features, task: Task, question: ImageTask, corpus: Corpus, left_out: list[str]
) -> MultiLabelScores:
    """A multi-label question to whole images.

    Raises:
        MedpclipError: fewer than two classes, or no image that says anything to the label.
    """
    classes = classes_of(task, question, corpus)
    terms = terms_of(task, question, classes)
    stated = [(item, values_of(item.sample, question.label)) for item in corpus.items]
    known = [(item, values) for item, values in stated if values is not None]
    if not known:
        raise MedpclipError(
            f"task {task.name!r}: {what_of(question)} is stated for no image of split {task.split!r}; drop it"
        )
    if len(known) < len(stated):
        left_out.append(f"{what_of(question)}: {len(stated) - len(known)} images that don't state it")
    check_classes(task, what_of(question), dict(zip(classes, terms, strict=True)), corpus.labels[question.label])
    truth = np.stack([truth_of(classes, terms, values, question.terms) for _, values in known])
    scores = MultiLabelScores(question.label, classes, [Case(item, -1) for item, _ in known], truth)
    there, absent = (TextClassifier(features.texts, terms, t) for t in (question.templates, question.negatives))
    modalities = [item.sample.modality for item, _ in known]
    for asked, (embeddings, scale) in embedded_images(features, task, question, scores.cases, left_out):
        cosines = np.stack([texts.cosines(embeddings, modalities) for texts in (there, absent)], axis=-1)
        scores.values[asked] = log_softmax(scale * cosines)[..., 0]
    return scores


def truth_of(classes: Sequence[str], terms: Sequence[str], stated: Sequence[str], words: dict[str, str]) -> np.ndarray:
    """(C,) int8: 1 for what an image states, 0 for what it doesn't; -1 for a kind of what it states, or what that is a kind
    of, since the statement leaves it open.

    Args:
        classes: the candidates.
        terms: their words.
        stated: all of the image's values.
        words: value -> its term, where that isn't the value itself.
    """
    lexicon = Lexicon.load()
    said = [words.get(value, value) for value in stated]
    out = np.zeros(len(classes), np.int8)
    for i, (name, term) in enumerate(zip(classes, terms, strict=True)):
        if name in stated or term in said:
            out[i] = 1
        elif any(lexicon.related(term, other) for other in said):
            out[i] = -1
    return out
