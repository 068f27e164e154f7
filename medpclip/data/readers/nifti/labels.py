"""Label volumes -> regions per slice: masks by value, masks by file, and points.

Label files are read one after the other; only run lengths are kept of each, so a hundred files of one scan need no more
memory than one. A region is what one value of one file covers in one slice (or each of its components there), or one
voxel of a file of points.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from medpclip.data.readers.base import Fault, RawRegion, RawSample
from medpclip.data.readers.masks import ComponentOptions, add_mask, each_value
from medpclip.data.readers.nifti.file_patterns import FilePattern
from medpclip.data.readers.nifti.volumes import (
    LETTERS,
    PLANES,
    SUFFIXES,
    Plane,
    Volume,
    VolumeError,
    as_slices,
    canonical,
    choose_plane,
    label_to_image,
    load_volume,
    onto_grid,
    slice_coordinates,
)

_WHOLE = 1e-3  # by which a stored number may miss a whole one: rounding of slopes
_LARGEST = 2**53  # beyond it a float counts in steps of more than one


@dataclass(frozen=True)
class LabelFiles:
    """Label volumes that belong to an image.

    Attributes:
        files: pattern of their paths (see `file_patterns`). Placeholders that the pattern of the images has too must
            stand for the same; {label} is the label of the whole file: of all its voxels that aren't 0.
        values: number -> the source's label; YAML wants the numbers quoted. Not with {label}.
        kind: "mask", or "points": each voxel that isn't 0 is a point.
        threshold: make 1 of values from here on, and 0 of the rest (soft masks); by default values are whole numbers.
        ignore: numbers that mean "not annotated".
        optional: whether an image may be without.
    """

    files: str
    values: dict[str, str] = field(default_factory=dict)
    kind: Literal["mask", "points"] = "mask"
    threshold: float | None = None
    ignore: list[int] = field(default_factory=list)
    optional: bool = False

    def __post_init__(self) -> None:
        named = "label" in self.pattern.names
        if named == bool(self.values):
            raise ValueError("needs either 'values', as {\"1\": liver}, or the placeholder {label} in 'files'")
        for number in self.values:
            if not number.removeprefix("-").isdecimal():
                raise ValueError(f"'values' has the key '{number}'; expected the volume's numbers")
        if self.threshold is not None and (self.values and set(self.values) != {"1"}):
            raise ValueError("'threshold' gives only the number 1; 'values' must be {\"1\": LABEL}")
        if self.kind == "points" and "0" in self.values:
            raise ValueError("'values' names 0, which is no point")

    @property
    def pattern(self) -> FilePattern:
        """Of the files."""
        return FilePattern(self.files, SUFFIXES)

    def label(self, number: int, of_file: str | None) -> str | None:
        """The label of a number, in a file whose name says `of_file`."""
        if of_file is not None:
            return of_file if number else None
        return self.values.get(str(number))


@dataclass(frozen=True)
class LabelSource:
    """One label file.

    Attributes:
        spec: which of the recipe's 'labels' it fits.
        file: relative to the source.
        label: what {label} stands for in its name.
    """

    spec: int
    file: str
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class RegionRules(ComponentOptions):
    """How voxels become regions; the attributes are options of the reader "nifti".

    Attributes:
        plane: what slices are parallel to: axial, coronal, sagittal; "native" as the file stores them; "auto" as
            acquired, that is across the coarsest spacing, and axial where spacings are alike.
        label_grid: "same": a label volume on another grid than the image is a fault; "nearest": it is resampled;
            "stored": its affine is ignored, and its array taken as the image's is.
        assume_axes: where stored axes point in volumes without affine, as "RAS" (to the right, front, head).
    """

    plane: Plane = "auto"
    label_grid: Literal["same", "nearest", "stored"] = "same"
    assume_axes: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.assume_axes is not None and not _are_axes(self.assume_axes):
            raise ValueError(f"'assume_axes' is '{self.assume_axes}'; expected three letters, as RAS or LPS")


@dataclass
class SliceLabels:
    """What label files say of each slice.

    Attributes:
        slices: number of the slice -> regions and faults there; only slices of which something is said.
        problems: files that can't be used; each counts the regions that it would have given.
    """

    slices: dict[int, RawSample] = field(default_factory=lambda: defaultdict(RawSample))
    problems: list[Fault] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many regions there are, with those that can't be used."""
        faults = [*self.problems, *(fault for there in self.slices.values() for fault in there.faults)]
        return sum(len(there.regions) for there in self.slices.values()) + sum(fault.regions for fault in faults)

    def merge(self, other: SliceLabels) -> None:
        """Add what another file says."""
        for i, there in other.slices.items():
            self.slices[i].regions += there.regions
            self.slices[i].faults += there.faults
        self.problems += other.problems


