"""NIfTI volumes: reading them, and turning them so that all slices look the way radiologists see them.

Coordinates. A NIfTI affine maps voxel indices to millimetres with x to the patient's right, y to the front, z to the
head (RAS+; NIfTI-1 standard, nifti1.h). sform is taken before qform, as nibabel does. Axes are swapped and flipped, never
interpolated, so that they are the nearest to right, front, head; how far an oblique scan is off is its `tilt`.

Display. In every slice, as radiologists look at it:

    axial      the patient's right on the picture's left, front (anterior) on top; slices run from the feet to the head
    coronal    the patient's right on the picture's left, head (superior) on top; slices run from back to front
    sagittal   front (anterior) on the picture's left, head on top; slices run from the patient's left to right

Memory. Voxels stay as they are stored (a file that isn't compressed is mapped, not read), turning makes views, and real
values are made slice by slice: value = stored * slope + intercept.
"""

from __future__ import annotations

import gzip
import itertools
import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

Plane = Literal["auto", "axial", "coronal", "sagittal", "native"]
SUFFIXES = (".nii.gz", ".nii")
PLANES = ("sagittal", "coronal", "axial")  # by the axis they are perpendicular to: right, front, head
_IN_PLANE = ((2, 1), (2, 0), (1, 0))  # the axes of its rows and columns
LETTERS = {"sagittal": "x", "coronal": "y", "axial": "z"}

_MOST_VOXELS = 1 << 33  # beyond what a scanner makes; a damaged header states more
_DEFLATE_LIMIT = 1040  # deflate can't compress by more (RFC 1951: 258 bytes of at least 2 bits)
_SAME_GRID = 0.1  # voxels by which corners may differ: rounding of headers, not a shift
_ISOTROPIC = 1.1  # ratio of spacings up to which no plane is the acquired one
_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's codes of metre, millimetre, micrometre


class VolumeError(Exception):
    """A volume that can't be used. `reason` is fixed words that may be counted in public; `detail` is private."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Volume:
    """Voxels and where they are.

    Attributes:
        raw: stored numbers, (i, j, k) or (i, j, k, frames); a view, or mapped from the file.
        affine: float64 (4, 4), voxel centres (indices) to RAS+ millimetres.
        stored_axis: which of i, j, k was the third one of the file.
        slope, intercept: real value = stored * slope + intercept.
        unit: millimetres per unit of the affine.
    """

    raw: np.ndarray
    affine: np.ndarray
    stored_axis: int = 2
    slope: float = 1.0
    intercept: float = 0.0
    unit: float = 1.0

    @property
    def spacing(self) -> np.ndarray:
        """Millimetres between voxels along i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0) * self.unit

    @property
    def bits(self) -> int:
        """Of a stored number."""
        return self.raw.dtype.itemsize * 8

    def real(self, stored: np.ndarray) -> np.ndarray:
        """Real values of stored ones."""
        if self.slope == 1 and self.intercept == 0:
            return stored
        return stored.astype(np.float64) * self.slope + self.intercept

    def frame(self, index: int) -> Volume:
        """One frame of a volume that has several, or the only one of another.

        Raises:
            VolumeError: it hasn't so many.
        """
        count = self.raw.shape[3] if self.raw.ndim == 4 else 1
        if index >= count:
            raise VolumeError("frame of the volume is missing", f"frame {index}, the file has {count}")
        return replace(self, raw=self.raw[..., index]) if self.raw.ndim == 4 else self

    def tilt(self, axis: int) -> float:
        """Degrees between an axis of the voxels and the body axis that it is the nearest to, for a canonical volume."""
        column = self.affine[:3, axis]
        return float(np.degrees(np.arccos(np.clip(abs(column[axis]) / np.linalg.norm(column), 0, 1))))


