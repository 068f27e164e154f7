"""NIfTI sources: files that belong together, slices, regions, pictures, and an exact count of what is lost."""

import gzip
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medpclip.config import from_mapping
from medpclip.data.readers import Entry, Fault, RawSample, UnusableError
from medpclip.data.readers.nifti.reader import NiftiOptions, NiftiReader
from medpclip.data.schema import Region
from medpclip.errors import MedpclipError

SHAPE = (6, 8, 4)
AFFINE = np.array([[1.0, 0, 0, -3], [0, 1.0, 0, 5], [0, 0, 5.0, 100], [0, 0, 0, 1]])
IMAGE = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
LABEL = np.zeros(SHAPE, np.uint8)
LABEL[1:4, 2:5, 1:3] = 1
LABEL[4, 6, 2] = 2
OPTIONS: dict[str, Any] = {
    "images": "images/{case}.nii.gz",
    "labels": [{"files": "labels/{case}.nii.gz", "values": {"1": "liver", "2": "tumour"}}],
}


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine, dtype=values.dtype), path)


def pair(folder: Path, image: np.ndarray = IMAGE, label: np.ndarray = LABEL, case: str = "a") -> None:
    save(folder / f"images/{case}.nii.gz", image)
    save(folder / f"labels/{case}.nii.gz", label)


def reader(folder: Path, **options: Any) -> NiftiReader:
    return NiftiReader(folder, from_mapping(NiftiOptions, OPTIONS | options, "recipe"))


def read(folder: Path, **options: Any) -> list[RawSample]:
    """All samples of a source without faults in its files."""
    mine = reader(folder, **options)
    entries = mine.scan()
    assert all(isinstance(entry, Entry) for entry in entries), entries
    return [sample for entry in entries if isinstance(entry, Entry) for sample in mine.samples(entry)]


def tally(folder: Path, **options: Any) -> tuple[Counter[str], int, int, int, int]:
    """Reasons, and images and regions found and lost, as the build counts them."""
    mine = reader(folder, **options)
    faults, images, regions = [], 0, 0
    for entry in mine.scan():
        if isinstance(entry, Fault):
            faults.append(entry)
            continue
        try:
            for sample in mine.samples(entry):
                images, regions = images + 1, regions + len(sample.regions)
                faults += sample.faults
        except UnusableError as unusable:
            faults.append(unusable.fault)
    lost_images, lost_regions = sum(f.images for f in faults), sum(f.regions for f in faults)
    return Counter(f.reason for f in faults), images, regions, lost_images, lost_regions


def mask(region: Any) -> np.ndarray:
    found = Region(1, region.label, segmentation=region.rle).mask()
    assert found is not None
    return found


def pixels(sample: RawSample) -> np.ndarray:
    assert sample.picture is not None
    return sample.picture.pixels


def test_slices_regions_and_what_is_known_of_them(tmp_path: Path) -> None:
    pair(tmp_path)
    first, second = read(tmp_path, windows=[[0, 255]])
    assert (first.part, second.part) == ("z 001", "z 002")
    assert (first.spacing, first.size) == ([1.0, 1.0], (6, 8))
    assert first.volume == {"index": 1, "count": 4, "axis": "axial"}
    assert [(r.label, r.file, r.key) for r in second.regions] == [
        ("liver", "labels/a.nii.gz", "z 002, value 1"),
        ("tumour", "labels/a.nii.gz", "z 002, value 2"),
    ]
    for sample, k in ((first, 1), (second, 2)):
        assert np.array_equal(pixels(sample), np.clip(IMAGE, 0, 255)[::-1, ::-1, k].T)
        assert np.array_equal(mask(sample.regions[0]), (LABEL == 1)[::-1, ::-1, k].T)
    assert np.argwhere(mask(second.regions[1])).tolist() == [[8 - 1 - 6, 6 - 1 - 4]]
    assert first.picture and second.picture and first.picture.digest != second.picture.digest


