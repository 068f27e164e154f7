"""What people give to the Python interface -> checked arrays: words, pictures, regions.

Whatever can't be used is a `MedpclipError` that names the argument, what it is and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from medpclip.data import pictures
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import RegionPrompt
from medpclip.errors import MedpclipError
from medpclip.evaluation.task import fill_ins

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor

_SLACK = 0.5  # pixels: boxes are often rounded outwards
_REGION_KEYS = ("box", "points", "labels", "mask")


def read_labels(labels: Sequence[str]) -> list[str]:
    """One or more different, non-empty strings."""
    return _words("labels", labels)


def read_templates(templates: Sequence[str]) -> list[str]:
    """One or more different texts, each with the fill-in {name} and no other."""
    words = _words("templates", templates)
    for template in words:
        try:
            names = fill_ins(template)
        except ValueError as error:
            raise MedpclipError(f"templates: {template!r} is malformed ({error}); write it like 'a {{name}}'") from None
        if names != {"name"}:
            raise MedpclipError(f"templates: {template!r} must have the fill-in {{name}} and no other")
    return words


def _words(name: str, words: Any) -> list[str]:
    if isinstance(words, str) or not hasattr(words, "__iter__"):
        raise MedpclipError(f"{name}: {_shown(words)} is no list; give a list of strings")
    words = list(words)
    if not words:
        raise MedpclipError(f"{name}: the list is empty; give at least one")
    for i, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise MedpclipError(f"{name}: {_shown(word)} is no text; give non-empty strings")
        if word in words[:i]:
            raise MedpclipError(f"{name}: {word!r} is given twice; keep one")
    return words


def _shown(value: Any) -> str:
    """A value in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_picture(image: Picture) -> np.ndarray:
    """Any picture, as `medpclip.api.Model` describes them -> uint8 (height, width, 3)."""
    if isinstance(image, (str, Path)):
        pixels = _read_file(Path(image))
    elif isinstance(image, Image.Image):
        pixels = _read_pil(image)
    elif isinstance(image, np.ndarray):
        pixels = _to_8_bits(image)
    elif isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise MedpclipError(f"image: the tensor is {tuple(image.shape)}, expected (3, H, W), one image at a time")
        pixels = _to_8_bits(image.detach().permute(1, 2, 0).cpu().float().numpy() if image.is_floating_point()
                            else image.permute(1, 2, 0).cpu().numpy())  # fmt: skip
    else:
        raise MedpclipError(f"image: {type(image).__name__} is no picture; give a path, PIL image, array or tensor")
    if 0 in pixels.shape:
        raise MedpclipError(f"image: its shape is {pixels.shape}, so it has no pixels; give another")
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def _read_file(path: Path) -> np.ndarray:
    if not path.is_file():
        raise MedpclipError(f"{path}: no such image file; check the path")
    try:
        return pictures.read_picture(path).pixels
    except pictures.PictureError as error:
        detail = f" ({error.detail})" if error.detail else ""
        raise MedpclipError(f"{path}: {error.reason}{detail}; open it yourself and give a PIL image") from None


def _read_pil(image: Image.Image) -> np.ndarray:
    try:
        orientation = image.getexif().get(pictures.ORIENTATION_TAG, 1)
        if image.mode in pictures.DEEP_MODES:
            pixels = pictures.reduce_depth(np.asarray(image), 16)[0]
        else:
            pixels = np.asarray(image.convert("RGB"))
    except (*pictures.DECODING_ERRORS, pictures.PictureError) as error:
        raise MedpclipError(f"image: the PIL image can't be read ({_shown(error)}); give another") from None
    if orientation in range(2, 9):
        # Nobody knows whether boxes were drawn on the pixels as stored or on the picture as shown.
        raise MedpclipError("image: is turned by its EXIF orientation; give PIL.ImageOps.exif_transpose(image)")
    return pixels


def _to_8_bits(array: np.ndarray) -> np.ndarray:
    """(H, W[, C]) of uint8, or of floats in [0, 1] -> uint8."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise MedpclipError(f"image: the array is {array.shape}, expected (H, W), (H, W, 3) or (H, W, 4)")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise MedpclipError(f"image: its values are {array.dtype}; window them to uint8, or to floats in [0, 1]")
    if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise MedpclipError(
            f"image: float values run from {array.min():g} to {array.max():g}, expected [0, 1]; window them first"
        )
    return np.rint(array * 255).astype(np.uint8)


def read_regions(
    boxes: Any, points: Any, masks: Any, regions: Any, size: tuple[int, int], grid: int
) -> list[RegionPrompt]:
    """Regions, as `medpclip.api.Model` describes them -> prompts in unit coordinates of the padded picture.

    Args:
        boxes, points, masks, regions: exactly one of them is not None.
        size: (height, width) of the picture.
        grid: side of the mask grid.
    """
    window = Window.whole(size[1], size[0])
    return [_prompt(region, where, window, size, grid) for where, region in _one_way(boxes, points, masks, regions)]


def _one_way(boxes: Any, points: Any, masks: Any, regions: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The regions as (how messages name it, keys as in `regions`)."""
    ways = {"boxes": boxes, "points": points, "masks": masks, "regions": regions}
    given = {name: value for name, value in ways.items() if value is not None}
    if not given:
        raise MedpclipError("no region is given; give boxes, points, masks or regions")
    if len(given) > 1:
        raise MedpclipError(
            f"{' and '.join(given)} are both given; combine them in regions=[{{'box': ..., 'mask': ...}}]"
        )
    ((name, value),) = given.items()
    if isinstance(value, (str, Mapping)) or not hasattr(value, "__len__"):
        raise MedpclipError(f"{name}: {_shown(value)} given, expected a list with one entry per region")
    if len(value) == 0:
        raise MedpclipError(f"{name}: the list is empty; leave it out to ask for the whole image")
    if name == "regions":
        return [(f"regions[{i}]", region) for i, region in enumerate(value)]
    key = {"boxes": "box", "points": "points", "masks": "mask"}[name]
    return [(f"{name}[{i}]", {key: [entry] if key == "points" else entry}) for i, entry in enumerate(value)]


