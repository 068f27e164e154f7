"""What a phantom's regions can be. The two kinds of a pair are one entry with one field changed, so nothing else differs."""

from __future__ import annotations

from dataclasses import dataclass, replace

Colour = tuple[float, ...]

CT, RADIOGRAPH, ULTRASOUND = "CT phantom", "radiograph phantom", "ultrasound phantom"
HISTOLOGY, ENDOSCOPY = "histology phantom", "endoscopy phantom"


@dataclass(frozen=True)
class Kind:
    """How one category is drawn.

    Attributes:
        category: the term.
        look: the kind of image that it occurs in.
        zone: the part of the picture that its regions lie in, a name that the look defines.
        shape: outline, of `shapes.FREE_SHAPES` or `shapes.SOLVED_SHAPES`.
        tone: mean colour 0..1, one value (grey) or three (RGB).
        texture: pattern, of `textures.PATTERNS`.
        period: the field of `Ranges` with the texture's period, or a fixed one in reference pixels.
        amplitude: half the texture's range of grey levels.
        scale: factor on the size of the box.
        limit: how many of them an image holds at most.
    """

    category: str
    look: str
    zone: str
    shape: str
    tone: Colour
    texture: str = "grain"
    period: str | float = 9.0
    amplitude: float = 0.03
    scale: float = 1.0
    limit: int = 2


_KIDNEY = Kind("left kidney insert", CT, "left flank", "bean", (0.72,), limit=1)
_OPACITY = Kind("upper zone opacity", RADIOGRAPH, "upper lung", "blob", (0.56,))
_SHADOW = Kind("ring shadow", RADIOGRAPH, "lung", "ring", (0.80,))
_CYST = Kind("near field cyst", ULTRASOUND, "near field", "blob", (0.06,))
_NODULE = Kind("fine grained nodule", ULTRASOUND, "sector", "blob", (0.62,), "grain", "fine_period", 0.30)
_GLAND = Kind("crescent gland", HISTOLOGY, "tissue", "crescent", (0.50, 0.30, 0.62))
_POLYP = Kind("striped polyp", ENDOSCOPY, "mucosa", "blob", (0.64, 0.42, 0.38), "stripes", "pattern_period", 0.30)

KINDS: tuple[Kind, ...] = (
    _KIDNEY,
    replace(_KIDNEY, category="right kidney insert", zone="right flank"),
    Kind("vertebra insert", CT, "spine", "vertebra", (0.95,), amplitude=0.05, scale=0.85, limit=1),
    Kind("air pocket", CT, "belly", "ragged", (0.08,), scale=0.85),
    Kind("calcified nodule", CT, "belly", "blob", (0.98,), scale=0.75),
    _OPACITY,
    replace(_OPACITY, category="lower zone opacity", zone="lower lung"),
    _SHADOW,
    replace(_SHADOW, category="lobed shadow", shape="trefoil"),
    Kind("metal plate", RADIOGRAPH, "chest", "square", (1.0,), amplitude=0.0, scale=0.75),
    _CYST,
    replace(_CYST, category="far field cyst", zone="far field"),
    _NODULE,
    replace(_NODULE, category="coarse grained nodule", period="coarse_period"),
    Kind("bright stone", ULTRASOUND, "sector", "ragged", (0.98,), scale=0.75),
    _GLAND,
    replace(_GLAND, category="stellate gland", shape="star"),
    Kind("fat vacuole", HISTOLOGY, "tissue", "blob", (0.98, 0.96, 0.97), amplitude=0.01, scale=0.8),
    Kind("red cell pool", HISTOLOGY, "tissue", "ragged", (0.80, 0.18, 0.20), "dots", 4.5, 0.06),
    Kind("lymphoid cluster", HISTOLOGY, "tissue", "blob", (0.28, 0.16, 0.48), "dots", 5.0, 0.14),
    _POLYP,
    replace(_POLYP, category="dotted polyp", texture="dots"),
    Kind("ulcer patch", ENDOSCOPY, "mucosa", "ragged", (0.95, 0.88, 0.62), amplitude=0.04),
    Kind("blood clot", ENDOSCOPY, "mucosa", "ragged", (0.36, 0.04, 0.05), amplitude=0.04, scale=0.85),
)
PAIRS: dict[str, list[tuple[str, str]]] = {
    "place": [
        ("left kidney insert", "right kidney insert"),
        ("upper zone opacity", "lower zone opacity"),
        ("near field cyst", "far field cyst"),
    ],
    "texture": [("fine grained nodule", "coarse grained nodule"), ("striped polyp", "dotted polyp")],
    "shape": [("crescent gland", "stellate gland"), ("ring shadow", "lobed shadow")],
}
CATEGORIES: tuple[str, ...] = tuple(kind.category for kind in KINDS)
LOOKS: tuple[str, ...] = (CT, RADIOGRAPH, ULTRASOUND, HISTOLOGY, ENDOSCOPY)


def kinds_of(look: str) -> list[Kind]:
    """The kinds that occur in images of a look."""
    return [kind for kind in KINDS if kind.look == look]
