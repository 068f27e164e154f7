"""Classes as text embeddings: an ensemble of templates, as in CLIP (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from medpclip.data.lexicon.lexicon import Lexicon
from medpclip.data.loading.texts import fill_template
from medpclip.errors import MedpclipError
from medpclip.evaluation.task import fill_ins


def class_texts(term: str, templates: Sequence[str], modality: str, lexicon: Lexicon) -> list[str]:
    """A class in the words of the templates; those with {description} are left out where the lexicon has none.

    Raises:
        MedpclipError: no template is left.
    """
    description = lexicon.description(term)
    fitting = [t for t in templates if description is not None or "description" not in fill_ins(t)]
    if not fitting:
        raise MedpclipError(
            f"class {term!r}: the lexicon doesn't describe it, as every template needs; add the template '{{name}}'"
        )
    return [fill_template(t, term, description=description, modality=modality) for t in fitting]


def templates_sha256(templates: Sequence[str]) -> str:
    """SHA-256 of the templates as a JSON list."""
    return hashlib.sha256(json.dumps(list(templates), ensure_ascii=False).encode()).hexdigest()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float32; rows with NaN become NaN throughout."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(-1, keepdims=True))).astype(np.float32)


class TextClassifier:
    """The weights of a list of classes, made of their texts once per modality.

    Args:
        encode: T texts -> float32 (T, D), L2-normalised, as `Features.texts` does.
        terms: the classes' words.
        templates: with the fill-ins {name}, {description}, {modality}.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], np.ndarray], terms: Sequence[str], templates: Sequence[str]
    ) -> None:
        self.encode, self.terms, self.templates = encode, list(terms), list(templates)
        self._by_modality = any("modality" in fill_ins(t) for t in templates)
        self._weights: dict[str, np.ndarray] = {}

    def weights(self, modality: str) -> np.ndarray:
        """(C, D) float32: for each class the L2-normalised mean of its texts' L2-normalised embeddings."""
        key = modality if self._by_modality else ""
        if key not in self._weights:
            self._weights[key] = self._encode(key)
        return self._weights[key]

    def cosines(self, embeddings: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
        """(n, D) L2-normalised embeddings, each of an image of some modality -> (n, C); rows of NaN stay so."""
        out = np.empty((len(embeddings), len(self.terms)), np.float32)
        of = np.array(modalities)
        for modality in dict.fromkeys(modalities):
            rows = of == modality
            out[rows] = embeddings[rows] @ self.weights(modality).T
        return out

    def scores(self, embeddings: np.ndarray, modalities: Sequence[str], scale: float) -> np.ndarray:
        """Log-probabilities of the classes, float32 (n, C): the log-softmax of `scale` times the cosines."""
        return log_softmax(scale * self.cosines(embeddings, modalities))

    def _encode(self, modality: str) -> np.ndarray:
        lexicon = Lexicon.load()
        texts = [class_texts(term, self.templates, modality, lexicon) for term in self.terms]
        embeddings = self.encode([text for row in texts for text in row])
        ends = np.cumsum([len(row) for row in texts])
        means = np.stack([part.mean(0) for part in np.split(embeddings, ends[:-1])])
        return means / np.linalg.norm(means, axis=1, keepdims=True)
