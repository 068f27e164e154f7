"""Label masks: indices are indices, thresholds are thresholds, components equal a flood fill, specks are counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medpclip.data.readers import Entry, Fault, RawSample, UnusableError
from medpclip.data.readers.label_mask import LabelMaskOptions, LabelMaskReader, split_components
from medpclip.data.schema import Region

LABELS = {"1": "nerve", "2": "vessel"}
MASK = np.zeros((20, 30), np.uint8)
MASK[2:6, 3:9] = 1
MASK[10:15, 3:9] = 1
MASK[12:18, 15:25] = 2


def save(
    folder: Path, pixels: np.ndarray | Image.Image, mask: str = "masks/a.png", image: str = "images/a.jpg"
) -> None:
    for name in (mask, image):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / image)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(folder / mask)


def read(folder: Path, **options: Any) -> RawSample:
    reader = LabelMaskReader(folder, LabelMaskOptions(**({"values": LABELS} | options)))
    (entry,) = reader.scan()
    assert isinstance(entry, Entry)
    return reader.read(entry)


def masks(sample: RawSample) -> list[tuple[str, np.ndarray | None]]:
    return [(r.label, Region(1, r.label, segmentation=r.rle).mask()) for r in sample.regions]


def palette(colours: list[int]) -> Image.Image:
    picture = Image.fromarray(MASK, "P")
    picture.putpalette(colours)
    return picture


@pytest.mark.parametrize(
    "picture",
    [MASK, palette([0, 0, 0, 128, 0, 0, 0, 128, 0]), palette([1, 1, 1, 1, 1, 1, 0, 0, 0]), MASK.astype(np.uint16)],
)
def test_indices_whatever_their_colours(tmp_path: Path, picture: Any) -> None:
    save(tmp_path, picture)
    (first, nerve), (second, vessel) = masks(read(tmp_path))
    assert (first, second) == ("nerve", "vessel")
    assert np.array_equal(nerve, MASK == 1)
    assert np.array_equal(vessel, MASK == 2)


def test_components_are_regions_of_their_own(tmp_path: Path) -> None:
    save(tmp_path, MASK)
    found = masks(read(tmp_path, components=True))
    assert [label for label, _ in found] == ["nerve", "nerve", "vessel"]
    assert sum(mask.astype(int) for _, mask in found[:2]).tolist() == (MASK == 1).astype(int).tolist()


def test_lossy_mask_by_threshold(tmp_path: Path) -> None:
    save(tmp_path, (MASK > 0).astype(np.uint8) * 255, mask="masks/a.jpg")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "masks/a.jpg")))) > 2
    ((_, mask),) = masks(read(tmp_path, read="threshold", values={"1": "polyp"}))
    assert (mask != (MASK > 0)).mean() < 0.01


def test_colour_and_one_bit_masks_by_threshold(tmp_path: Path) -> None:
    white = (MASK > 0).astype(np.uint8) * 255
    for picture in (np.dstack([white] * 3), np.dstack([white, white * 0, white * 0, white * 0 + 255]), MASK > 0):
        save(tmp_path, picture)
        ((_, mask),) = masks(read(tmp_path, read="threshold", values={"1": "polyp"}))
        assert np.array_equal(mask, MASK > 0)


def test_specks_are_counted_not_dropped(tmp_path: Path) -> None:
    specked = MASK.copy()
    specked[0, ::4] = 1
    save(tmp_path, specked)
    sample = read(tmp_path, components=True, min_pixels=5)
    assert len(sample.regions) == 3
    (fault,) = sample.faults
    assert (fault.reason, fault.regions, fault.key) == ("component is smaller than min_pixels", 8, "value 1")


def test_unknown_void_and_named_background_numbers(tmp_path: Path) -> None:
    strange = MASK.copy()
    strange[0, 0], strange[0, 1] = 255, 9
    save(tmp_path, strange)
    sample = read(tmp_path, ignore=[255], values=LABELS | {"0": "background"})
    assert [r.label for r in sample.regions] == ["background", "nerve", "vessel"]
    (fault,) = sample.faults
    assert (fault.key, fault.reason, fault.regions) == ("value 9", "number in the mask has no label in the recipe", 1)


def test_colours_where_indices_were_expected(tmp_path: Path) -> None:
    save(tmp_path, np.dstack([MASK] * 3))
    with pytest.raises(UnusableError) as caught:
        read(tmp_path)
    assert caught.value.fault.reason == "mask has colours where numbers were expected"


def test_mask_that_is_no_image(tmp_path: Path) -> None:
    save(tmp_path, MASK)
    (tmp_path / "masks/a.png").write_bytes(b"x")
    with pytest.raises(UnusableError) as caught:
        read(tmp_path)
    assert (caught.value.fault.file, caught.value.fault.images) == ("masks/a.png", 1)


def test_suffixes_and_one_common_folder(tmp_path: Path) -> None:
    save(tmp_path, MASK, mask="all/one two_mask.PNG", image="all/one two.bmp")
    assert len(read(tmp_path, images="all", masks="all", mask_suffix="_mask").regions) == 2
    save(tmp_path / "b", MASK, mask="x/case_seg.tif", image="y/case_img.png")
    options = {"images": "y", "masks": "x", "mask_suffix": "_seg", "image_suffix": "_img"}
    assert len(read(tmp_path / "b", **options).regions) == 2


def test_mask_without_the_suffix_does_not_vanish(tmp_path: Path) -> None:
    save(tmp_path, MASK, mask="masks/b.png", image="images/a.png")
    found = LabelMaskReader(tmp_path, LabelMaskOptions(values=LABELS, mask_suffix="_mask")).scan()
    assert [fault.file for fault in found if isinstance(fault, Fault)] == ["images/a.png", "masks/b.png"]


def test_what_stays_alone_is_a_fault(tmp_path: Path) -> None:
    save(tmp_path, MASK, mask="masks/a.png", image="images/b.png")
    faults = LabelMaskReader(tmp_path, LabelMaskOptions(values=LABELS, components=True)).scan()
    assert all(isinstance(fault, Fault) for fault in faults)
    assert [(f.file, f.reason, f.images, f.regions) for f in faults if isinstance(f, Fault)] == [
        ("masks/a.png", "annotation without an image", 0, 3),
        ("images/b.png", "image without an annotation", 1, 0),
    ]


@given(st.lists(st.booleans(), min_size=48, max_size=48), st.sampled_from([4, 8]), st.integers(1, 4))
def test_components_equal_a_flood_fill(pixels: list[bool], connectivity: int, min_pixels: int) -> None:
    mask = np.array(pixels).reshape(6, 8)
    expected = flood_fill(mask, connectivity)
    kept, specks = split_components(mask, connectivity, min_pixels)
    assert {frozenset(map(tuple, np.argwhere(part).tolist())) for part in kept} == {
        part for part in expected if len(part) >= min_pixels
    }
    assert specks == sum(len(part) < min_pixels for part in expected)


def flood_fill(mask: np.ndarray, connectivity: int) -> set[frozenset[tuple[int, int]]]:
    steps = [
        (y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if abs(y) + abs(x) in ((1,) if connectivity == 4 else (1, 2))
    ]
    left, out = {(int(y), int(x)) for y, x in np.argwhere(mask)}, set()
    while left:
        queue, part = [left.pop()], set()
        while queue:
            y, x = queue.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            queue += near
        out.add(frozenset(part))
    return out