def test_image_and_labels_in_all_pairs_of_orientations(tmp_path: Path) -> None:
    pair(tmp_path / "plain")
    expected = read(tmp_path / "plain")
    orientations = [nibabel.orientations.axcodes2ornt(tuple(codes)) for codes in ("RAS", "LPS", "PSR", "IAL", "SLA")]
    for number, (mine, theirs) in enumerate((a, b) for a in orientations for b in orientations):
        folder = tmp_path / str(number)
        for name, values, orientation in (("images", IMAGE, mine), ("labels", LABEL, theirs)):
            turned = nibabel.orientations.apply_orientation(values, orientation)
            save(folder / name / "a.nii.gz", turned, AFFINE @ nibabel.orientations.inv_ornt_aff(orientation, SHAPE))
        for found, wanted in zip(read(folder), expected, strict=True):
            assert np.array_equal(pixels(found), pixels(wanted))
            assert [(r.label, r.rle) for r in found.regions] == [(r.label, r.rle) for r in wanted.regions]
            assert (found.spacing, found.volume, found.part) == (wanted.spacing, wanted.volume, wanted.part)


def test_slice_policies(tmp_path: Path) -> None:
    pair(tmp_path)
    assert [s.part for s in read(tmp_path, slices="all")] == ["z 000", "z 001", "z 002", "z 003"]
    assert [s.part for s in read(tmp_path, slices="all", every=3)] == ["z 000", "z 003"]
    assert [s.part for s in read(tmp_path, every=2)] == ["z 001"]
    assert [len(s.regions) for s in read(tmp_path, slices="all")] == [0, 1, 2, 0]
    assert [s.part for s in read(tmp_path, plane="sagittal")] == ["x 001", "x 002", "x 003", "x 004"]
    assert [s.spacing for s in read(tmp_path, plane="coronal")] == [[5.0, 1.0]] * 4
    assert len(read(tmp_path, slices="all", labels=[], ignore=["labels/*.nii.gz"])) == 4


def test_oblique_slices_say_so(tmp_path: Path) -> None:
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    for name, values in (("images", IMAGE), ("labels", LABEL)):
        save(tmp_path / name / "a.nii.gz", values, turn @ AFFINE)
    assert read(tmp_path)[0].volume == {"index": 1, "count": 4, "axis": "axial", "tilt": 11.5}


def test_components_and_specks(tmp_path: Path) -> None:
    label = LABEL.copy()
    label[0, 0, 1] = 1
    pair(tmp_path, label=label)
    assert [len(s.regions) for s in read(tmp_path, components=True)] == [2, 2]
    first, second = read(tmp_path, components=True, min_pixels=2)
    assert ([r.key for r in first.regions], [f.regions for f in first.faults]) == (["z 001, value 1, component 0"], [1])
    assert ([r.label for r in second.regions], [f.regions for f in second.faults]) == (["liver"], [1])
    first, second = read(tmp_path, min_pixels=2)
    assert (len(first.regions), first.faults) == (1, [])
    assert [(f.key, f.reason, f.regions) for f in second.faults] == [
        ("z 002, value 2", "component is smaller than min_pixels", 1)
    ]


