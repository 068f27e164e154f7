"""Sparse masks: rows equal what scipy reads, whatever the file is called; broken matrices and lists are told apart."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

from medpclip.data.readers import Entry, Fault, RawSample, UnusableError
from medpclip.data.readers.sparse_npz import SparseNpzOptions, SparseNpzReader
from medpclip.data.schema import Region
from medpclip.errors import MedpclipError

DATA = os.environ.get("MEDPCLIP_DATA", "")
LABELS = {"0": "background", "1": "spleen", "2": "right kidney", "3": "liver"}
NAME = "x_a, b.(3, 6, 8, 1).npz"
PLANES = np.zeros((3, 6, 8), np.int32)
PLANES[0, 1:3, 2:7] = 1
PLANES[2, 5, 0], PLANES[2, 0, 7] = 1, -2


def save(folder: Path, planes: np.ndarray = PLANES, name: str = NAME, image: str = "a, b.png", **top: Any) -> None:
    for part in ("image", "label"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(planes.shape[1:], np.uint8)).save(folder / "image" / image)
    sparse.save_npz(folder / "label" / name, sparse.csr_matrix(planes.reshape(len(planes), -1)))
    data = {"name": "T", "modality": {"0": "ct", "1": "mr"}, "labels": LABELS, "training": [entry(image, name)]}
    (folder / "dataset.json").write_text(json.dumps(data | top))


def entry(image: str = "a, b.png", name: str = NAME) -> dict[str, str]:
    return {"image": f"image/{image}", "label": f"label/{name}", "imask": "imask/x.npz"}


def reader(folder: Path, **options: Any) -> SparseNpzReader:
    return SparseNpzReader(folder, SparseNpzOptions(**options))


def read(folder: Path, **options: Any) -> RawSample:
    own = reader(folder, **options)
    (found,) = own.scan()
    assert isinstance(found, Entry)
    return own.read(found)


def masks(sample: RawSample) -> list[np.ndarray | None]:
    return [Region(1, "x", segmentation=region.rle).mask() for region in sample.regions]


def faults(folder: Path, **options: Any) -> list[tuple[str, str, int, int]]:
    found = reader(folder, **options).scan()
    return [(f.key or f.file, f.reason, f.images, f.regions) for f in found if isinstance(f, Fault)]


@pytest.mark.parametrize("name", [NAME, "x.(3,6,8).npz", "no shape.npz"])
def test_one_region_per_row(tmp_path: Path, name: str) -> None:
    save(tmp_path, name=name)
    sample = read(tmp_path)
    assert [(r.label, r.key) for r in sample.regions] == [("spleen", "row 0"), ("liver", "row 2")]
    for mask, row in zip(masks(sample), (0, 2), strict=True):
        assert np.array_equal(mask, PLANES[row] != 0)
    (found,) = reader(tmp_path).scan()
    assert isinstance(found, Entry)
    assert found.metadata == {"dataset.name": "T", "dataset.modality": "ct|mr", "dataset.list": "training"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 1, 255]), min_size=36, max_size=36), st.sampled_from(["uint8", "float64"]))
def test_rows_equal_those_of_scipy(tmp_path: Path, numbers: list[int], dtype: str) -> None:
    planes = np.array(numbers, dtype).reshape(3, 3, 4)
    save(tmp_path, planes, "x.npz")
    sample = read(tmp_path)
    found = dict(zip((region.label for region in sample.regions), masks(sample), strict=True))
    expected = {label: plane != 0 for label, plane in zip(list(LABELS.values())[1:], planes, strict=True)}
    assert found.keys() == {label for label, plane in expected.items() if plane.any()}
    assert all(np.array_equal(mask, expected[label]) for label, mask in found.items())


def test_components_and_names_of_our_own(tmp_path: Path) -> None:
    save(tmp_path)
    sample = read(tmp_path, components=True, min_pixels=2, values={"1": "organ", "3": "islet"})
    assert [r.label for r in sample.regions] == ["organ"]
    assert [(f.key, f.reason, f.regions) for f in sample.faults] == [
        ("row 2", "component is smaller than min_pixels", 2)
    ]
    sample = read(tmp_path, values={"1": "organ"})
    assert [(f.key, f.reason, f.regions) for f in sample.faults] == [
        ("row 2", "number in the mask has no label in the recipe", 1)
    ]


def test_stored_zeros_and_any_order_of_columns(tmp_path: Path) -> None:
    save(tmp_path)
    write(tmp_path, data=[1, 0, 3], indices=[9, 4, 2], indptr=[0, 3, 3, 3])
    (mask,) = masks(read(tmp_path))
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [2, 9]


def test_several_datasets_below_one_root(tmp_path: Path) -> None:
    save(tmp_path / "one")
    save(tmp_path / "two", name="x.npz", labels={"1": "heart", "3": "aorta"}, name_of="ignored")
    own = reader(tmp_path, datasets="*/dataset.json")
    found = [item for item in own.scan() if isinstance(item, Entry)]
    assert [item.image for item in found] == ["one/image/a, b.png", "two/image/a, b.png"]
    labels = [[r.label for r in own.read(item).regions] for item in found]
    assert labels == [["spleen", "liver"], ["heart", "aorta"]]


def write(folder: Path, **arrays: Any) -> None:
    good = {"data": [1, 1], "indices": [0, 1], "indptr": [0, 2, 2, 2], "shape": [3, 48], "format": b"csr"}
    np.savez(folder / "label" / NAME, **{name: np.array(value) for name, value in (good | arrays).items()})


@pytest.mark.parametrize(
    ("arrays", "reason", "regions"),
    [
        ({"indptr": [0, 2, 1, 2]}, "sparse matrix is broken", 0),
        ({"indptr": [1, 2, 2, 2]}, "sparse matrix is broken", 0),
        ({"indptr": [0, 2, 2, 3]}, "sparse matrix is broken", 0),
        ({"indptr": [0, 2]}, "sparse matrix is broken", 0),
        ({"indices": [0, 48]}, "sparse matrix is broken", 0),
        ({"indices": [0, -1]}, "sparse matrix is broken", 0),
        ({"indices": [0.0, 1.0]}, "sparse matrix is broken", 0),
        ({"data": [1, 1, 1]}, "sparse matrix is broken", 0),
        ({"data": ["a", "b"]}, "sparse matrix is broken", 0),
        ({"shape": [3, 48, 1]}, "sparse matrix is broken", 0),
        ({"shape": [3, 10**14]}, "sparse matrix is broken", 0),
        ({"shape": [3, 47]}, "shape in the file's name is not the matrix's", 1),
        ({"format": b"csc"}, "sparse matrix is not CSR", 0),
    ],
)
def test_broken_matrices(tmp_path: Path, arrays: dict[str, Any], reason: str, regions: int) -> None:
    save(tmp_path)
    write(tmp_path, **arrays)
    with pytest.raises(UnusableError) as caught:
        read(tmp_path)
    fault = caught.value.fault
    assert (fault.reason, fault.images, fault.regions) == (reason, 1, regions)


def test_matrix_without_a_shape_and_of_another_size(tmp_path: Path) -> None:
    save(tmp_path, name="x.npz")
    Image.fromarray(np.zeros((7, 8), np.uint8)).save(tmp_path / "image" / "a, b.png")
    with pytest.raises(UnusableError) as caught:
        read(tmp_path)
    fault = caught.value.fault
    assert (fault.reason, fault.images, fault.regions) == ("mask is of another size than the image", 1, 2)


def test_lists_and_files_that_disagree(tmp_path: Path) -> None:
    save(
        tmp_path,
        training=[
            entry(),
            entry(image="gone.png"),
            entry(name="gone.npz"),
            "image/a.png",
            {"image": "image/a.png"},
            {"image": "../../etc/passwd", "label": f"label/{NAME}"},
        ],
        test=[entry(image="twice.png")],
        validation=[entry(image="twice.png")],
    )
    for name in ("twice.png", "unlisted.png"):
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "image" / name)
    sparse.save_npz(tmp_path / "label" / "unlisted.(3, 6, 8, 1).npz", sparse.csr_matrix(PLANES.reshape(3, -1)))
    (tmp_path / "label" / "broken.npz").write_bytes(b"x")
    assert sorted(faults(tmp_path)) == [
        ("image/unlisted.png", "image without an annotation", 1, 0),
        ("label/broken.npz", "annotation without an image", 0, 0),
        ("label/unlisted.(3, 6, 8, 1).npz", "annotation without an image", 0, 2),
        ("test[0]", "image is listed several times", 1, 2),
        ("training[1]", "image file is missing", 1, 2),
        ("training[2]", "annotation file is missing", 1, 0),
        ("training[3]", "list entry names no image and label", 1, 0),
        ("training[4]", "list entry names no image and label", 1, 0),
        ("training[5]", "image file is missing", 1, 2),
        ("validation[0]", "image is listed several times", 1, 2),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "broken JSON"),
        ("[]", "expected an object with lists"),
        ('{"labels": {"1": "a"}}', "expected an object with lists"),
        ('{"training": [], "labels": {"a": "1"}}', "'labels' must map numbers to names"),
    ],
)
def test_datasets_that_cannot_be_read(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(MedpclipError, match=problem) as caught:
        reader(tmp_path).scan()
    assert "\n" not in str(caught.value)


def test_no_dataset_at_all(tmp_path: Path) -> None:
    for where in ("dataset.json", "*/dataset.json", "../dataset.json"):
        with pytest.raises(MedpclipError, match=r"options\.datasets"):
            reader(tmp_path, datasets=where).scan()


@pytest.mark.skipif(not Path(DATA, "btcv_ct").is_dir(), reason="MEDPCLIP_DATA doesn't name the real data")
def test_real_sample_of_imed() -> None:
    own = reader(Path(DATA) / "btcv_ct")
    entries = own.scan()
    labels = Counter[str]()
    for item in entries:
        assert isinstance(item, Entry)
        sample = own.read(item)
        assert not sample.faults
        labels.update(region.label for region in sample.regions)
    assert (len(entries), labels.total()) == (98, 540)
    assert (labels["aorta"], labels["liver"], labels["gallbladder"]) == (94, 63, 15)
    first = entries[0]
    assert isinstance(first, Entry)
    dense = sparse.load_npz(first.annotation.path).toarray().reshape(13, 512, 512)
    sample = own.read(first)
    for region, mask in zip(sample.regions, masks(sample), strict=True):
        assert np.array_equal(mask, dense[int(region.key.removeprefix("row "))] != 0)


@pytest.mark.parametrize("name", ["/etc/hostname", "../dataset.json"])
def test_datasets_outside_of_the_source_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MedpclipError, match="leads out of the source"):
        reader(tmp_path, datasets=name).scan()
