"""Classes as text embeddings: an ensemble of templates, as in CLIP (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medpclip.data.lexicon.lexicon import Lexicon
from medpclip.data.loading.texts import fill_template
from medpclip.errors import MedpclipError
from medpclip.evaluation.task import fill_ins
from medpclip.models.region_clip import RegionCLIP


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


class TextClassifier:
    """The weights of a list of classes, made of their texts once per modality.

    Args:
        model: its text tower is used as it stands.
        classes: terms.
        templates: with the fill-ins {name}, {description}, {modality}.
        device: where the model lies.
    """

    def __init__(
        self, model: RegionCLIP, classes: Sequence[str], templates: Sequence[str], device: torch.device | str
    ) -> None:
        self.model, self.classes, self.templates, self.device = model, list(classes), list(templates), device
        self._by_modality = any("modality" in fill_ins(t) for t in templates)
        self._weights: dict[str, Tensor] = {}

    def weights(self, modality: str) -> Tensor:
        """(C, D): for each class the L2-normalised mean of its texts' L2-normalised embeddings."""
        key = modality if self._by_modality else ""
        if key not in self._weights:
            self._weights[key] = self._encode(key)
        return self._weights[key]

    def _encode(self, modality: str) -> Tensor:
        lexicon = Lexicon.load()
        texts = [class_texts(c, self.templates, modality, lexicon) for c in self.classes]
        tokens = self.model.tokenizer([text for row in texts for text in row]).to(self.device)
        embeddings = torch.cat([self.model.encode_text(part) for part in tokens.split(256)]).float()
        means = [rows.mean(0) for rows in embeddings.split([len(row) for row in texts])]
        return F.normalize(torch.stack(means), dim=-1)