def test_unknown_ignored_and_named_background_values(tmp_path: Path) -> None:
    label = LABEL.copy()
    label[0, 0, 2], label[0, 1, 2], label[0, 0, 3] = 9, 7, 9
    pair(tmp_path, label=label)
    labels = OPTIONS["labels"][0] | {"ignore": [7]}
    samples = read(tmp_path, labels=[labels])
    assert [[(f.key, f.regions) for f in s.faults] for s in samples] == [
        [],
        [("z 002, value 9", 1)],
        [("z 003, value 9", 1)],
    ]
    labels["values"] = {"0": "background", "1": "liver", "2": "tumour", "9": "cyst", "7": "cyst"}
    samples = read(tmp_path, labels=[labels])
    assert [len(s.regions) for s in samples] == [1, 2, 5, 2]
    assert mask(samples[0].regions[0]).all()


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, np.uint64, np.int64, np.int32])
def test_label_types(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "labels/a.nii.gz"
    pair(tmp_path)
    save(path, LABEL.astype(dtype))
    assert [[r.label for r in s.regions] for s in read(tmp_path)] == [["liver"], ["liver", "tumour"]]


def test_scaled_labels_and_soft_masks(tmp_path: Path) -> None:
    pair(tmp_path)
    image = nibabel.Nifti1Image((LABEL * 10).astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.1, 0)
    nibabel.save(image, tmp_path / "labels/a.nii.gz")
    assert [[r.label for r in s.regions] for s in read(tmp_path)] == [["liver"], ["liver", "tumour"]]
    save(tmp_path / "labels/a.nii.gz", np.where(LABEL == 1, 0.7, 0.2).astype(np.float32))
    soft = {"files": "labels/{case}.nii.gz", "values": {"1": "lesion"}, "threshold": 0.5}
    samples = read(tmp_path, labels=[soft])
    assert [mask(r).sum() for s in samples for r in s.regions] == [9, 9]


def test_one_binary_file_per_class(tmp_path: Path) -> None:
    save(tmp_path / "s1/ct.nii.gz", IMAGE)
    for name, part in (("liver", LABEL == 1), ("kidney_left", LABEL == 2), ("aorta", LABEL == 3), ("big", LABEL > 0)):
        save(tmp_path / f"s1/segmentations/{name}.nii.gz", part.astype(np.uint8) * (255 if name == "big" else 1))
    samples = read(
        tmp_path, images="{case}/ct.nii.gz", labels=[{"files": "{case}/segmentations/{label}.nii.gz"}], slices="all"
    )
    assert [[r.label for r in s.regions] for s in samples] == [
        [],
        ["big", "liver"],
        ["big", "kidney_left", "liver"],
        [],
    ]
    assert np.array_equal(mask(samples[2].regions[0]), (LABEL > 0)[::-1, ::-1, 2].T)
    assert samples[2].regions[1].file == "s1/segmentations/kidney_left.nii.gz"


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_several_sequences_share_a_label_volume(tmp_path: Path, ending: str) -> None:
    for case in ("B_001", "B_002"):
        for sequence in ("flair", "t1", "t1ce", "seg"):
            values = LABEL if sequence == "seg" else IMAGE
            save(tmp_path / f"train/{case}/{case}_{sequence}.{ending}", values)
    mine = reader(
        tmp_path,
        images="**/{case}/{case}_{sequence:flair|t1|t1ce}.nii.gz",
        labels=[OPTIONS["labels"][0] | {"files": "**/{case}/{case}_seg.nii.gz"}],
    )
    entries = mine.scan()
    assert [(e.image, e.metadata) for e in entries if isinstance(e, Entry)] == [
        (f"train/{case}/{case}_{sequence}.{ending}", {"case": case, "sequence": sequence})
        for case in ("B_001", "B_002")
        for sequence in ("flair", "t1", "t1ce")
    ]
    assert all(len(list(mine.samples(entry))) == 2 for entry in entries if isinstance(entry, Entry))


def test_points(tmp_path: Path) -> None:
    points = np.zeros(SHAPE, np.int16)
    points[1, 2, 0], points[4, 2, 0], points[2, 7, 3] = 3, 3, 5
    save(tmp_path / "images/a.nii.gz", IMAGE)
    orientation = nibabel.orientations.axcodes2ornt(("P", "S", "L"))
    affine = AFFINE @ nibabel.orientations.inv_ornt_aff(orientation, SHAPE)
    save(tmp_path / "labels/a.nii.gz", nibabel.orientations.apply_orientation(points, orientation), affine)
    labels = {"files": "labels/{case}.nii.gz", "kind": "points", "values": {"3": "C3", "5": "C5"}}
    for grid in ("same", "nearest"):
        first, last = read(tmp_path, labels=[labels], label_grid=grid)
        assert (first.part, last.part) == ("z 000", "z 003")
        assert sorted((r.label, r.points) for r in first.regions) == [("C3", [[1.5, 5.5]]), ("C3", [[4.5, 5.5]])]
        assert [(r.label, r.points) for r in last.regions] == [("C5", [[3.5, 0.5]])]


def test_points_of_a_finer_grid_are_neither_lost_nor_doubled(tmp_path: Path) -> None:
    points = np.zeros((24, 32, 16), np.uint8)
    points[9, 9, 9] = points[0, 0, 15] = 1
    save(tmp_path / "images/a.nii.gz", IMAGE)
    fine = AFFINE @ np.diag([0.25, 0.25, 0.25, 1])
    save(tmp_path / "labels/a.nii.gz", points, fine)
    labels = {"files": "labels/{case}.nii.gz", "kind": "points", "values": {"1": "tip"}}
    samples = read(tmp_path, labels=[labels], label_grid="nearest")
    assert [s.part for s in samples] == ["z 002", "z 003"]
    assert samples[0].regions[0].points == [[6 - 0.5 - 9 / 4, 8 - 0.5 - 9 / 4]]
    (fault,) = samples[1].faults
    assert (fault.reason, fault.regions) == ("point lies outside the image", 1)


def test_label_grids(tmp_path: Path) -> None:
    pair(tmp_path)
    moved = AFFINE.copy()
    moved[:3, 3] += [1, 0, 0]
    save(tmp_path / "labels/a.nii.gz", LABEL, moved)
    assert tally(tmp_path) == (Counter({"label volume lies on another grid than the image": 1}), 0, 0, 1, 3)
    nearest = mask(read(tmp_path, label_grid="nearest")[0].regions[0])
    assert np.array_equal(nearest, np.roll(LABEL == 1, 1, axis=0)[::-1, ::-1, 1].T)
    assert np.array_equal(mask(read(tmp_path, label_grid="stored")[0].regions[0]), (LABEL == 1)[::-1, ::-1, 1].T)


def test_neighbours_in_the_colour_channels(tmp_path: Path) -> None:
    pair(tmp_path)
    grey = [pixels(sample) for sample in read(tmp_path, slices="all")]
    for step in (1, 2):
        for i, sample in enumerate(read(tmp_path, slices="all", neighbours=step)):
            expected = [grey[max(i - step, 0)], grey[i], grey[min(i + step, 3)]]
            assert np.array_equal(pixels(sample), np.dstack(expected))
            assert sample.picture and sample.picture.intensity and sample.picture.intensity["neighbours"] == step


def test_intensity_is_recorded(tmp_path: Path) -> None:
    values = IMAGE.astype(np.float32)
    values[values < 300] = 0
    values[0, 0, 1], values[1, 0, 1], values[2, 0, 1] = np.nan, np.inf, -np.inf
    pair(tmp_path, image=values)
    finite = values[np.isfinite(values)]

    def intensity(**options: Any) -> dict[str, Any]:
        picture = read(tmp_path, **options)[0].picture
        assert picture is not None and picture.intensity is not None
        return picture.intensity

    low, high = np.percentile(finite, [0.5, 99.5])
    record = intensity()
    assert record.pop("window") == pytest.approx([low, high])
    assert record == {"percentiles": [0.5, 99.5], "scope": "volume", "bits": 32, "nonfinite": 3}
    record = intensity(foreground=True, percentiles=[1, 99])
    assert record.pop("window") == pytest.approx(np.percentile(finite[finite != 0], [1, 99]).tolist())
    assert record["foreground"] is True
    part = values[:, :, 1]
    assert intensity(scope="slice")["window"] == pytest.approx(
        np.percentile(part[np.isfinite(part)], [0.5, 99.5]).tolist()
    )
    assert intensity(windows=[[-160, 240]]) == {"window": [-160.0, 240.0], "bits": 32, "nonfinite": 3}
    assert intensity(windows=[[0, 10], [5, 9], [1, 2]])["window"] == [[0, 10], [5, 9], [1, 2]]


def test_three_windows_and_slope(tmp_path: Path) -> None:
    pair(tmp_path)
    image = nibabel.Nifti1Image(IMAGE, AFFINE)
    image.header.set_slope_inter(2, -1000)
    nibabel.save(image, tmp_path / "images/a.nii.gz")
    windows = [[-1000.0, -490.0], [0.0, 255.0], [0.0, 510.0]]
    units = (IMAGE * 2.0 - 1000)[::-1, ::-1, 1].T
    expected = [np.rint(np.clip((units - low) / (high - low), 0, 1) * 255) for low, high in windows]
    assert np.array_equal(pixels(read(tmp_path, windows=windows)[0]), np.dstack(expected))
    assert np.array_equal(pixels(read(tmp_path, windows=windows[1:2])[0]), expected[1])
    picture = read(tmp_path)[0].picture
    assert picture is not None and picture.intensity is not None
    assert picture.intensity["window"] == pytest.approx(np.percentile(IMAGE * 2.0 - 1000, [0.5, 99.5]).tolist())


def test_frames_of_a_fourth_axis(tmp_path: Path) -> None:
    pair(tmp_path, image=np.stack([IMAGE, IMAGE[::-1], IMAGE + 1], axis=3))
    samples = read(tmp_path, frames={"0": "flair", "1": "t1"}, windows=[[0, 255]])
    assert [(s.part, s.metadata["frame"]) for s in samples] == [
        ("frame flair, z 001", "flair"),
        ("frame flair, z 002", "flair"),
        ("frame t1, z 001", "t1"),
        ("frame t1, z 002", "t1"),
    ]
    assert len({s.metadata["volume"] for s in samples}) == 2
    assert np.array_equal(pixels(samples[2]), np.clip(IMAGE, 0, 255)[:, ::-1, 1].T)


def test_missing_affines(tmp_path: Path) -> None:
    pair(tmp_path)
    save(tmp_path / "images/a.nii.gz", IMAGE, None)
    assert tally(tmp_path) == (Counter({"volume has no affine": 1}), 0, 0, 1, 3)
    save(tmp_path / "labels/a.nii.gz", LABEL, None)
    first, _ = read(tmp_path, assume_axes="LPS", plane="axial")
    assert np.array_equal(mask(first.regions[0]), (LABEL == 1)[:, :, 1].T)
    save(tmp_path / "images/a.nii.gz", IMAGE)
    first, _ = read(tmp_path, label_grid="stored")
    assert np.array_equal(mask(first.regions[0]), (LABEL == 1)[::-1, ::-1, 1].T)


def test_constant_volume_is_black_and_recorded(tmp_path: Path) -> None:
    pair(tmp_path, image=np.full(SHAPE, 7, np.int16))
    picture = read(tmp_path)[0].picture
    assert picture is not None and picture.intensity is not None
    assert not picture.pixels.any()
    assert picture.intensity["window"] == [7, 7]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _singular(folder: Path) -> None:
    image = nibabel.Nifti1Image(IMAGE, None)
    image.header.set_sform(np.diag([0.0, 1, 1, 1]), 1)
    nibabel.save(image, folder / "images/a.nii.gz")


def _extra_label(folder: Path) -> None:
    save(folder / "labels/b.nii.gz", LABEL)


# What is broken -> reason, and the images and regions that are lost with it; the source has the cases a and good.
FAULTS: dict[str, tuple[Callable[[Path], Any], str, int, int]] = {
    "image cut off": (lambda f: _cut(f / "images/a.nii.gz"), "volume is truncated", 1, 3),
    "image is no NIfTI": (lambda f: (f / "images/a.nii.gz").write_bytes(b"x"), "volume can't be read", 1, 3),
    "image is another file": (
        lambda f: (f / "images/a.nii.gz").write_bytes(gzip.compress(b"x" * 999)),
        "volume can't be read",
        1,
        3,
    ),
    "label cut off": (lambda f: _cut(f / "labels/a.nii.gz"), "volume is truncated", 1, 0),
    "image has frames": (
        lambda f: save(f / "images/a.nii.gz", np.stack([IMAGE] * 2, 3)),
        "volume has more than three dimensions",
        1,
        3,
    ),
    "label has frames": (
        lambda f: save(f / "labels/a.nii.gz", np.stack([LABEL] * 2, 3)),
        "volume has more than three dimensions",
        1,
        0,
    ),
    "no finite value": (
        lambda f: save(f / "images/a.nii.gz", np.full(SHAPE, np.nan, np.float32)),
        "image has no finite value",
        1,
        3,
    ),
    "complex numbers": (
        lambda f: save(f / "images/a.nii.gz", IMAGE.astype(np.complex64)),
        "voxels of the volume are not numbers",
        1,
        3,
    ),
    "singular affine": (_singular, "affine of the volume makes no sense", 1, 3),
    "image without affine": (lambda f: save(f / "images/a.nii.gz", IMAGE, None), "volume has no affine", 1, 3),
    "label on another grid": (
        lambda f: save(f / "labels/a.nii.gz", LABEL[:, :, :3]),
        "label volume lies on another grid than the image",
        1,
        3,
    ),
    "empty label": (lambda f: save(f / "labels/a.nii.gz", LABEL * 0), "label volume is empty", 1, 0),
    "interpolated label": (
        lambda f: save(f / "labels/a.nii.gz", np.where(LABEL > 1, 1.5, LABEL).astype(np.float32)),
        "value in the label volume is not a whole number",
        1,
        2,
    ),
    "label of NaN": (
        lambda f: save(f / "labels/a.nii.gz", np.where(LABEL > 1, np.nan, LABEL)),
        "value in the label volume is not a whole number",
        1,
        2,
    ),
    "no label": (lambda f: (f / "labels/a.nii.gz").unlink(), "image without an annotation", 1, 0),
    "no image": (lambda f: (f / "images/a.nii.gz").unlink(), "annotation without an image", 0, 3),
    "label of nothing": (_extra_label, "annotation without an image", 0, 3),
    "strange file": (lambda f: save(f / "other.nii", IMAGE), "file fits none of the recipe's patterns", 1, 0),
    "label twice": (lambda f: save(f / "labels/a.nii", LABEL), "several files share one name", 1, 6),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_counted_exactly(tmp_path: Path, name: str) -> None:
    pair(tmp_path)
    pair(tmp_path, case="good")
    assert tally(tmp_path) == (Counter(), 4, 6, 0, 0)
    change, reason, images, regions = FAULTS[name]
    change(tmp_path)
    reasons, found_images, found_regions, lost_images, lost_regions = tally(tmp_path)
    assert (reasons, lost_images, lost_regions) == (Counter({reason: 1}), images, regions)
    untouched = reason in ("file fits none of the recipe's patterns",) or name == "label of nothing"
    assert (found_images, found_regions) == ((4, 6) if untouched else (2, 3))


def test_image_twice(tmp_path: Path) -> None:
    pair(tmp_path)
    save(tmp_path / "images/a.nii", IMAGE)
    assert tally(tmp_path) == (Counter({"several files share one name": 2}), 0, 0, 2, 6)


def test_one_bad_label_file_loses_the_whole_volume_once(tmp_path: Path) -> None:
    pair(tmp_path)
    save(tmp_path / "more/a.nii.gz", LABEL)
    labels = [*OPTIONS["labels"], OPTIONS["labels"][0] | {"files": "more/{case}.nii.gz"}]
    assert tally(tmp_path, labels=labels) == (Counter(), 2, 6, 0, 0)
    save(tmp_path / "more/a.nii.gz", LABEL[1:])
    reason = "label volume lies on another grid than the image"
    assert tally(tmp_path, labels=labels) == (Counter({reason: 1}), 0, 0, 1, 6)


def test_missing_frame(tmp_path: Path) -> None:
    pair(tmp_path)
    assert tally(tmp_path, frames={"1": "t1"})[0] == Counter({"frame of the volume is missing": 1})


def test_optional_label_files(tmp_path: Path) -> None:
    pair(tmp_path)
    pair(tmp_path, case="b")
    save(tmp_path / "more/a.nii.gz", LABEL)
    labels = [OPTIONS["labels"][0] | {"optional": True}, OPTIONS["labels"][0] | {"files": "more/{case}.nii.gz"}]
    assert tally(tmp_path, labels=labels) == (Counter({"image without an annotation": 1}), 2, 6, 1, 3)
    labels[1]["optional"] = True
    assert tally(tmp_path, labels=labels) == (Counter(), 4, 9, 0, 0)
    (tmp_path / "labels/b.nii.gz").unlink()
    assert tally(tmp_path, labels=labels) == (Counter({"image without an annotation": 1}), 2, 6, 1, 0)
    assert tally(tmp_path, labels=labels, slices="all")[1:3] == (8, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "images"}, "must end in"),
        ({"images": "{label}.nii"}, "meaning of its own"),
        ({"labels": []}, "'labels' is empty"),
        ({"labels": [{"files": "labels/{x}.nii", "values": {"1": "a"}}]}, "placeholder 'x', which 'images' hasn't"),
        ({"labels": [{"files": "labels/{case}.nii"}]}, "needs either 'values'"),
        ({"labels": [{"files": "labels/{label}.nii", "values": {"1": "a"}}]}, "needs either 'values'"),
        ({"labels": [{"files": "labels/{case}.nii", "values": {"one": "a"}}]}, "the key 'one'"),
        ({"labels": [{"files": "labels/{case}.nii", "values": {"2": "a"}, "threshold": 0.5}]}, "only the number 1"),
        ({"labels": [{"files": "labels/{case}.nii", "values": {"0": "a"}, "kind": "points"}]}, "no point"),
        ({"labels": [{"files": "labels/{case}", "values": {"1": "a"}}]}, "must end in"),
        ({"windows": [[1, 2], [1, 2]]}, "expected one, or three"),
        ({"windows": [[2, 1]]}, r"give \[low, high\]"),
        ({"percentiles": [99, 1]}, "lower one first"),
        ({"neighbours": 1, "windows": [[0, 1]] * 3}, "'neighbours'"),
        ({"every": 0}, "'every' is 0"),
        ({"min_pixels": 0}, "'min_pixels' is 0"),
        ({"frames": {"first": "t1"}}, "'frames' has a key"),
        ({"assume_axes": "RLS"}, "'assume_axes' is 'RLS'"),
        ({"ignore": ["x"]}, "'ignore'"),
        ({"plane": "thick"}, "plane"),
        ({"imges": "a"}, "imges"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MedpclipError, match=message):
        from_mapping(NiftiOptions, OPTIONS | options, "recipe")


def test_source_without_images(tmp_path: Path) -> None:
    save(tmp_path / "x/a.nii.gz", IMAGE)
    with pytest.raises(MedpclipError, match=r"no NIfTI file fits 'images/\{case\}.nii.gz'"):
        reader(tmp_path).scan()


def test_free_text_of_headers_gets_nowhere(tmp_path: Path) -> None:
    secret = b"DOE^JANE 1961"
    for name, values in (("images", IMAGE), ("labels", LABEL)):
        image = nibabel.Nifti1Image(values, AFFINE)
        for key in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[key] = secret
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", secret))
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("dicom", b"\x10\x00" + secret))
        (tmp_path / name).mkdir()
        nibabel.save(image, tmp_path / name / "a.nii.gz")
        assert secret in gzip.decompress((tmp_path / name / "a.nii.gz").read_bytes())
    samples = read(tmp_path)
    assert len(samples) == 2
    for sample in samples:
        assert sample.picture is not None
        assert secret not in sample.picture.data
        assert b"JANE" not in repr(sample).encode()


