"""The report's pictures: loss curves, confusion matrices, prompted images. All readable in black and white."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import PromptKind
from medpclip.evaluation.zero_shot import Case, region_prompt

_CURVES = {"loss": ("-", 2.0), "loss_image": ("--", 1.2), "loss_region": (":", 1.8)}
_COUNTS_UP_TO = 30  # classes; beyond, the counts would not be readable
_LIGHT, _DARK = (255, 255, 255), (0, 0, 0)


def data_uri(data: bytes, kind: str) -> str:
    """Image bytes as a URI that stands in the page itself; `kind` as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def loss_curves(log: Sequence[dict[str, Any]]) -> bytes | None:
    """PNG of the losses over the steps, each told by its line style; None where the log has none.

    Args:
        log: rows with "step" and any of "loss", "loss_image", "loss_region"; others are passed over.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    drawn = False
    for name, (style, width) in _CURVES.items():
        points = [(row["step"], row[name]) for row in log if _is_number(row.get("step")) and _is_number(row.get(name))]
        if points:
            steps, values = _averaged(np.array(points, float))
            axes.plot(steps, values, style, color="black", linewidth=width, label=name.replace("_", " "))
            drawn = True
    if not drawn:
        return None
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def confusion_picture(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """PNG: rows are the true class, darkness the share of the row, figures the counts."""
    from matplotlib.figure import Figure

    counts = np.asarray(confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.32 * len(classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(ticks, [f"{c} ({n})" for c, n in zip(classes, counts.sum(axis=1), strict=True)], fontsize=8)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class (count)")
    if len(classes) <= _COUNTS_UP_TO:
        for i, j in np.argwhere(counts > 0):
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=6)
    return _png(figure)


def prompted_picture(case: Case, kind: PromptKind, seed: int, size: int = 320) -> bytes:
    """JPEG of the case's image, longer side `size`, with the prompt drawn in white on black, to show on any ground."""
    image = case.item.image()
    height, width = image.shape[:2]
    scale = size / max(width, height)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    assert case.region is not None
    if kind == "box" and case.region.bbox is not None:
        x, y, w, h = (v * scale for v in case.region.bbox)
        for grow, colour in ((2, _DARK), (1, _LIGHT), (0, _LIGHT), (-1, _DARK)):
            low = (x - grow, y - grow)
            pen.rectangle((*low, max(low[0], x + w + grow), max(low[1], y + h + grow)), outline=colour)
    elif kind == "mask" and (mask := case.region.mask()) is not None:
        picture = _contoured(picture, mask)
    elif kind == "point":
        window = Window.whole(width, height)
        prompt = region_prompt(case, kind, 1, seed)
        for x, y in (prompt.points * window.side + (window.left, window.top)) * scale:
            for radius, line, colour in ((10, 6, _DARK), (9, 3, _LIGHT)):
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=line - 1)
                pen.line((x - 4, y, x + 4, y), fill=colour, width=line - 1)
                pen.line((x, y - 4, x, y + 4), fill=colour, width=line - 1)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _contoured(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    inside = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
    core, wide = ~_grown(~inside), _grown(inside)
    pixels = np.array(picture)
    pixels[wide & ~core] = _LIGHT
    pixels[_grown(wide) & ~wide] = _DARK
    return Image.fromarray(pixels)


def _grown(mask: np.ndarray) -> np.ndarray:
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def _averaged(points: np.ndarray, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) steps and values, as means over `count` stretches where there are more."""
    parts = np.array_split(points, min(count, len(points)))
    return np.array([p[:, 0].mean() for p in parts]), np.array([p[:, 1].mean() for p in parts])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    # Without the software's version and date the same figures give the same bytes.
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()