def part_name(axis: int, index: int) -> str:
    """How parts of a volume are named, as "z 012"."""
    return f"{LETTERS[PLANES[axis]]} {index:03d}"


def read_labels(
    source: Path, files: list[LabelSource], specs: list[LabelFiles], rules: RegionRules, stored: Volume | None
) -> SliceLabels:
    """The regions of an image, slice by slice.

    Args:
        source: the source's folder.
        files: its label files.
        specs: the recipe's 'labels'.
        rules: how voxels become regions.
        stored: the image; None where it can't be read: regions are then those in the label volume's own slices, so that
            they can be counted.
    """
    out = SliceLabels()
    for item in files:
        out.merge(_read_file(source, item, specs[item.spec], rules, stored))
    return out


def _read_file(
    source: Path, item: LabelSource, spec: LabelFiles, rules: RegionRules, stored: Volume | None
) -> SliceLabels:
    try:
        # Where the file's own axes don't matter, neither does it that they are unknown.
        label = load_volume(source / item.file, "RAS" if rules.label_grid == "stored" else rules.assume_axes)
        if label.raw.ndim > 3:
            raise VolumeError("volume has more than three dimensions", str(label.raw.shape))
    except VolumeError as error:
        return SliceLabels(problems=[Fault(item.file, "", error.reason, error.detail)])
    try:
        return _FileLabels(item, spec, rules, label, label if stored is None else stored).read()
    except VolumeError as error:
        lost = _FileLabels(item, spec, rules, label, label).read().count
        return SliceLabels(problems=[Fault(item.file, "", error.reason, error.detail, regions=lost)])