# The real source.

SPINE: dict[str, Any] = {
    "images": "{folder}/{sequence:t2|t2s|mt1}.nii.gz",
    "labels": [
        {"files": f"{{folder}}/{{sequence:{sequence}}}{name}.nii.gz", "optional": True}
        | {"values": {str(v): f"{sequence}{name}={v}" for v in values}}
        for sequence, name, values in (
            ("t2", "_seg-manual", [1]),
            ("t2", "_seg-manual_labeled", [2, 3, 4, 5]),
            ("t2", "_seg-deepseg_rootlets-manual", [5, 6, 7]),
            ("t2", "_centerline-manual", [1]),
            ("t2s", "_seg", [1]),
            ("t2s", "_gmseg_manual", [1]),
            ("mt1", "_seg", [1]),
            ("mt1", "_gmseg_goldstandard", [1]),
        )
    ]
    + [
        {"files": f"{{folder}}/{name}.nii.gz", "optional": True, "kind": "points"}
        | {"values": {str(v): f"{text}={v}" for v in values}}
        for name, text, values in (
            ("labels", "labels", [3, 5]),
            ("{sequence:t2}_labeled_center_manual", "t2_labeled_center_manual", [3, 4, 5]),
            ("{sequence:mt1}_point", "mt1_point", [1]),
        )
    ],
}


