"""DICOM RTSTRUCT: contours in millimetres of the patient -> regions of the image that each of them lies on.

All contours of one ROI on one image frame make one region, which is only as right as all of them: one broken contour
loses it. CLOSED_PLANAR contours give a mask, POINT ones a region of points; open contours are no region. A contour
belongs to the image that it names; where it names none, to the only one of its series or frame of reference in whose
slice it lies. It must lie in the plane of its image to half a slice.

A pixel is inside where its centre is. With `nested: hole` contours are combined by the even-odd rule: one inside
another is a hole, as the standard now says explicitly with CLOSEDPLANAR_XOR (PS3.3 C.8.8.6.3), and a "keyhole" (an
outline that runs along a channel to the hole and back) comes out the same. With `nested: fill` CLOSED_PLANAR contours
are united.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medpclip.data.pictures.dicom_headers import HeaderError, items, number, read_header, text
from medpclip.data.readers.base import Fault, RawRegion
from medpclip.data.readers.dicom.planes import Atlas, ImageFile, Plane, UnplacedError
from medpclip.data.schema import encode_mask

if TYPE_CHECKING:
    from pydicom import Dataset

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_ROUNDING = 1.0  # pixels by which a contour may leave the image without being doubted


@dataclass(frozen=True)
class RtRegion:
    """The contours of one ROI on one frame of an image.

    Attributes:
        file: the RTSTRUCT, relative to the source.
        roi: position in its ROI Contour Sequence, from 0.
        contours: positions in that ROI's Contour Sequence, from 0.
        closed: outlines of a mask, or else points.
        label: the ROI's name, "" where it has none.
        metadata: what else is said of the ROI, for recipes.
        target: frame of the image, from 0.
    """

    file: str
    roi: int
    contours: tuple[int, ...]
    closed: bool
    label: str
    metadata: dict[str, str]
    target: int

    @property
    def key(self) -> str:
        return f"ROIContourSequence[{self.roi}]"


def place_rtstruct(file: str, header: Dataset, atlas: Atlas) -> tuple[dict[str, list[RtRegion]], list[Fault]]:
    """Image file -> the regions of an RTSTRUCT on it; and a fault for each ROI and reason why others are on none."""
    described = {int(number(item, "ROINumber") or 0): item for item in items(header, "StructureSetROISequence")}
    observed = {int(number(o, "ReferencedROINumber") or 0): o for o in items(header, "RTROIObservationsSequence")}
    series = _series(header)
    placed: dict[str, list[RtRegion]] = defaultdict(list)
    faults: list[Fault] = []
    for i, roi in enumerate(items(header, "ROIContourSequence")):
        roi_number = int(number(roi, "ReferencedROINumber") or 0)
        description = described.get(roi_number)
        space = text(description, "ReferencedFrameOfReferenceUID") if description is not None else ""
        found, lost = _place_contours(roi, atlas, series, space)
        label, metadata = _facts(description, observed.get(roi_number))
        for (image, frame, closed), contours in found.items():
            placed[image].append(RtRegion(file, i, tuple(contours), closed, label, metadata, frame))
        for reason, regions in lost.items():
            faults.append(Fault(file, f"ROIContourSequence[{i}]", reason, regions=len(regions)))
    return placed, faults


def count_rtstruct(header: Dataset) -> int:
    """How many regions an RTSTRUCT holds if each (ROI, named image) is one, and each contour that names none."""
    _, faults = place_rtstruct("", header, Atlas([]))
    return sum(fault.regions for fault in faults)


def _place_contours(
    roi: Dataset, atlas: Atlas, series: list[str], space: str
) -> tuple[dict[tuple[str, int, bool], list[int]], dict[str, set[tuple[object, ...]]]]:
    """(image file, frame, closed) -> contours there; and reason -> the regions that are lost."""
    found: dict[tuple[str, int, bool], list[int]] = defaultdict(list)
    lost: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for j, contour in enumerate(items(roi, "ContourSequence")):
        kind = text(contour, "ContourGeometricType").upper()
        named = _named(contour)
        if kind not in (*_CLOSED, "POINT"):
            lost["contour is neither closed and planar nor a point"].add((j,))
            continue
        try:
            image, frame = _place(contour, named, atlas, series, space)
            found[(image.file, frame, kind != "POINT")].append(j)
        except UnplacedError as error:
            lost[str(error)].add((tuple(named), kind != "POINT") if named else (j,))
    return found, lost


def _place(
    contour: Dataset, named: list[tuple[str, int | None]], atlas: Atlas, series: list[str], space: str
) -> tuple[ImageFile, int]:
    if named:
        known = [(atlas.by_instance[uid], frame) for uid, frame in named if uid in atlas.by_instance]
        if not known:
            raise UnplacedError("image that the annotation names is missing")
        if len(known) == 1:
            image, stated = known[0]
            frame = 0 if stated is None and image.frames == 1 else stated
            if frame is not None:
                if not 0 <= frame < image.frames:
                    raise UnplacedError("annotation names a frame that its image doesn't have")
                return image, frame
        images = [image for image, _ in known]
    else:
        images = [image for uid in series for image in atlas.by_series.get(uid, [])]
        images = images or atlas.by_frame_of_reference.get(space, [])
    points = _points(contour)
    if points is None:
        raise UnplacedError("contour has broken coordinates")
    candidates = atlas.near(images, points)
    if len(candidates) != 1:
        raise UnplacedError("annotation fits several images" if candidates else "annotation lies on none of the images")
    return candidates[0]


def _named(contour: Dataset) -> list[tuple[str, int | None]]:
    """UIDs of the images that a contour names, with the frame (from 0) where it is stated."""
    found = []
    for item in items(contour, "ContourImageSequence"):
        frame = number(item, "ReferencedFrameNumber")
        found.append((text(item, "ReferencedSOPInstanceUID"), None if frame is None else int(frame) - 1))
    return [(uid, frame) for uid, frame in found if uid]


def _series(header: Dataset) -> list[str]:
    uids = [
        text(series, "SeriesInstanceUID")
        for space in items(header, "ReferencedFrameOfReferenceSequence")
        for study in items(space, "RTReferencedStudySequence")
        for series in items(study, "RTReferencedSeriesSequence")
    ]
    return [uid for uid in dict.fromkeys(uids) if uid]


def _facts(description: Dataset | None, observation: Dataset | None) -> tuple[str, dict[str, str]]:
    facts = {}
    if description is not None:
        facts = {keyword: text(description, keyword) for keyword in ("ROIName", "ROIGenerationAlgorithm")}
    if observation is not None:
        facts["RTROIInterpretedType"] = text(observation, "RTROIInterpretedType")
    return facts.get("ROIName", ""), {name: value for name, value in facts.items() if value}


def read_rtstruct(
    path: Path, regions: Sequence[RtRegion], image: ImageFile, nested: str
) -> Iterator[tuple[int, RawRegion | Fault]]:
    """The regions of one RTSTRUCT on one image file, each with the frame of the image."""
    try:
        rois = items(read_header(path, ["ROIContourSequence", "SpecificCharacterSet"]), "ROIContourSequence")
    except HeaderError as error:
        reason = "DICOM file can't be read"
        yield from ((r.target, Fault(r.file, r.key, reason, str(error), regions=1)) for r in regions)
        return
    for region in regions:
        try:
            contours = items(rois[region.roi], "ContourSequence")
            found = _region(region, [contours[j] for j in region.contours], image, nested)
        except UnplacedError as error:
            yield region.target, Fault(region.file, region.key, str(error), regions=1)
        else:
            found.metadata = dict(region.metadata)
            yield region.target, found


def _region(region: RtRegion, contours: Sequence[Dataset], image: ImageFile, nested: str) -> RawRegion:
    if not region.label:
        raise UnplacedError("region without a label")
    plane = image.planes[region.target]
    if plane is None:
        raise UnplacedError("image of the contour doesn't state where it lies")
    limit = image.gap(region.target) / 2
    outlines = [_in_pixels(contour, plane, limit) for contour in contours]
    if not region.closed:
        points = [point for outline in outlines for point in outline.tolist()]
        return RawRegion(region.label, region.file, region.key, points=points)
    for outline in outlines:
        if len(outline) < 3:
            raise UnplacedError("polygon has fewer than three points")
        if outline.min() < -_ROUNDING or (outline > np.array(image.size) + _ROUNDING).any():
            raise UnplacedError("polygon reaches outside the image")
    mask = _combine(outlines, contours, image.size, nested)
    if not mask.any():
        raise UnplacedError("contour surrounds no pixel's centre")
    return RawRegion(region.label, region.file, region.key, rle=encode_mask(mask))


def _combine(
    outlines: Sequence[np.ndarray], contours: Sequence[Dataset], size: tuple[int, int], nested: str
) -> np.ndarray:
    width, height = size
    xor = [nested == "hole" or text(c, "ContourGeometricType").upper() == "CLOSEDPLANAR_XOR" for c in contours]
    together = [outline for outline, odd in zip(outlines, xor, strict=True) if odd]
    alone = [outline for outline, odd in zip(outlines, xor, strict=True) if not odd]
    mask = rasterise(together, height, width)
    for outline in alone:
        mask |= rasterise([outline], height, width)
    return mask


def _in_pixels(contour: Dataset, plane: Plane, limit: float) -> np.ndarray:
    points = _points(contour)
    if points is None:
        raise UnplacedError("contour has broken coordinates")
    pixels, distances = plane.to_pixels(points)
    if distances.max() > limit:
        raise UnplacedError("contour lies outside the plane of its image")
    return pixels


def _points(contour: Dataset) -> np.ndarray | None:
    """Points in the patient, (N, 3) in millimetres; None where they are broken."""
    element = contour.get_item("ContourData") if "ContourData" in contour else None
    raw = getattr(element, "value", None)
    try:
        # pydicom would make an object of each number.
        values = np.array(raw.split(b"\\") if isinstance(raw, bytes) else raw, np.float64)
    except (TypeError, ValueError):
        return None
    stated = number(contour, "NumberOfContourPoints")
    if values.ndim != 1 or not values.size or values.size % 3 or not np.isfinite(values).all():
        return None
    return values.reshape(-1, 3) if stated is None or stated * 3 == values.size else None


def rasterise(outlines: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The pixels whose centres are inside an odd number of closed outlines; those outside the grid are cut off.

    Every edge flips all pixels to the right of where it crosses a row of centres (the scan-line rule; our own code). A
    centre exactly on an edge belongs to the side that has it on its left or top, so that outlines which share an edge
    share no pixel.

    Args:
        outlines: [x, y] in pixels, (N, 2) each; the last point joins the first.
        height: of the grid.
        width: of the grid.

    Returns:
        bool (height, width).
    """
    flips = np.zeros((height, width + 1), np.uint8)
    for outline in outlines:
        ahead = np.roll(outline, -1, axis=0)
        for (x0, y0), (x1, y1) in zip(outline.tolist(), ahead.tolist(), strict=True):
            if y0 > y1:  # the same direction always, so that a shared edge is rounded alike for both outlines
                x0, y0, x1, y1 = x1, y1, x0, y0
            start, stop = max(int(np.ceil(y0 - 0.5)), 0), min(int(np.ceil(y1 - 0.5)), height)
            if start >= stop:
                continue
            rows = np.arange(start, stop)
            crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
            flips[rows, columns] ^= 1
    return np.logical_xor.accumulate(flips[:, :width].astype(bool), axis=1)