class _FileLabels:
    """The regions of one label file."""

    def __init__(self, item: LabelSource, spec: LabelFiles, rules: RegionRules, label: Volume, stored: Volume) -> None:
        self.item, self.spec, self.rules = item, spec, rules
        self.label, self.stored = label, stored
        self.image = canonical(stored)
        self.axis = choose_plane(self.image, rules.plane)
        self.out = SliceLabels()

    def read(self) -> SliceLabels:
        broken = self._read_points() if self.spec.kind == "points" else self._read_masks()
        if broken:  # it was interpolated, or isn't a label volume: then the rest of it isn't right either
            reason = "value in the label volume is not a whole number"
            detail = f"in {broken} slices or points; if it is a soft mask, set 'threshold'"
            lost = self.out.count + broken
            return SliceLabels(problems=[Fault(self.item.file, "", reason, detail, regions=lost)])
        return self.out

    def _read_masks(self) -> int:
        """Regions of all slices; returns in how many slices numbers are broken."""
        label = onto_grid(self.label, self.image, self.stored, self.rules.label_grid)
        slices = as_slices(label.raw, self.axis)
        broken = 0
        for i in self._not_empty(label, slices):
            numbers = self._numbers(label.real(slices[i]))
            if numbers is None:
                broken += 1
                continue
            if self.item.label is not None:
                numbers = (numbers != 0).astype(np.uint8)
            for value, corner, part in each_value(numbers, {0} if "0" not in self.spec.values else ()):
                self._add_mask(i, value, corner, part, numbers.shape)
        return broken

    def _not_empty(self, label: Volume, slices: np.ndarray) -> list[int]:
        if "0" in self.spec.values or label.intercept or (self.spec.threshold or 1) <= 0:
            return list(range(len(slices)))
        return np.flatnonzero([plane.any() for plane in slices]).tolist()

    def _add_mask(self, i: int, value: int, corner: tuple[int, int], part: np.ndarray, size: tuple[int, ...]) -> None:
        key, file, there = f"{part_name(self.axis, i)}, value {value}", self.item.file, self.out.slices
        label = self._label(i, value, key)
        if label is None:
            return
        if not self.rules.components and np.count_nonzero(part) < self.rules.min_pixels:
            there[i].faults.append(Fault(file, key, "component is smaller than min_pixels", regions=1))
        else:
            add_mask(there[i], part, corner, size, label, file, key, self.rules)

    def _read_points(self) -> int:
        """Regions of all points; returns how many numbers are broken."""
        label, to_image = self.label, np.eye(4)
        if self.rules.label_grid == "nearest":  # resampled, a single voxel may come twice or not at all
            to_image = label_to_image(label, self.image)
        else:
            label = onto_grid(self.label, self.image, self.stored, self.rules.label_grid)
        shape = self.image.raw.shape[:3]
        indices = np.argwhere(label.real(label.raw) != 0)
        values = label.real(label.raw[tuple(indices.T)])
        places = slice_coordinates(indices @ to_image[:3, :3].T + to_image[:3, 3], shape, self.axis)
        broken = 0
        for n in np.lexsort(places.T[[1, 2, 0]]).tolist():
            numbers = self._numbers(values[n : n + 1])
            if numbers is None:
                broken += 1
            elif numbers[0]:
                self._add_point(n, int(numbers[0]), places[n], shape)
        return broken

    def _add_point(self, n: int, value: int, place: np.ndarray, shape: tuple[int, ...]) -> None:
        i = int(np.rint(place[0]))
        outside = not 0 <= i < shape[self.axis]
        i = min(max(i, 0), shape[self.axis] - 1)
        key = f"{part_name(self.axis, i)}, value {value}, voxel {n}"
        label = self._label(i, value, key)
        if label is None:
            return
        if outside:
            fault = Fault(self.item.file, key, "point lies outside the image", str(place.tolist()), regions=1)
            self.out.slices[i].faults.append(fault)
            return
        point = [round(float(v), 3) for v in place[1:]]
        self.out.slices[i].regions.append(RawRegion(label, self.item.file, key, points=[point]))

    def _label(self, i: int, value: int, key: str) -> str | None:
        """The label of a number; without one it is a fault, unless it means nothing."""
        label = self.spec.label(value, self.item.label)
        if label is None and value != 0 and value not in self.spec.ignore:
            reason = "number in the mask has no label in the recipe"
            self.out.slices[i].faults.append(Fault(self.item.file, key, reason, regions=1))
        return label

    def _numbers(self, values: np.ndarray) -> np.ndarray | None:
        """Whole numbers, or None where some aren't."""
        if self.spec.threshold is not None:
            return (values >= self.spec.threshold).astype(np.uint8)
        if values.dtype.kind in "iu":
            return values if values.dtype.itemsize < 8 else values.astype(np.int64)
        with np.errstate(invalid="ignore"):
            whole = np.rint(values)
            good = (np.abs(values - whole) <= _WHOLE) & (np.abs(whole) < _LARGEST)
        return whole.astype(np.int64) if good.all() else None


def _are_axes(text: str) -> bool:
    pairs = ("LR", "PA", "IS")
    return len(text) == 3 and all(sum(letter in pair for letter in text) == 1 for pair in pairs)