@pytest.fixture(scope="module")
def spine() -> dict[str, list[RawSample]]:
    root = os.environ.get("MEDPCLIP_DATA")
    if not root or not (Path(root) / "sct_spine_mri").is_dir():
        pytest.skip("MEDPCLIP_DATA doesn't name the folder of the real sources")
    mine = NiftiReader(Path(root) / "sct_spine_mri", from_mapping(NiftiOptions, SPINE, "recipe"))
    entries = mine.scan()
    assert all(isinstance(entry, Entry) for entry in entries)
    return {e.metadata["sequence"]: list(mine.samples(e)) for e in entries if isinstance(e, Entry)}


def test_real_labels_are_the_published_ones(spine: dict[str, list[RawSample]]) -> None:
    """The source's README counts 19 labels of volumes: 13 mask values and 6 point values."""
    expected = {
        "t2": {f"t2_seg-manual_labeled={v}" for v in (2, 3, 4, 5)}
        | {f"t2_labeled_center_manual={v}" for v in (3, 4, 5)}
        | {f"t2_seg-deepseg_rootlets-manual={v}" for v in (5, 6, 7)}
        | {"t2_seg-manual=1", "labels=3", "labels=5", "t2_centerline-manual=1"},
        "t2s": {"t2s_seg=1", "t2s_gmseg_manual=1"},
        "mt1": {"mt1_seg=1", "mt1_gmseg_goldstandard=1", "mt1_point=1"},
    }
    found = {name: {r.label for s in samples for r in s.regions} for name, samples in spine.items()}
    assert found == expected
    assert sum(map(len, found.values())) == 19
    assert sum(len(r.points or ()) for samples in spine.values() for s in samples for r in s.regions) == 6
    assert not [f for samples in spine.values() for s in samples for f in s.faults]


