"""The five backgrounds, and where in them regions may lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from medpclip.data.phantom import kinds
from medpclip.data.phantom.fields import Array, Frame, blur_plane, ellipse, smooth_noise, soft_step
from medpclip.data.phantom.ranges import Acquisition

Box = tuple[float, float, float, float]


@dataclass
class Scene:
    """A background to draw regions on.

    Attributes:
        canvas: float32 (height, width, 1 or 3), values about 0..1.
        base: the tissue's mean colour, which `contrast` is counted from.
        zones: per zone name, the box (x0, y0, x1, y1) that centres are drawn from and the area bool (height, width) that a
            region's ellipse must not leave.
        shading: factor on the finished picture (height, width), or None.
        speckle: factor on the noise.
    """

    canvas: Array
    base: tuple[float, ...]
    zones: dict[str, tuple[Box, Array]]
    shading: Array | None = None
    speckle: float = 1.0


def ct(rng: np.random.Generator, frame: Frame, look: Acquisition) -> Scene:
    """A body's cross-section on a table, spine down, seen from the feet: the patient's left is on the picture's right."""
    w, h, unit = frame.width, frame.height, frame.unit
    x, y = frame.grid()
    cx, cy = w * rng.uniform(0.47, 0.53), h * rng.uniform(0.44, 0.49)
    rx, ry = w * rng.uniform(0.44, 0.465), h * rng.uniform(0.385, 0.42)
    body = ellipse(x, y, cx, cy, rx, ry, 2.3)
    inner = body - 4.5 * unit
    organs = soft_step(smooth_noise(rng, h, w, 1.2 * look.structure * unit), 0.25)  # smooth patches with clear borders
    tissue = 0.44 + 0.06 * organs + 0.02 * smooth_noise(rng, h, w, 4.0 * unit)
    plane = 0.03 + 0.26 * soft_step(body, 1.5 * unit)
    plane += (tissue - 0.29) * soft_step(inner, 1.5 * unit)
    for angle in np.linspace(0.15, 2.0 * np.pi + 0.15, 14, endpoint=False):  # ribs
        if abs(np.sin(angle) - 1.0) < 0.2:
            continue
        px, py = cx + (rx - 7 * unit) * np.cos(angle), cy + (ry - 7 * unit) * np.sin(angle)
        _stamp(plane, px, py, 2.6 * unit, 0.4)
    table = y - (cy + ry + 3.0 * unit + 0.06 * (x - cx) ** 2 / w)
    plane += 0.5 * soft_step(1.6 * unit - np.abs(table), unit)
    canvas = blur_plane(plane, look.blur * unit)[:, :, None]
    room = inner > 2.0 * unit
    flank = (0.36 * rx, 0.64 * rx, 0.02 * ry, 0.42 * ry)
    zones: dict[str, tuple[Box, Array]] = {
        "right flank": ((cx - flank[1], cy + flank[2], cx - flank[0], cy + flank[3]), room),
        "left flank": ((cx + flank[0], cy + flank[2], cx + flank[1], cy + flank[3]), room),
        "spine": ((cx - unit, cy + 0.60 * ry, cx + unit, cy + 0.68 * ry), room),
        "belly": ((cx - 0.8 * rx, cy - 0.8 * ry, cx + 0.8 * rx, cy + 0.15 * ry), room),
    }
    return Scene(canvas, (0.47,), zones)


