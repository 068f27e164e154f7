"""Raw regions -> checked regions of a sample, with a tight box around each mask; or the reason why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from medpclip.data.readers import Fault, RawRegion
from medpclip.data.schema import Region, region_problem, rle_bytes, run_lengths

_ROUNDING = 1.0  # pixels by which published coordinates may leave the image without being doubted


class RegionError(Exception):
    """A region that can't be used; the message is "reason" or "reason: private detail", as in `region_problem`."""


def make_region(raw: RawRegion, number: int, term: str, size: tuple[int, int], reader: str) -> Region | Fault:
    """Check one raw region of an image and bring it into the schema's form.

    Args:
        raw: as the reader found it.
        number: the id it gets.
        term: what its label means.
        size: (width, height) of the image.
        reader: the reader's name.
    """
    try:
        region = Region(number, term, points=raw.points, iscrowd=raw.iscrowd, source_format=reader)
        width, height = size
        if raw.bbox is not None:  # judged even if a mask gives a better one: where it is wrong, so may the mask be
            region.bbox = _clip(raw.bbox, width, height)
            _judge(region, width, height)
        region.segmentation = _mask(raw, width, height)
        if region.segmentation is not None:
            region.bbox = _mask_box(region.segmentation)
        _judge(region, width, height)
        return region
    except RegionError as fault:
        reason, _, detail = str(fault).partition(": ")
        return Fault(raw.file, raw.key, reason, detail, regions=1)


def check_runs(runs: Any, width: int, height: int) -> None:
    """Raise `RegionError` unless run lengths are whole numbers >= 0 that add up to the mask's pixels."""
    if not all(isinstance(run, int) and not isinstance(run, bool) and run >= 0 for run in runs):
        raise RegionError("run lengths are broken: a run is not a whole number >= 0")
    if sum(runs) != width * height:
        raise RegionError(f"run lengths are broken: they cover {sum(runs)} pixels of {width * height}")


def _judge(region: Region, width: int, height: int) -> None:
    problem = region_problem(region, width, height)
    if problem:
        raise RegionError(problem)


def _clip(bbox: Any, width: int, height: int) -> Any:
    """A box that leaves the image by no more than rounding, clipped to it; any other as it is."""
    try:
        x, y, w, h = (float(value) for value in bbox)
    except (TypeError, ValueError, OverflowError):
        return bbox
    # Strings that look like numbers are a wrong type, and are left for `region_problem` to refuse.
    if any(isinstance(value, (str, bool)) for value in bbox) or not all(map(math.isfinite, (x, y, w, h))):
        return list(bbox)
    if w <= 0 or h <= 0 or min(x, y) < -_ROUNDING or x + w > width + _ROUNDING or y + h > height + _ROUNDING:
        return [x, y, w, h]
    left, top = max(x, 0.0), max(y, 0.0)
    return [left, top, min(x + w, width) - left, min(y + h, height) - top]


def _mask(raw: RawRegion, width: int, height: int) -> dict[str, Any] | None:
    if raw.polygons is not None:
        return _from_polygons(raw.polygons, width, height)
    if raw.rle is not None:
        return _from_rle(raw.rle, width, height)
    return None


def _from_rle(rle: Any, width: int, height: int) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise RegionError("mask is not run lengths: expected 'size' and 'counts'")
    if not isinstance(rle["size"], list) or rle["size"] != [height, width]:
        raise RegionError(f"mask is of another size than the image: {rle['size']!r}, expected [{height}, {width}]")
    counts = rle["counts"]
    if not isinstance(counts, list):
        try:
            run_lengths(counts, width * height)
        except ValueError as error:
            problem = str(error)
            raise RegionError(problem) from None
        return {"size": [height, width], "counts": counts}
    check_runs(counts, width, height)
    return _as_text(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def _from_polygons(polygons: Any, width: int, height: int) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    if not isinstance(polygons, list) or not polygons:
        raise RegionError(f"polygon is not a list of numbers: {type(polygons).__name__}")
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and -math.inf < v < math.inf for v in polygon
        ):
            raise RegionError("polygon is not a list of numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            raise RegionError(f"polygon has fewer than three points: {len(polygon)} numbers")
        for values, limit in ((polygon[0::2], width), (polygon[1::2], height)):
            if min(values) < -_ROUNDING or max(values) > limit + _ROUNDING:
                raise RegionError(f"polygon reaches outside the image: {min(values)} to {max(values)} of 0 to {limit}")
    return _as_text(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def _as_text(rle: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _mask_box(segmentation: dict[str, Any]) -> list[float]:
    from pycocotools import mask as coco_mask

    box = [float(v) for v in coco_mask.toBbox(rle_bytes(segmentation))]
    if box[2] <= 0 or box[3] <= 0:
        raise RegionError("mask is empty")
    return box