def test_real_slices_are_axial_with_their_spacing(spine: dict[str, list[RawSample]]) -> None:
    facts = {name: (len(samples), samples[0].spacing, pixels(samples[0]).shape) for name, samples in spine.items()}
    assert facts == {
        "t2": (55, [1.0, 1.0], (60, 52)),
        "t2s": (9, [0.5, 0.5], (54, 49)),
        "mt1": (5, [0.84375, 0.84375], (40, 40)),
    }
    assert {s.volume["axis"] for samples in spine.values() for s in samples if s.volume} == {"axial"}


def test_real_cord_is_darker_than_the_fluid_around_it(spine: dict[str, list[RawSample]]) -> None:
    """In T2 the cord lies dark in bright fluid; a flipped or shifted mask wouldn't."""
    from scipy import ndimage

    differences: list[float] = []
    flipped: list[float] = []
    for name in ("t2", "t2s", "mt1"):
        label = {"t2": "t2_seg-manual=1", "t2s": "t2s_seg=1", "mt1": "mt1_seg=1"}[name]
        for sample in spine[name]:
            (cord,) = (mask(r) for r in sample.regions if r.label == label)
            for turned, out in ((cord, differences), (cord[::-1], flipped)):
                ring = ndimage.binary_dilation(turned, iterations=3) & ~ndimage.binary_dilation(turned)
                out.append(pixels(sample)[ring].mean() - pixels(sample)[turned].mean())
    assert np.mean(np.array(differences) > 0) > 0.95
    assert np.mean(differences) > 3 * abs(np.mean(flipped))


def test_real_points_lie_on_the_cord(spine: dict[str, list[RawSample]]) -> None:
    checked = 0
    for samples in spine.values():
        for sample in samples:
            (cord,) = (mask(r) for r in sample.regions if r.label in ("t2_seg-manual=1", "t2s_seg=1", "mt1_seg=1"))
            for region in sample.regions:
                for x, y in region.points or ():
                    assert cord[int(y), int(x)]
                    checked += 1
    assert checked == 6
