"""Dense arrays: pictures and volumes give the samples they hold, values become 8 bits as stated, misfits are counted."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medpclip.data.readers import Entry, Fault, RawSample, UnusableError
from medpclip.data.readers.dense_npz import DenseNpzOptions, DenseNpzReader
from medpclip.data.schema import Region
from medpclip.errors import MedpclipError

RANDOM = np.random.default_rng(0)
GTS = np.zeros((12, 16), np.uint8)
GTS[2:5, 3:9], GTS[8:, 10:] = 1, 7
VOLUME = np.stack([GTS * 0, GTS, np.where(GTS == 7, 7, 0).astype(np.uint8)])
GREY = RANDOM.integers(0, 256, VOLUME.shape, np.uint8)
RGB = RANDOM.integers(0, 256, (*GTS.shape, 3), np.uint8)
NAMED = {"1": "liver", "7": "spleen"}


def reader(folder: Path, **options: Any) -> DenseNpzReader:
    return DenseNpzReader(folder, DenseNpzOptions(**({"values": NAMED} | options)))


def read(folder: Path, **options: Any) -> list[RawSample]:
    own = reader(folder, **options)
    (entry,) = own.scan()
    assert isinstance(entry, Entry)
    return list(own.samples(entry))


def pixels(sample: RawSample) -> np.ndarray:
    assert sample.picture is not None
    return sample.picture.pixels


def check_masks(sample: RawSample, numbers: np.ndarray, labels: dict[str, str] = NAMED) -> None:
    expected = {label: numbers == int(value) for value, label in labels.items() if (numbers == int(value)).any()}
    assert [region.label for region in sample.regions] == list(expected)
    for region in sample.regions:
        mask = Region(1, "x", segmentation=region.rle).mask()
        assert np.array_equal(mask, expected[region.label])


@pytest.mark.parametrize("image", [RGB, RGB[..., 0], np.dstack([RGB, GTS])])
def test_picture(tmp_path: Path, image: np.ndarray) -> None:
    np.savez_compressed(tmp_path / "CXR, a.npz", imgs=image, gts=GTS)
    (sample,) = read(tmp_path)
    assert np.array_equal(pixels(sample), RGB if image.ndim == 3 else image)
    check_masks(sample, GTS)
    assert (sample.part, sample.volume, sample.spacing) == ("", None, None)
    assert sample.picture is not None
    assert sample.picture.digest == hashlib.sha256((tmp_path / "CXR, a.npz").read_bytes()).hexdigest()


def test_volume_slice_by_slice(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "CT.npz", imgs=GREY, gts=VOLUME, spacing=(0.5, 0.75, 5.0))
    found = read(tmp_path)
    assert [(s.part, s.volume) for s in found] == [(f"z 00{i}", {"index": i, "count": 3, "axis": "z"}) for i in (1, 2)]
    for sample in found:
        index = int(sample.part[-1])
        assert np.array_equal(pixels(sample), GREY[index])
        assert sample.spacing == [0.75, 0.5]
        check_masks(sample, VOLUME[index])
    assert len({sample.picture.digest for sample in found if sample.picture}) == 2
    everything = read(tmp_path, slices="all")
    assert [(s.part, len(s.regions)) for s in everything] == [("z 000", 0), ("z 001", 2), ("z 002", 1)]
    assert [s.picture.digest for s in everything[1:] if s.picture] == [s.picture.digest for s in found if s.picture]


def test_volume_of_colour_slices_and_the_other_spacing(tmp_path: Path) -> None:
    frames = np.stack([RGB, 255 - RGB, RGB // 2])
    np.savez(tmp_path / "video.npz", imgs=frames, gts=VOLUME, spacing=np.array([5.0, 0.75, 0.5]))
    first, second = read(tmp_path, spacing_order="zyx")
    assert np.array_equal(pixels(first), frames[1])
    assert second.spacing == [0.75, 0.5]


@pytest.mark.parametrize("spacing", [[1.0], [0.0, 1.0, 1.0], ["a", "b"], [[1.0, 1.0]], [np.nan, 1, 1]])
def test_spacing_that_makes_no_sense_is_none(tmp_path: Path, spacing: Any) -> None:
    np.savez(tmp_path / "a.npz", imgs=RGB, gts=GTS, spacing=np.array(spacing))
    assert read(tmp_path)[0].spacing is None


def test_pairs_of_npy(tmp_path: Path) -> None:
    for part in ("CT_Abd", "MR"):
        for kind in ("imgs", "gts"):
            (tmp_path / "npy" / part / kind).mkdir(parents=True)
        np.save(tmp_path / "npy" / part / "imgs" / "x-000.npy", RGB / 255)
        np.save(tmp_path / "npy" / part / "gts" / "x-000.npy", GTS)
    own = reader(tmp_path, images="npy/*/imgs/*.npy", masks="../gts", values={}, unnamed="target")
    entries = own.scan()
    assert [e.image for e in entries if isinstance(e, Entry)] == [
        "npy/CT_Abd/imgs/x-000.npy",
        "npy/MR/imgs/x-000.npy",
    ]
    assert isinstance(entries[0], Entry)
    (sample,) = own.samples(entries[0])
    assert np.array_equal(pixels(sample), RGB)
    assert sample.picture is not None
    assert sample.picture.intensity == {"window": [0.0, 1.0], "bits": 64}
    assert [(r.label, r.key, r.file) for r in sample.regions] == [
        ("target", "value 1", "npy/CT_Abd/gts/x-000.npy"),
        ("target", "value 7", "npy/CT_Abd/gts/x-000.npy"),
    ]
    assert len(reader(tmp_path, images="npy", masks="../gts").scan()) == 2  # the labels' files are no images


def test_values_become_8_bits_as_stated(tmp_path: Path) -> None:
    counts = np.arange(GTS.size, dtype=np.int16).reshape(GTS.shape) * 10 - 500
    np.savez(tmp_path / "a.npz", imgs=counts, gts=GTS)
    (sample,) = read(tmp_path, range=[-500, 0])
    assert (pixels(sample)[0, 0], pixels(sample)[-1, -1]) == (0, 255)
    assert sample.picture is not None
    assert sample.picture.intensity == {"window": [-500.0, 0.0], "bits": 16}
    (sample,) = read(tmp_path)
    low, high = np.percentile(counts, (0.5, 99.5))
    assert sample.picture is not None and sample.picture.intensity is not None
    assert sample.picture.intensity["window"] == pytest.approx([low, high])
    expected = np.clip((counts - low) / (high - low), 0, 1) * 255
    assert np.abs(pixels(sample) - expected).max() <= 0.5 + 1e-6


def test_numbers_without_a_name_and_components(tmp_path: Path) -> None:
    two = GTS.copy()
    two[11, 0] = 1
    np.savez(tmp_path / "a.npz", imgs=RGB, gts=two.astype(np.int64))
    (sample,) = read(tmp_path, values={"1": "liver"}, components=True, min_pixels=2)
    assert [r.key for r in sample.regions] == ["value 1, component 0"]
    assert [(f.key, f.reason, f.regions) for f in sample.faults] == [
        ("value 1", "component is smaller than min_pixels", 1),
        ("value 7", "number in the mask has no label in the recipe", 1),
    ]
    (sample,) = read(tmp_path, values={"1": "liver"}, ignore=[7])
    assert not sample.faults


@pytest.mark.parametrize(
    ("change", "reason", "regions"),
    [
        ({"gts": None}, "array is missing in the file", 0),
        ({"imgs": None}, "array is missing in the file", 0),
        ({"gts": GTS[:-1]}, "mask is of another size than the image", 2),
        ({"gts": VOLUME}, "mask is of another size than the image", 3),
        ({"gts": GTS / 2}, "mask has fractions where whole numbers were expected", 0),
        ({"gts": GTS[0]}, "array is not a picture or volume", 0),
        ({"gts": GTS[:0]}, "array is not a picture or volume", 0),
        ({"imgs": np.full(GTS.shape, "a")}, "array holds objects instead of numbers", 0),
        ({"imgs": np.array([{}])}, "array holds objects instead of numbers", 0),
        ({"imgs": RGB / 2.0}, "image's fractions are not between 0 and 1", 2),
        ({"imgs": np.full(GTS.shape, np.nan)}, "image's fractions are not between 0 and 1", 2),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, change: dict[str, Any], reason: str, regions: int) -> None:
    arrays = {name: array for name, array in ({"imgs": RGB, "gts": GTS} | change).items() if array is not None}
    save: Callable[..., None] = np.savez
    save(tmp_path / "a.npz", **arrays)
    with pytest.raises(UnusableError) as caught:
        read(tmp_path)
    fault = caught.value.fault
    assert (fault.file, fault.reason, fault.images, fault.regions) == ("a.npz", reason, 1, regions)


def test_pairs_that_stay_alone(tmp_path: Path) -> None:
    for kind, names in (("imgs", "ab"), ("gts", "bcd")):
        (tmp_path / kind).mkdir()
        for name in names:
            np.save(tmp_path / kind / f"{name}.npy", GTS)
    (tmp_path / "gts" / "d.npy").write_bytes(b"x")
    found = reader(tmp_path, images="imgs", masks="../gts").scan()
    assert [e.image for e in found if isinstance(e, Entry)] == ["imgs/b.npy"]
    assert [(f.file, f.reason, f.images, f.regions) for f in found if isinstance(f, Fault)] == [
        ("imgs/a.npy", "image without an annotation", 1, 0),
        ("gts/c.npy", "annotation without an image", 0, 2),
        ("gts/d.npy", "annotation without an image", 0, 0),
    ]
    with pytest.raises(MedpclipError, match="leads out of the source"):
        reader(tmp_path, images="imgs", masks="../../gts").scan()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"values": {}}, "give 'values'"),
        ({"values": {"a": "b"}}, "expected the labels' numbers"),
        ({"range": (1.0, 0.0)}, "the lower value first"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        DenseNpzOptions(**({"values": NAMED} | options))