def load_volume(path: Path, assume_axes: str | None = None) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file, as it is stored. A time or vector axis of length 1 is dropped.

    Args:
        path: .nii or .nii.gz.
        assume_axes: where the file's axes point, as "RAS", if its header doesn't say (sform and qform code 0).

    Raises:
        VolumeError: unreadable, truncated, without voxels or affine, of more than four dimensions, or not of numbers.
    """
    with ExitStack() as stack:
        try:
            image, stream = _open(path, stack)
            header = image.header
            shape = tuple(int(n) for n in image.shape)
            dtype = np.dtype(image.get_data_dtype())
            offset = int(image.dataobj.offset)
            coded = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
            unit = _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
            affine = np.asarray(image.affine, dtype=np.float64)
        except MemoryError:
            raise
        except Exception as error:  # nibabel's errors, and those of what reads extensions for it, have no common base
            raise _unreadable(error) from None
        shape = _three_dimensions(shape)
        if dtype.kind not in "iuf":
            raise VolumeError("voxels of the volume are not numbers", str(dtype))
        _check_length(path, shape, dtype, offset)
        if not coded:
            affine = _assumed_affine(assume_axes, header)
        if not np.isfinite(affine).all() or abs(np.linalg.det(_unit_columns(affine))) < 1e-3:
            raise VolumeError("affine of the volume makes no sense", str(affine[:3].tolist()))
        try:
            raw = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape, order="F")
            slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
            while stream is not None and stream.read(1 << 20):
                pass  # the checksum is at the end
        except MemoryError:
            raise
        except Exception as error:  # truncated or damaged compressed data
            raise _unreadable(error) from None
    return Volume(raw, affine, slope=slope, intercept=intercept, unit=unit)


def _unreadable(error: Exception) -> VolumeError:
    reason = "volume is truncated" if isinstance(error, EOFError) else "volume can't be read"
    return VolumeError(reason, f"{type(error).__name__}: {error}")


def _open(path: Path, stack: ExitStack) -> tuple[Any, gzip.GzipFile | None]:
    """nibabel's image, whose voxels aren't read yet, and for a compressed file the stream that they come from."""
    import nibabel

    # It writes what it mends in headers to the log, with the file's name.
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    if not path.name.endswith(".gz"):
        return nibabel.load(path), None
    stream = stack.enter_context(gzip.GzipFile(path))
    second = nibabel.Nifti2Header.may_contain_header(stream.read(544))
    stream.seek(0)
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    return kind.from_file_map({"image": nibabel.FileHolder(path.name, stream)}, mmap=False), stream


def canonical(volume: Volume) -> Volume:
    """The volume with its axes swapped and flipped to the nearest to right, front, head."""
    import nibabel

    return reorient(volume, nibabel.orientations.io_orientation(volume.affine))


def reorient(volume: Volume, orientation: np.ndarray) -> Volume:
    """The volume with swapped and flipped axes; a view.

    Args:
        volume: any.
        orientation: for each axis (row) the axis it becomes, and 1 or -1 for flipped; as nibabel's io_orientation.
    """
    import nibabel

    target = orientation[:, 0].astype(int)
    flips = tuple(slice(None, None, int(sign)) for sign in orientation[:, 1])
    order = (*np.argsort(target).tolist(), *range(3, volume.raw.ndim))
    raw = volume.raw[flips].transpose(order)
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(orientation, volume.raw.shape[:3])
    return replace(volume, raw=raw, affine=affine, stored_axis=int(target[volume.stored_axis]))


def onto_grid(label: Volume, image: Volume, stored: Volume, grid: str) -> Volume:
    """A label volume turned the way its image was, or resampled to its grid.

    Args:
        label: as stored.
        image: canonical.
        stored: the image as stored.
        grid: "same": it must lie on the image's grid, within a tenth of a voxel; "nearest": else the nearest label is
            taken for each voxel; "stored": its own affine is ignored, and the stored arrays must be of one shape.

    Raises:
        VolumeError: it lies on another grid.
    """
    import nibabel

    if grid == "stored":
        if label.raw.shape != stored.raw.shape[:3]:
            detail = f"{label.raw.shape}, the image's is {stored.raw.shape[:3]}"
            raise VolumeError("label volume lies on another grid than the image", detail)
        return canonical(replace(label, affine=stored.affine, unit=stored.unit))
    to_image = label_to_image(label, image)
    # Not `canonical`: close to 45 degrees two equal grids might be turned in two ways.
    turned = reorient(label, nibabel.orientations.io_orientation(to_image))
    problem = _other_grid(label_to_image(turned, image), turned.raw.shape, image.raw.shape[:3])
    if problem is None:
        return replace(turned, affine=image.affine, unit=image.unit)
    if grid != "nearest":
        raise VolumeError("label volume lies on another grid than the image", problem)
    raw = _resample(label.raw, np.linalg.inv(to_image), image.raw.shape[:3])
    return replace(label, raw=raw, affine=image.affine, unit=image.unit)


def label_to_image(label: Volume, image: Volume) -> np.ndarray:
    """The affine, float64 (4, 4), from voxel indices of one volume to those of another."""
    millimetres = np.diag([label.unit / image.unit] * 3 + [1])
    return np.linalg.inv(image.affine) @ millimetres @ label.affine


def choose_plane(volume: Volume, plane: Plane) -> int:
    """The axis (0 right, 1 front, 2 head) that slices of a canonical volume are perpendicular to.

    "auto" is the axis with the coarsest spacing, along which a scan was acquired; where all are within ten per cent,
    or two are equally coarse, the head's before the front's. "native" is the file's third axis.
    """
    if plane == "native":
        return volume.stored_axis
    if plane != "auto":
        return PLANES.index(plane)
    spacing = volume.spacing
    coarse = spacing >= spacing.max() / _ISOTROPIC if spacing.max() > _ISOTROPIC * spacing.min() else np.ones(3, bool)
    return int(np.flatnonzero(coarse)[-1])


def as_slices(canonical_array: np.ndarray, axis: int) -> np.ndarray:
    """A view (slices, rows, columns) of an array in canonical axes, for display as the module says."""
    return canonical_array.transpose(axis, *_IN_PLANE[axis])[:, ::-1, ::-1]


def slice_coordinates(indices: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Where canonical voxel indices, float (N, 3), lie in `as_slices`: float (N, 3) of slice, x and y.

    x and y are pixel coordinates: the centre of the first pixel is (0.5, 0.5).
    """
    rows, columns = _IN_PLANE[axis]
    flipped = [shape[columns] - 0.5 - indices[:, columns], shape[rows] - 0.5 - indices[:, rows]]
    return np.stack([indices[:, axis], *flipped], axis=1)


