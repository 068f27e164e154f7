"""Things that lie over the picture and are not annotated: a tube, a marker, a shadow."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from medpclip.data.phantom.fields import Array, Frame

ARTEFACTS = ("none", "tube", "marker", "shadow")
MAX_COVERED = 0.25
_TRIES = 6
_SUPERSAMPLING = 2


def draw_artefact(
    rng: np.random.Generator, frame: Frame, name: str, canvas: Array, masks: list[Array]
) -> tuple[Array, str]:
    """Lay an artefact over the canvas so that it covers at most a quarter of each mask.

    Returns:
        The new canvas and the artefact's name: "none" where no place was found.
    """
    if name == "none":
        return canvas, name
    for _ in range(_TRIES):
        cover = _cover(rng, frame, name)
        hidden = cover > 0.3
        if all(hidden[mask].mean() <= MAX_COVERED for mask in masks):
            return _lay(cover, name, canvas), name
    return canvas, "none"


def _cover(rng: np.random.Generator, frame: Frame, name: str) -> Array:
    """Coverage float32 0..1 (height, width)."""
    w, h, unit = frame.width, frame.height, frame.unit
    scale = _SUPERSAMPLING
    picture = Image.new("L", (w * scale, h * scale))
    pen = ImageDraw.Draw(picture)
    if name == "marker":
        arm, cx, cy = rng.uniform(5.0, 7.0) * unit, rng.uniform(0.08, 0.92) * w, rng.uniform(0.08, 0.92) * h
        thick = 1.3 * unit
        for a, b in ((arm, thick), (thick, arm)):
            pen.rectangle([v * scale for v in (cx - a, cy - b, cx + a, cy + b)], fill=255)
        soft = 0.4 * unit
    else:
        # A bent band from edge to edge.
        start, end, bend = rng.uniform(0.0, 1.0, 3)
        t = np.linspace(-0.1, 1.1, 24)
        across = start + (end - start) * t + 0.5 * (bend - 0.5) * np.sin(np.pi * t)
        vertical = name == "shadow" or rng.random() < 0.5
        points = np.stack([across * w, t * h] if vertical else [t * w, across * h], axis=1)
        width, soft = (rng.uniform(4.0, 6.0), 0.4 * unit) if name == "tube" else (rng.uniform(7.0, 11.0), 1.5 * unit)
        pen.line(
            [(float(a), float(b)) for a, b in points * scale],
            fill=255,
            width=round(width * unit * scale),
            joint="curve",
        )
    return np.asarray(picture.reduce(scale).filter(ImageFilter.GaussianBlur(soft)), dtype=np.float32) / 255.0


def _lay(cover: Array, name: str, canvas: Array) -> Array:
    if name == "shadow":
        return canvas * (1.0 - 0.7 * cover)[:, :, None]
    # A tube is bright along its walls and dimmer inside.
    tone = 1.0 if name == "marker" else 0.62 + 0.5 * np.abs(2.0 * cover - 1.0)[:, :, None] * (cover < 0.98)[:, :, None]
    colour = np.array([0.35, 0.85, 0.95] if canvas.shape[2] == 3 else [0.95], dtype=np.float32)
    return canvas * (1.0 - cover)[:, :, None] + (tone * colour) * cover[:, :, None]
