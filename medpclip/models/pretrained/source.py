"""What a source of weights gives."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from medpclip.errors import MedpclipError
from medpclip.models.tensors import first_line

Colour = tuple[float, float, float]  # of RGB in [0, 1]


@dataclass(frozen=True)
class Pretrained:
    """An open_clip model as its source has it.

    Attributes:
        architecture: open_clip's model config, see `medpclip.models.architecture`.
        source: how messages name it.
        tensors: under open_clip's names; None for random weights.
        mean, std: of RGB in [0, 1], as the weights were trained with.
        tokenizer_folder: has the files of a Hugging Face tokenizer; None where the architecture says enough.
    """

    architecture: Mapping[str, Any]
    source: str
    tensors: dict[str, Tensor] | None = None
    mean: Colour = open_clip.OPENAI_DATASET_MEAN
    std: Colour = open_clip.OPENAI_DATASET_STD
    tokenizer_folder: Path | None = None


def colour(values: Any) -> Colour:
    """Three finite numbers.

    Raises:
        ValueError, TypeError: they aren't.
    """
    red, green, blue = (float(value) for value in values)
    if not all(math.isfinite(value) for value in (red, green, blue)):
        raise ValueError(f"{values!r} aren't three numbers")
    return red, green, blue


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        MedpclipError: unreadable, or something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MedpclipError(f"{path}: unreadable ({first_line(error)}); copy it again") from None
    if not isinstance(content, dict):
        raise MedpclipError(f"{path}: no JSON object; copy it again")
    return content