def _prompt(region: Any, where: str, window: Window, size: tuple[int, int], grid: int) -> RegionPrompt:
    height, width = size
    if not isinstance(region, Mapping):
        raise MedpclipError(f"{where}: {_shown(region)} given, expected a mapping of {', '.join(_REGION_KEYS)}")
    if unknown := [key for key in region if key not in _REGION_KEYS]:
        raise MedpclipError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_REGION_KEYS)}")
    known = {key: value for key, value in region.items() if value is not None}
    prompt = RegionPrompt()
    if "box" in known:
        prompt.box = window.unit_box(_box(known["box"], where, width, height))
    if "mask" in known:
        prompt.mask = window.coverage(_mask(known["mask"], where, width, height), grid)
    if "points" in known or "labels" in known:
        points, prompt.labels = _points(known.get("points"), known.get("labels"), where, width, height)
        prompt.points = window.unit_points(points)
    if prompt.box is None and prompt.mask is None and 1 not in prompt.labels:
        raise MedpclipError(f"{where}: nothing points at the region; give a box, a mask or a point with label 1")
    return prompt


def _box(value: Any, where: str, width: int, height: int) -> list[float]:
    """[x1, y1, x2, y2] -> [x, y, width, height], inside the image."""
    x1, y1, x2, y2 = _row(value, 4, f"{where}: box", "[x1, y1, x2, y2]")
    if x2 <= x1 or y2 <= y1:
        raise MedpclipError(f"{where}: box {[x1, y1, x2, y2]} is empty; x1 < x2 and y1 < y2 are needed")
    if x1 < -_SLACK or y1 < -_SLACK or x2 > width + _SLACK or y2 > height + _SLACK:
        raise MedpclipError(
            f"{where}: box {[x1, y1, x2, y2]} reaches outside the image, which is {width}x{height}; clip it"
        )
    left, top = max(x1, 0.0), max(y1, 0.0)
    return [left, top, min(x2, width) - left, min(y2, height) - top]


def _points(points: Any, labels: Any, where: str, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) in pixels and their labels (n,)."""
    if points is None or not hasattr(points, "__len__") or len(points) == 0:
        raise MedpclipError(f"{where}: points are missing; give a list of (x, y)")
    rows = [_row(point, 2, f"{where}: point", "(x, y)") for point in points]
    for x, y in rows:
        if not (0 <= x <= width and 0 <= y <= height):
            raise MedpclipError(f"{where}: point {(x, y)} lies outside the image, which is {width}x{height}; move it")
    given = [1] * len(rows) if labels is None else list(labels) if hasattr(labels, "__iter__") else []
    if len(given) != len(rows) or any(label not in (0, 1) for label in given):
        raise MedpclipError(
            f"{where}: labels are {_shown(labels)}, expected 1 (on the region) or 0 (off it) for each point"
        )
    return np.array(rows, np.float32), np.array([int(label) for label in given], np.int64)


def _row(value: Any, count: int, where: str, expected: str) -> list[float]:
    try:
        row = np.asarray(value.cpu() if isinstance(value, Tensor) else value, np.float64)
    except (TypeError, ValueError):
        row = np.empty(0)
    if row.shape != (count,) or not np.isfinite(row).all():
        raise MedpclipError(f"{where} is {_shown(value)}, expected {count} finite numbers {expected} in pixels")
    return row.tolist()


def _mask(value: Any, where: str, width: int, height: int) -> np.ndarray:
    try:
        mask = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
    except ValueError:  # rows of different lengths
        mask = np.empty(0)
    if mask.shape != (height, width):
        raise MedpclipError(f"{where}: mask is {mask.shape}, expected (H, W) = {(height, width)}, that of the image")
    if mask.dtype != bool:
        values = np.unique(mask) if mask.dtype.kind in "iuf" else np.empty(0)
        if len(values) not in (1, 2) or (len(values) == 2 and values[0] != 0) or not np.isfinite(values).all():
            raise MedpclipError(f"{where}: mask has other values than 0 and one more; give one mask per region")
    if not mask.any():
        raise MedpclipError(f"{where}: mask is empty; leave the region out")
    return mask.astype(bool)
