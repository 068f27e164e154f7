"""Where DICOM frames lie: their planes in the patient or tiles on the slide, and how that finds the frame of a region.

A frame's pixel (column c, row r; centres at whole numbers) lies at position + c * sx * x-direction + r * sy * y-direction
in millimetres of the patient (PS3.3 C.7.6.2.1.1). Our pixel coordinates have the first pixel's centre at (0.5, 0.5).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medpclip.data.pictures.dicom_headers import FrameGroups, frame_count, number, numbers, pixel_spacing, text

if TYPE_CHECKING:
    from pydicom import Dataset

_SAME_PLACE = 0.1  # of a pixel: planes closer than this are the same, farther ones aren't
_SAME_DIRECTION = 1e-3
_SAME_SPACING = 1e-3
_SAME_POSITION = 1e-3  # millimetres along the normal between two slices of a volume
_UNKNOWN_GAP = 1.0  # millimetres, where neither neighbours nor slice thickness are known


class UnplacedError(Exception):
    """A SEG frame or a contour that belongs to no image; the message is a fault's reason."""


@dataclass(frozen=True)
class Plane:
    """The plane of a frame, in millimetres of the patient.

    Attributes:
        position: centre of the first pixel.
        directions: unit vectors along a row (x) and down a column (y), six numbers.
        spacing: (sy, sx).
    """

    position: tuple[float, ...]
    directions: tuple[float, ...]
    spacing: tuple[float, ...]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.directions[:3], self.directions[3:])

    def to_pixels(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the patient (N, 3) -> [x, y] in pixels (N, 2), origin at the corner, and distances (N,) in mm."""
        offset = points - np.array(self.position)
        x = offset @ np.array(self.directions[:3]) / self.spacing[1] + 0.5
        y = offset @ np.array(self.directions[3:]) / self.spacing[0] + 0.5
        return np.stack([x, y], axis=1), np.abs(offset @ self.normal)

    def same_place(self, other: Plane) -> bool:
        """Whether the pixels of two planes coincide, to a tenth of a pixel."""
        apart = np.abs(np.subtract(self.position, other.position)).max()
        turned = np.abs(np.subtract(self.directions, other.directions)).max()
        scaled = np.abs(np.divide(self.spacing, other.spacing) - 1).max()
        return bool(apart <= _SAME_PLACE * min(self.spacing) and turned <= _SAME_DIRECTION and scaled <= _SAME_SPACING)


Tile = tuple[int, int]  # row and column in the whole slide of a tile's first pixel, from 1


@dataclass(frozen=True)
class Slice:
    """A frame's place in its volume.

    Attributes:
        index: from 0, along the normal.
        count: frames of the volume.
        volume: what tells volumes apart; it has a UID in it.
    """

    index: int
    count: int
    volume: str


@dataclass
class ImageFile:
    """What regions need to know of one image file; its UIDs stay in this process.

    Attributes:
        file: path relative to the source.
        instance, series, frame_of_reference: UIDs, "" where unknown.
        size: (width, height).
        planes: for each frame its plane, or None where it isn't known.
        tiles: for each frame of a slide its tile, or None.
        spacings: for each frame [sy, sx] in millimetres, or None.
        thickness: millimetres, as the file states it.
        metadata: for recipes.
        gaps: for each frame the millimetres to its nearest neighbour, or None.
        slices: for each frame its place in its volume, or None.
    """

    file: str
    instance: str
    series: str
    frame_of_reference: str
    size: tuple[int, int]
    planes: list[Plane | None]
    tiles: list[Tile | None]
    spacings: list[list[float] | None]
    thickness: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    gaps: list[float | None] = field(default_factory=list)
    slices: list[Slice | None] = field(default_factory=list)

    @property
    def frames(self) -> int:
        return len(self.planes)

    def gap(self, frame: int) -> float:
        """Millimetres from this frame to the next slice, or the best that is known of it."""
        return self.gaps[frame] or self.thickness or _UNKNOWN_GAP


def read_planes(header: Dataset) -> list[Plane | None]:
    """The plane of each frame."""
    groups = FrameGroups(header)
    return [_plane(header, groups, frame) for frame in range(frame_count(header))]


def _plane(header: Dataset, groups: FrameGroups, frame: int) -> Plane | None:
    at = groups.get(frame, "PlanePositionSequence") or header
    along = groups.get(frame, "PlaneOrientationSequence") or header
    position = numbers(at, "ImagePositionPatient", 3)
    directions = numbers(along, "ImageOrientationPatient", 6)
    # Pixels on a detector aren't millimetres of the patient.
    measured = groups.get(frame, "PixelMeasuresSequence") or header
    spacing = pixel_spacing(measured, FrameGroups(measured), 0) if numbers(measured, "PixelSpacing", 2) else None
    if position is None or directions is None or spacing is None:
        return None
    x, y = np.array(directions[:3]), np.array(directions[3:])
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(x @ y) > 0.01:
        return None
    unit = np.concatenate([x / lengths[0], y / lengths[1]])
    return Plane(tuple(position), tuple(unit.tolist()), tuple(spacing))


def read_tiles(header: Dataset, copies: int = 1) -> list[Tile | None]:
    """The tile of each frame of a slide image, stated or implied by TILED_FULL (PS3.3 C.7.6.17.3).

    Args:
        header: of any file; one that isn't tiled gives None for each frame.
        copies: how often the whole grid is there, one after the other, as once per segment of a TILED_FULL SEG.
    """
    frames = frame_count(header)
    groups = FrameGroups(header)
    width, height = number(header, "TotalPixelMatrixColumns"), number(header, "TotalPixelMatrixRows")
    columns, rows = number(header, "Columns"), number(header, "Rows")
    full = text(header, "DimensionOrganizationType") == "TILED_FULL"
    if full and width and height and columns and rows:
        across, down = int(-(-width // columns)), int(-(-height // rows))
        if across * down * copies != frames:  # several focal planes or optical paths: a place doesn't tell the frame
            return [None] * frames
        grid: list[Tile | None] = [
            (r * int(rows) + 1, c * int(columns) + 1) for r in range(down) for c in range(across)
        ]
        return grid * copies
    tiles: list[Tile | None] = []
    for frame in range(frames):
        group = groups.get(frame, "PlanePositionSlideSequence")
        row = number(group, "RowPositionInTotalImagePixelMatrix")
        column = number(group, "ColumnPositionInTotalImagePixelMatrix")
        tiles.append(None if row is None or column is None else (int(row), int(column)))
    return tiles


def order_slices(images: Iterable[ImageFile]) -> None:
    """Fill `gaps` and `slices`: frames of one series, size and direction, in the order of their place on the normal.

    Where two of them lie at the same place (phases, echoes) there is no one order, and `slices` stays None.
    """
    stacks: dict[tuple[object, ...], list[tuple[float, ImageFile, int]]] = defaultdict(list)
    for image in images:
        image.gaps, image.slices = [None] * image.frames, [None] * image.frames
        for frame, plane in enumerate(image.planes):
            if plane is not None and image.series:
                direction = tuple(round(value, 2) + 0.0 for value in plane.directions)
                place = float(np.dot(plane.normal, plane.position))
                stacks[(image.series, image.size, direction)].append((place, image, frame))
    for key, stack in stacks.items():
        volume = " ".join(map(str, key))
        stack.sort(key=lambda item: (item[0], item[1].file, item[2]))
        steps = np.diff([place for place, _, _ in stack])
        if not len(stack) > 1 or steps.min() <= _SAME_POSITION:
            continue
        for i, (_, image, frame) in enumerate(stack):
            image.gaps[frame] = float(steps[max(i - 1, 0) : i + 1].min())
            image.slices[frame] = Slice(i, len(stack), volume)


class Atlas:
    """All image files of a source, to be found by UID or by place.

    Args:
        images: with one instance UID each.
    """

    def __init__(self, images: Sequence[ImageFile]) -> None:
        self.by_instance = {image.instance: image for image in images if image.instance}
        self.by_series: dict[str, list[ImageFile]] = defaultdict(list)
        self.by_frame_of_reference: dict[str, list[ImageFile]] = defaultdict(list)
        for image in images:
            self.by_series[image.series].append(image)
            if image.frame_of_reference:
                self.by_frame_of_reference[image.frame_of_reference].append(image)
        self._tables: dict[tuple[str, ...], _Places] = {}

    def at(self, images: Sequence[ImageFile], plane: Plane | None, tile: Tile | None) -> list[tuple[ImageFile, int]]:
        """The frames of some images whose pixels coincide with a plane, or that are a tile."""
        key = tuple(image.file for image in images)
        if key not in self._tables:
            self._tables[key] = _Places(images)
        return self._tables[key].at(plane, tile)

    def near(self, images: Iterable[ImageFile], points: np.ndarray) -> list[tuple[ImageFile, int]]:
        """The frames of some images in whose slice some points (N, 3) lie, to half a slice."""
        found = []
        for image in images:
            for frame, plane in enumerate(image.planes):
                if plane is not None and plane.to_pixels(points)[1].max() <= image.gap(frame) / 2:
                    found.append((image, frame))
        return found


class _Places:
    """The places of some images' frames, sorted for searching."""

    def __init__(self, images: Sequence[ImageFile]) -> None:
        self.frames = [(image, frame) for image in images for frame in range(image.frames)]
        self.tiles: dict[Tile, list[tuple[ImageFile, int]]] = defaultdict(list)
        for image, frame in self.frames:
            tile = image.tiles[frame]
            if tile is not None:
                self.tiles[tile].append((image, frame))
        nowhere = (np.nan,) * 3
        planes = [image.planes[frame] for image, frame in self.frames]
        self.positions = np.array([plane.position if plane else nowhere for plane in planes]).reshape(-1, 3)

    def at(self, plane: Plane | None, tile: Tile | None) -> list[tuple[ImageFile, int]]:
        if tile is not None:
            return self.tiles.get(tile, [])
        if plane is None:
            return []
        apart = np.abs(self.positions - np.array(plane.position)).max(axis=1, initial=0)
        near = np.flatnonzero(apart <= _SAME_PLACE * min(plane.spacing))
        return [(image, frame) for image, frame in (self.frames[i] for i in near) if _same(image.planes[frame], plane)]


def _same(mine: Plane | None, theirs: Plane) -> bool:
    return mine is not None and mine.same_place(theirs)
