"""Volumes: whatever way a file stores its axes, the slices are the same, and anatomy is where radiologists look for it."""

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.readers.nifti.volumes import (
    Volume,
    VolumeError,
    as_slices,
    canonical,
    choose_plane,
    load_volume,
    onto_grid,
    slice_coordinates,
    slice_spacing,
)

SHAPE, SPACING, ORIGIN = (5, 7, 4), (1.5, 0.5, 3.0), (-20.0, 11.0, 300.0)
AFFINE = np.diag([*SPACING, 1.0])
AFFINE[:3, 3] = ORIGIN
VALUES = np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
ORIENTATIONS = [
    np.array(list(zip(order, signs, strict=True)), dtype=float)
    for order in itertools.permutations(range(3))
    for signs in itertools.product([1, -1], repeat=3)
]


def save(path: Path, values: np.ndarray, affine: np.ndarray | None, kind: Any = nibabel.Nifti1Image, **kw: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = kind(values, affine)
    for name, value in kw.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def stored_as(values: np.ndarray, affine: np.ndarray, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels at the same places, with axes swapped and flipped."""
    turned = nibabel.orientations.apply_orientation(values, orientation)
    return turned, affine @ nibabel.orientations.inv_ornt_aff(orientation, values.shape)


def rotation(degrees: float, axis: int = 2) -> np.ndarray:
    angle = np.radians(degrees)
    out = np.eye(4)
    i, j = [k for k in range(3) if k != axis]
    out[i, i] = out[j, j] = np.cos(angle)
    out[i, j], out[j, i] = -np.sin(angle), np.sin(angle)
    return out


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: str(o.astype(int).ravel().tolist()))
def test_all_48_orientations_give_the_same_slices(tmp_path: Path, orientation: np.ndarray) -> None:
    volume = canonical(load_volume(save(tmp_path / "a.nii", *stored_as(VALUES, AFFINE, orientation))))
    assert np.array_equal(volume.raw, VALUES)
    assert np.allclose(volume.affine, AFFINE)
    assert [slice_spacing(volume, axis) for axis in (0, 1, 2)] == [[3.0, 0.5], [3.0, 1.5], [0.5, 1.5]]
    third = stored_as(np.broadcast_to(np.arange(4), SHAPE), AFFINE, orientation)[0]
    constant_along = [i for i in range(3) if np.ptp(third, axis=i).any()]
    assert (volume.stored_axis == 2) == (constant_along == [2])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_display_is_radiological(axis: int) -> None:
    """A marker at a place in the patient lands where a radiologist expects it."""
    x, y, z = 4, 1, 3  # the patient's right end, towards the back, the head's end
    values = np.zeros(SHAPE, np.uint8)
    values[x, y, z] = 1
    slices = as_slices(values, axis)
    ((index, row, column),) = np.argwhere(slices).tolist()
    expected = {
        0: (x, 0, SHAPE[1] - 1 - y),  # sagittal: front on the left, head on top
        1: (y, 0, 0),  # coronal: right on the left, head on top
        2: (z, SHAPE[1] - 1 - y, 0),  # axial: right on the left, front on top
    }[axis]
    assert (index, row, column) == expected
    place = slice_coordinates(np.array([[x, y, z]], float), SHAPE, axis)
    assert place.tolist() == [[index, column + 0.5, row + 0.5]]


def test_markers_at_known_millimetres(tmp_path: Path) -> None:
    """Right, front and head in RAS+ millimetres, through an oblique LPS-like file."""
    affine = np.array([[-1.0, 0, 0, 30], [0, -2.0, 0, 40], [0, 0, 4.0, -50], [0, 0, 0, 1]])
    values = np.zeros((31, 21, 11), np.uint8)
    at = np.rint(np.linalg.inv(affine) @ [20, 30, -10, 1]).astype(int)[:3]  # 20 mm right, 30 mm front
    values[tuple(at)] = 1
    volume = canonical(load_volume(save(tmp_path / "a.nii", values, affine)))
    ((index, row, column),) = np.argwhere(as_slices(volume.raw, 2)).tolist()
    # x runs from 30 (picture's left) to 0, y from 40 (top) to 0, z from -50.
    assert (index, row, column) == ((-10 + 50) / 4, (40 - 30) / 2, 30 - 20)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS), st.floats(-44, 44), st.integers(0, 2))
def test_labels_follow_their_image_however_both_are_stored(a: Any, b: Any, degrees: float, axis: int) -> None:
    affine = rotation(degrees, axis) @ AFFINE
    stored, label = (Volume(*stored_as(VALUES, affine, orientation)) for orientation in (a, b))
    image = canonical(stored)
    turned = onto_grid(label, image, stored, "same")
    assert np.array_equal(turned.raw, image.raw)
    assert np.allclose(turned.affine, image.affine)


@pytest.mark.parametrize("degrees", [45, 44.9999, 45.0001])
def test_labels_follow_their_image_at_45_degrees(degrees: float) -> None:
    """There, rounding alone decides which body axis is the nearest; it may decide otherwise for the label."""
    stored = Volume(*stored_as(VALUES, rotation(degrees), ORIENTATIONS[13]))
    for orientation in ORIENTATIONS:
        label = Volume(*stored_as(VALUES, rotation(90 - degrees), orientation))
        image = canonical(stored)
        assert np.array_equal(onto_grid(label, image, stored, "same").raw, image.raw)


@pytest.mark.parametrize(
    "change",
    [
        lambda v, a: (v[:-1], a),
        lambda v, a: (v, a + np.array([[0, 0, 0, 0.3], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])),
        lambda v, a: (v, a @ np.diag([1, 1.05, 1, 1])),
        lambda v, a: (v, rotation(3) @ a),
    ],
    ids=["cropped", "shifted", "scaled", "turned"],
)
def test_label_on_another_grid(change: Any) -> None:
    stored = Volume(VALUES, AFFINE)
    label = Volume(*change(VALUES, AFFINE))
    with pytest.raises(VolumeError) as caught:
        onto_grid(label, canonical(stored), stored, "same")
    assert caught.value.reason == "label volume lies on another grid than the image"


def test_rounding_of_the_header_is_no_other_grid() -> None:
    stored, label = Volume(VALUES, AFFINE), Volume(VALUES, AFFINE + 1e-3 * np.eye(4, k=1))
    assert onto_grid(label, canonical(stored), stored, "same").raw is not None


def test_stored_grid_ignores_the_labels_affine() -> None:
    stored = Volume(*stored_as(VALUES, AFFINE, ORIENTATIONS[20]))
    label = Volume(stored.raw, np.eye(4))
    assert np.array_equal(onto_grid(label, canonical(stored), stored, "stored").raw, VALUES)
    with pytest.raises(VolumeError, match="another grid"):
        onto_grid(Volume(VALUES[1:], AFFINE), canonical(stored), stored, "stored")


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7])
def test_nearest_resampling_equals_brute_force(orientation: np.ndarray) -> None:
    image = Volume(VALUES, rotation(10) @ AFFINE)
    label = Volume(*stored_as(VALUES % 3, AFFINE @ np.diag([0.8, 1.1, 1.0, 1]), orientation))
    found = onto_grid(label, canonical(image), image, "nearest").raw
    to_label = np.linalg.inv(label.affine) @ image.affine
    for index in np.ndindex(SHAPE):
        place = to_label @ [*index, 1]
        if (np.abs(place[:3] % 1 - 0.5) < 1e-6).any():
            continue  # half way, either is nearest
        at = np.rint(place[:3]).astype(int)
        inside = all(0 <= i < n for i, n in zip(at, label.raw.shape, strict=True))
        assert found[index] == (label.raw[tuple(at)] if inside else 0)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((0.5, 0.5, 7.5), 2),
        ((4.0, 0.5, 0.5), 0),
        ((0.9, 5.0, 0.9), 1),
        ((1, 1, 1), 2),
        ((1, 1.05, 1), 2),
        ((3, 3, 1), 1),
        ((3, 1, 3), 2),
        ((1.2, 1, 1), 0),
    ],
)
def test_plane_as_acquired(spacing: tuple[float, float, float], expected: int) -> None:
    volume = Volume(VALUES, np.diag([*spacing, 1.0]))
    assert choose_plane(volume, "auto") == expected
    assert [choose_plane(volume, plane) for plane in ("sagittal", "coronal", "axial")] == [0, 1, 2]


def test_native_plane_is_the_files_third_axis() -> None:
    for orientation in ORIENTATIONS:
        values, affine = stored_as(VALUES, AFFINE, orientation)
        axis = choose_plane(canonical(Volume(values, affine)), "native")
        assert SPACING[axis] == pytest.approx(np.linalg.norm(affine[:3, 2]))


def test_units_sform_before_qform_and_scale(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VALUES, None)
    image.set_sform(np.diag([0.002, 0.003, 0.004, 1]), 1)
    image.set_qform(np.diag([9, 9, 9, 1]), 1)
    image.header.set_xyzt_units("meter")
    image.header.set_slope_inter(2, -1024)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = load_volume(tmp_path / "a.nii.gz")
    assert np.allclose(volume.spacing, [2, 3, 4])
    assert volume.raw.dtype.kind == "i"
    assert np.array_equal(volume.real(volume.raw), VALUES * 2.0 - 1024)


def test_nifti_2_big_endian_and_flat_volumes(tmp_path: Path) -> None:
    save(tmp_path / "two.nii", VALUES, AFFINE, nibabel.Nifti2Image)
    assert np.array_equal(load_volume(tmp_path / "two.nii").raw, VALUES)
    big = nibabel.Nifti1Image(VALUES, AFFINE, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(big, tmp_path / "big.nii")
    assert np.array_equal(load_volume(tmp_path / "big.nii").raw, VALUES)
    save(tmp_path / "flat.nii", VALUES[:, :, 0], AFFINE)
    assert load_volume(tmp_path / "flat.nii").raw.shape == (5, 7, 1)
    save(tmp_path / "one.nii", VALUES[..., None, None], AFFINE)
    assert load_volume(tmp_path / "one.nii").raw.shape == SHAPE


def test_frames(tmp_path: Path) -> None:
    values = np.stack([VALUES, VALUES + 1], axis=3)
    for orientation in ORIENTATIONS[::5]:
        turned, affine = stored_as(values, AFFINE, orientation)
        volume = canonical(load_volume(save(tmp_path / "a.nii.gz", turned, affine)))
        assert np.array_equal(volume.frame(1).raw, VALUES + 1)
    with pytest.raises(VolumeError, match="frame"):
        volume.frame(2)


def test_assumed_axes(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VALUES, None)
    image.header.set_zooms((2, 3, 4))
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(VolumeError, match="no affine"):
        load_volume(tmp_path / "a.nii")
    volume = load_volume(tmp_path / "a.nii", "LPS")
    assert np.array_equal(volume.affine, np.diag([-2, -3, 4, 1]))
    assert np.array_equal(canonical(volume).raw, VALUES[::-1, ::-1])
    assert np.allclose(load_volume(tmp_path / "a.nii", "SRA").affine[:3, 0], [0, 0, 2])


def test_tilt() -> None:
    assert canonical(Volume(VALUES, rotation(12, 0) @ AFFINE)).tilt(2) == pytest.approx(12)
    assert canonical(Volume(VALUES, rotation(12, 0) @ AFFINE)).tilt(0) == pytest.approx(0, abs=1e-5)


def damage(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def le(value: float, kind: str) -> bytes:
    return np.array(value, kind).tobytes()


# Offsets of NIfTI-1's header: dim 40, datatype 70, bitpix 72, vox_offset 108, sform_code 254, srow_x 280.
BROKEN = {
    "no header": (lambda d: d[:100], "volume can't be read"),
    "no NIfTI": (lambda d: b"not a volume" * 40, "volume can't be read"),
    "empty": (lambda d: b"", "volume can't be read"),
    "cut off": (lambda d: d[:-1], "volume is truncated"),
    "offset behind the end": (lambda d: damage(d, 108, le(1e6, "<f4")), "volume is truncated"),
    "offset is NaN": (lambda d: damage(d, 108, le(np.nan, "<f4")), "volume can't be read"),
    "impossible size": (
        lambda d: damage(d, 42, le(32767, "<i2") * 3),
        "header of the volume states an impossible size",
    ),
    "large size": (lambda d: damage(d, 42, le(1000, "<i2") * 3), "volume is truncated"),
    "no voxels": (lambda d: damage(d, 42, le(0, "<i2")), "volume has no voxels"),
    "negative size": (lambda d: damage(d, 42, le(-5, "<i2")), "volume has no voxels"),
    "unknown type": (lambda d: damage(d, 70, le(999, "<i2")), "volume can't be read"),
    "singular affine": (lambda d: damage(d, 280, le(0, "<f4") * 4), "affine of the volume makes no sense"),
    "NaN affine": (lambda d: damage(d, 280, le(np.nan, "<f4")), "affine of the volume makes no sense"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    change, reason = BROKEN[name]
    data = save(tmp_path / "a.nii", VALUES, AFFINE).read_bytes()
    (tmp_path / "b.nii").write_bytes(change(data))
    with pytest.raises(VolumeError) as caught:
        load_volume(tmp_path / "b.nii")
    assert caught.value.reason == reason


def test_damaged_compressed_files(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(40, 40, 40))
    data = save(tmp_path / "a.nii.gz", noise, AFFINE).read_bytes()
    for name, broken, reason in (
        ("cut", data[: len(data) // 2], "volume is truncated"),
        ("flipped", damage(data, len(data) // 2, bytes(50)), "volume can't be read"),
        ("plain", b"plain" * 99, "volume can't be read"),
    ):
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(broken)
        with pytest.raises(VolumeError) as caught:
            load_volume(path)
        assert caught.value.reason == reason


def test_colours_complex_numbers_and_vectors(tmp_path: Path) -> None:
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for values, reason in (
        (colours, "voxels of the volume are not numbers"),
        (VALUES.astype(np.complex64), "voxels of the volume are not numbers"),
        (np.zeros((*SHAPE, 1, 3), np.float32), "volume has more than three dimensions"),
    ):
        with pytest.raises(VolumeError) as caught:
            load_volume(save(tmp_path / "a.nii", values, AFFINE))
        assert caught.value.reason == reason