def slice_spacing(volume: Volume, axis: int) -> list[float]:
    """[sy, sx] of its slices in millimetres, to five digits: headers keep seven, of each element of the affine."""
    return [float(f"{volume.spacing[i]:.5g}") for i in _IN_PLANE[axis]]


def _three_dimensions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with three axes, or four where there are frames."""
    if not shape or min(shape) < 1:
        raise VolumeError("volume has no voxels", str(shape))
    kept = list(shape)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    kept += [1] * (3 - len(kept))
    if len(kept) > 4:
        raise VolumeError("volume has more than three dimensions", str(shape))
    if np.prod([float(n) for n in kept]) > _MOST_VOXELS:
        raise VolumeError("header of the volume states an impossible size", str(shape))
    return tuple(kept)


def _check_length(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> None:
    """Before memory is taken: can the file hold what its header states?"""
    stated, there = offset + int(np.prod(shape)) * dtype.itemsize, path.stat().st_size
    if stated > there * (_DEFLATE_LIMIT if path.name.endswith(".gz") else 1):
        raise VolumeError("volume is truncated", f"{stated} bytes stated, the file has {there}")


def _assumed_affine(axes: str | None, header: Any) -> np.ndarray:
    import nibabel

    if axes is None:
        raise VolumeError("volume has no affine", "sform_code and qform_code are 0")
    spacing = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    orientation = nibabel.orientations.axcodes2ornt(tuple(axes))
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (target, sign) in enumerate(orientation):
        affine[int(target), axis] = sign * abs(spacing[axis])
    return affine


def _unit_columns(affine: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return affine[:3, :3] / np.where(lengths > 0, lengths, 1)


def _other_grid(to_image: np.ndarray, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str | None:
    """How a turned label grid differs from the image's; None if it doesn't."""
    if shape != wanted:
        return f"{shape}, the image's is {wanted}"
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))], dtype=np.float64)
    off = float(np.abs((to_image - np.eye(4)) @ corners.T)[:3].max())
    return f"its corners are up to {off:.2f} voxels off" if off > _SAME_GRID else None


def _resample(raw: np.ndarray, from_image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The nearest stored label for each voxel of another grid; 0 outside."""
    from scipy import ndimage

    native = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    return ndimage.affine_transform(
        native, from_image[:3, :3], from_image[:3, 3], output_shape=shape, order=0, mode="grid-constant", cval=0
    )
