"""Captions: one or two sentences that name the look and what is in the picture."""

from __future__ import annotations

from collections import Counter

import numpy as np

_OPENINGS = (
    "{look} showing {things}.",
    "{look} with {things}.",
    "A synthetic {look}: {things}.",
    "In this {look} there are {count} findings: {things}.",
    "{count} findings in {a_look}, namely {things}.",
    "The picture is {a_look}. It holds {things}.",
)
_ARTEFACTS = (" A {artefact} crosses the view.", " A {artefact} covers part of the image.")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def captions(rng: np.random.Generator, look: str, categories: list[str], artefact: str) -> list[str]:
    """One caption; the things are named in random order, an artefact in half of the images that have one."""
    counts = Counter(categories)
    names = [list(counts)[i] for i in rng.permutation(len(counts))]
    things = _join([_counted(name, counts[name]) for name in names])
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    text = opening.format(look=look, a_look=_a(look), things=things, count=_NUMBERS[len(categories)])
    if artefact != "none" and rng.random() < 0.5:
        text += _ARTEFACTS[int(rng.integers(len(_ARTEFACTS)))].format(artefact=artefact)
    return [text[0].upper() + text[1:]]


def _counted(name: str, count: int) -> str:
    return f"{_NUMBERS[count]} {_plural(name)}" if count > 1 else _a(name)


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _plural(name: str) -> str:
    if name.endswith("y"):
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