def radiograph(rng: np.random.Generator, frame: Frame, look: Acquisition) -> Scene:
    """A chest seen from the front: two dark lung fields crossed by ribs, the bright middle with the heart between them."""
    w, h, unit = frame.width, frame.height, frame.unit
    x, y = frame.grid()
    cx, cy = w * rng.uniform(0.48, 0.52), h * rng.uniform(0.48, 0.52)
    side, rx, ry = 0.25 * w, 0.215 * w, h * rng.uniform(0.41, 0.44)
    right, left = (ellipse(x, y, cx + s * side, cy, rx, ry, 2.8) for s in (-1, 1))
    lungs = np.maximum(right, left)
    plane = 0.66 + 0.05 * smooth_noise(rng, h, w, 2.5 * look.structure * unit)
    plane = plane - 0.42 * soft_step(lungs, 5.0 * unit)
    away = np.abs(x - cx) / w
    ribs = np.sin(2.0 * np.pi * (y - 0.35 * w * away**1.5) / (look.structure * unit) + rng.uniform(0.0, 6.28))
    plane += 0.09 * np.clip(ribs, 0.0, 1.0) * soft_step(ellipse(x, y, cx, cy, 0.49 * w, 0.49 * h, 2.8), 6.0 * unit)
    spine = np.exp(-(((x - cx) / (0.045 * w)) ** 2))
    plane += 0.13 * spine * (0.8 + 0.2 * np.sin(2.0 * np.pi * y / (0.7 * look.structure * unit)))
    air = soft_step(-ellipse(x, y, cx, h * 0.56, 0.52 * w, 0.62 * h, 3.5), 8.0 * unit)
    plane = plane * (1.0 - 0.85 * air)
    plane += 0.02 * smooth_noise(rng, h, w, 3.0 * unit)
    canvas = blur_plane(plane, look.blur * unit)[:, :, None]
    inside = lungs > 1.0 * unit
    box = (cx - side - rx, cy - ry, cx + side + rx, cy + ry)
    zones: dict[str, tuple[Box, Array]] = {
        "lung": (box, inside),
        "upper lung": (box, inside & (y < cy - 0.03 * h)),
        "lower lung": (box, inside & (y > cy + 0.03 * h)),
        "chest": (box, ellipse(x, y, cx, cy, 0.47 * w, 0.46 * h, 2.8) > 0),
    }
    return Scene(canvas, (0.28,), zones)


def ultrasound(rng: np.random.Generator, frame: Frame, look: Acquisition) -> Scene:
    """The fan of a curved probe, full of speckle, with layers at its own depths."""
    w, h, unit = frame.width, frame.height, frame.unit
    x, y = frame.grid()
    cx, apex = w * rng.uniform(0.48, 0.52), -h * rng.uniform(0.40, 0.50)
    near, far = 0.05 * h - apex, 0.97 * h - apex
    half = np.arctan2(0.56 * w, 0.72 * h - apex) * rng.uniform(0.97, 1.05)
    radius = np.sqrt((x - cx) ** 2 + (y - apex) ** 2)
    angle = np.arctan2(x - cx, y - apex)
    fan = np.minimum(np.minimum(radius - near, far - radius), radius * np.sin(half - np.abs(angle)))
    layers = np.sin(2.0 * np.pi * radius / (look.structure * unit) + 1.5 * smooth_noise(rng, h, w, 20.0 * unit))
    tissue = 0.33 + 0.04 * layers + 0.05 * smooth_noise(rng, h, w, look.structure * unit)
    speckle = 1.0 + 0.30 * smooth_noise(rng, h, w, 1.6 * unit, 2.2 * unit)
    plane = np.clip(tissue * speckle, 0.02, 1.0) * soft_step(fan, 1.5 * unit)
    canvas = blur_plane(plane, look.blur * unit)[:, :, None]
    room = fan > 2.0 * unit
    depth = (radius - near) / (far - near)
    box = (0.0, 0.0, float(w), float(h))
    zones: dict[str, tuple[Box, Array]] = {
        "sector": (box, room),
        "near field": ((0.0, 0.0, float(w), 0.55 * h), room & (depth < 0.46)),
        "far field": ((0.0, 0.45 * h, float(w), float(h)), room & (depth > 0.54)),
    }
    return Scene(canvas, (0.33,), zones, speckle=1.2)


