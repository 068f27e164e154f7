"""The report's pictures: confusion matrices and prompted images. All readable in black and white."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from medpclip.data.loading.geometry import Window
from medpclip.evaluation.report.plots import plain, png
from medpclip.evaluation.scores import Case
from medpclip.evaluation.sections.cases import region_prompt

_COUNTS_UP_TO = 30  # classes; beyond, the counts would not be readable
_LIGHT, _DARK = (255, 255, 255), (0, 0, 0)


@dataclass
class Picture:
    """A figure of the page: `source` is a data URI, `text` stands in for it where it can't be seen."""

    source: str
    text: str
    caption: str


def data_uri(data: bytes, kind: str) -> str:
    """Image bytes as a URI that stands in the page itself; `kind` as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


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
    axes.set_xticks(ticks, [plain(c) for c in classes], rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(ticks, [f"{plain(c)} ({n})" for c, n in zip(classes, counts.sum(axis=1), strict=True)], fontsize=8)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class (count)")
    if len(classes) <= _COUNTS_UP_TO:
        for i, j in np.argwhere(counts > 0):
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=6)
    return png(figure)


def prompted_picture(case: Case, kind: str, seed: int, size: int = 320) -> bytes:
    """JPEG of the case's image, longer side `size`, with the prompt drawn in white on black, to show on any ground.

    Args:
        case: an image is shown as it is.
        kind: the prompt kind of a region.
        seed: of the task, for clicks.
        size: in pixels.
    """
    image = case.item.image()
    height, width = image.shape[:2]
    scale = size / max(width, height)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    if case.region is None:
        pass
    elif kind == "box" and case.region.bbox is not None:
        x, y, w, h = (v * scale for v in case.region.bbox)
        for grow, colour in ((2, _DARK), (1, _LIGHT), (0, _LIGHT), (-1, _DARK)):
            low = (x - grow, y - grow)
            pen.rectangle((*low, max(low[0], x + w + grow), max(low[1], y + h + grow)), outline=colour)
    elif kind == "mask" and (mask := case.region.mask()) is not None:
        picture = _contoured(picture, mask)
    elif kind in ("point", "scribble"):
        window = Window.whole(width, height)
        prompt = region_prompt(case, "point" if kind == "point" else "scribble", 1, seed)
        assert prompt is not None
        for x, y in (prompt.points * window.side + (window.left, window.top)) * scale:
            if kind == "scribble":
                pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_LIGHT, outline=_DARK)
                continue
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