def histology(rng: np.random.Generator, frame: Frame, look: Acquisition) -> Scene:
    """Pink stroma with wavy fibres and scattered purple nuclei."""
    w, h, unit = frame.width, frame.height, frame.unit
    x, y = frame.grid()
    turn = rng.uniform(0.0, np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    wave = along / (look.structure * unit) + 0.9 * smooth_noise(rng, h, w, 1.6 * look.structure * unit)
    fibre = np.sin(2.0 * np.pi * wave) + 0.6 * smooth_noise(rng, h, w, 3.0 * unit)
    plane = np.stack([0.93 + 0.025 * fibre, 0.71 + 0.07 * fibre, 0.82 + 0.04 * fibre], axis=2)
    nuclei = Image.new("L", (w * 2, h * 2))
    pen = ImageDraw.Draw(nuclei)
    for px, py, a, b in rng.uniform((0, 0, 0.8, 0.8), (w, h, 1.8, 1.8), (int(rng.integers(70, 130)), 4)) * 2:
        pen.ellipse((px - a * unit, py - b * unit, px + a * unit, py + b * unit), fill=230)
    cover = blur_plane(np.asarray(nuclei.reduce(2), dtype=np.float32) / 255.0, max(0.3, look.blur * unit))[:, :, None]
    canvas = plane.astype(np.float32) * (1.0 - cover) + np.array([0.42, 0.24, 0.56], dtype=np.float32) * cover
    zones: dict[str, tuple[Box, Array]] = {
        "tissue": ((0.0, 0.0, float(w), float(h)), np.ones((h, w), dtype=bool)),
    }
    return Scene(canvas, (0.93, 0.71, 0.82), zones)


def endoscopy(rng: np.random.Generator, frame: Frame, look: Acquisition) -> Scene:
    """Red, folded, wet mucosa with vessels, lit from the camera: dark towards the rim."""
    w, h, unit = frame.width, frame.height, frame.unit
    x, y = frame.grid()
    cx, cy = w * rng.uniform(0.46, 0.54), h * rng.uniform(0.46, 0.54)
    warp = smooth_noise(rng, h, w, 2.0 * look.structure * unit)
    distance = np.sqrt(((x - cx) / w) ** 2 + ((y - cy) / h) ** 2)
    folds = np.sin(2.0 * np.pi * (distance * frame.long / (1.8 * look.structure * unit) + 0.5 * warp))
    vessel = np.clip(1.0 - 9.0 * np.abs(smooth_noise(rng, h, w, 0.9 * look.structure * unit)), 0.0, 1.0)
    light = 1.0 + 0.07 * folds + 0.05 * warp
    plane = np.stack([0.80 * light - 0.10 * vessel, 0.40 * light - 0.14 * vessel, 0.34 * light - 0.09 * vessel], axis=2)
    shine = np.clip(3.0 * smooth_noise(rng, h, w, 5.0 * unit) - 6.6, 0.0, 1.0)[:, :, None]
    canvas = (plane * (1.0 - shine) + shine).astype(np.float32)
    rim = ellipse(x, y, w / 2, h / 2, 0.505 * w, 0.505 * h, 4.0)
    shading = (1.12 - 0.9 * distance**2) * soft_step(rim, 3.0 * unit)
    zones: dict[str, tuple[Box, Array]] = {"mucosa": ((0.0, 0.0, float(w), float(h)), rim > 2.0 * unit)}
    return Scene(canvas, (0.80, 0.40, 0.34), zones, shading=shading)


BACKGROUNDS: dict[str, Callable[[np.random.Generator, Frame, Acquisition], Scene]] = {
    kinds.CT: ct,
    kinds.RADIOGRAPH: radiograph,
    kinds.ULTRASOUND: ultrasound,
    kinds.HISTOLOGY: histology,
    kinds.ENDOSCOPY: endoscopy,
}


def _stamp(plane: Array, cx: float, cy: float, radius: float, value: float) -> None:
    """Add a soft disc in place."""
    reach = int(radius) + 2
    top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
    window = plane[top : int(cy) + reach + 1, left : int(cx) + reach + 1]
    y = np.arange(top, top + window.shape[0])[:, None] + 0.5
    x = np.arange(left, left + window.shape[1])[None, :] + 0.5
    window += value * soft_step(ellipse(x, y, cx, cy, radius, radius), 1.5)
