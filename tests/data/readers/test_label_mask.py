"""Label masks: indices are indices, colours are colours, thresholds are thresholds, specks are counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.data.readers import Entry, Fault, RawSample, UnusableError
from medpclip.data.readers.label_mask import LabelMaskOptions, LabelMaskReader, parse_colour
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


COLOURS = {"255,0,0": "nerve", "#0000FF": "vessel"}
PAINT = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [0, 255, 0]], np.uint8)


def coloured(folder: Path, pixels: Any, mask: str = "masks/a.png", **options: Any) -> RawSample:
    save(folder, pixels, mask=mask)
    return read(folder, **({"read": "colour", "values": {}, "colours": COLOURS} | options))


def test_colours_of_every_mode(tmp_path: Path) -> None:
    rgb = PAINT[MASK]
    opaque = np.dstack([rgb, np.full(MASK.shape, 255, np.uint8)])
    indexed = palette(PAINT.ravel().tolist())
    for i, (picture, name) in enumerate([(rgb, "a.png"), (opaque, "a.png"), (indexed, "a.png"), (rgb, "a.bmp")]):
        found = masks(coloured(tmp_path / str(i), picture, mask=f"masks/{name}"))
        assert [label for label, _ in found] == ["nerve", "vessel"]
        for (_, mask), value in zip(found, (1, 2), strict=True):
            assert np.array_equal(mask, value == MASK)


def test_colours_void_named_black_and_unknown(tmp_path: Path) -> None:
    pixels = PAINT[MASK]
    pixels[0, :4] = [(0, 255, 0), (9, 9, 9), (9, 9, 9), (8, 9, 9)]
    sample = coloured(tmp_path, pixels, ignore=["#00ff00"], colours=COLOURS | {"0,0,0": "background"})
    assert [r.label for r in sample.regions] == ["nerve", "vessel", "background"]
    (fault,) = sample.faults
    assert (fault.reason, fault.regions) == ("colour in the mask has no label in the recipe", 2)
    assert fault.detail == "2 colours, as (8, 9, 9), (9, 9, 9)"


def test_lossy_colours_by_tolerance(tmp_path: Path) -> None:
    big = MASK.repeat(16, 0).repeat(16, 1)
    (tmp_path / "masks").mkdir()
    Image.fromarray(PAINT[big]).save(tmp_path / "masks" / "a.jpg", quality=90, subsampling=0)
    (tmp_path / "images").mkdir()
    Image.fromarray(big).save(tmp_path / "images" / "a.png")
    options = {"read": "colour", "values": {}, "colours": COLOURS}
    exact = read(tmp_path, **options).faults
    assert [fault.reason for fault in exact] == ["colour in the mask has no label in the recipe"]
    sample = read(tmp_path, **options, tolerance=60)
    assert not sample.faults
    for (_, mask), value in zip(masks(sample), (1, 2), strict=True):
        assert (mask != (big == value)).mean() < 0.002


def test_colours_beyond_the_tolerance_are_lost_with_a_count(tmp_path: Path) -> None:
    pixels = PAINT[MASK]
    pixels[8, :7] = (0, 255, 0)  # 7 of 600 pixels
    near = PAINT[MASK]
    near[near == 255] = 240
    for options, expected in (({"stray_share": 0.01}, 1), ({"stray_share": 0.012}, 0)):
        sample = coloured(tmp_path, pixels, tolerance=20, **options)
        assert [(f.reason, f.regions, f.detail) for f in sample.faults] == [
            ("colours in the mask fit none of the recipe's", 1, "7 of 600 pixels")
        ] * expected
    assert [r.label for r in coloured(tmp_path, near, tolerance=20).regions] == ["nerve", "vessel"]


def test_numbers_where_colours_were_expected(tmp_path: Path) -> None:
    with pytest.raises(UnusableError) as caught:
        coloured(tmp_path, MASK.astype(np.uint16))
    assert caught.value.fault.reason == "mask has numbers where colours were expected"


def test_each_unnamed_number_is_an_instance(tmp_path: Path) -> None:
    numbers = np.zeros((20, 30), np.uint16)
    numbers[2:4, 2:9], numbers[5:9, 5:9], numbers[12:, 3:5], numbers[0, 0] = 1, 700, 65535, 9
    save(tmp_path, numbers)
    sample = read(tmp_path, values={"1": "gland"}, unnamed="nucleus", ignore=[9])
    assert [(r.label, r.key) for r in sample.regions] == [
        ("gland", "value 1"),
        ("nucleus", "value 700"),
        ("nucleus", "value 65535"),
    ]
    for (_, mask), value in zip(masks(sample), (1, 700, 65535), strict=True):
        assert np.array_equal(mask, numbers == value)


@pytest.mark.parametrize("name", ["a.tif", "a.bmp", "a.png"])
def test_bilevel_and_other_formats(tmp_path: Path, name: str) -> None:
    save(tmp_path, Image.fromarray(MASK == 1), mask=f"masks/{name}")
    if name == "a.bmp":  # Pillow's bilevel BMP has a palette of black and white
        ((_, mask),) = masks(read(tmp_path, read="threshold", values={"1": "nerve"}))
    else:
        ((_, mask),) = masks(read(tmp_path))
    assert np.array_equal(mask, MASK == 1)


def test_masks_of_floats(tmp_path: Path) -> None:
    save(tmp_path, MASK.astype(np.float32), mask="masks/a.tif")
    assert [r.label for r in read(tmp_path).regions] == ["nerve", "vessel"]
    save(tmp_path, MASK.astype(np.float32) / 2, mask="masks/a.tif")
    with pytest.raises(UnusableError) as caught:
        read(tmp_path)
    assert caught.value.fault.reason == "mask has fractions where whole numbers were expected"


def test_mask_of_several_frames_or_turned(tmp_path: Path) -> None:
    frame = Image.fromarray(MASK)
    save(tmp_path, MASK, mask="masks/a.tif")
    frame.save(tmp_path / "masks" / "a.tif", save_all=True, append_images=[frame])
    exif = Image.Exif()
    exif[274] = 6
    for reason in ("mask file has several frames", "mask is turned by its EXIF orientation"):
        with pytest.raises(UnusableError) as caught:
            read(tmp_path)
        assert (caught.value.fault.reason, caught.value.fault.images) == (reason, 1)
        frame.save(tmp_path / "masks" / "a.tif", exif=exif)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"values": {}}, "'values' is empty"),
        ({"values": {"x": "a"}}, "expected the mask's numbers"),
        ({"read": "colour"}, "'colours' is empty"),
        ({"read": "colour", "colours": COLOURS}, "leave out 'values'"),
        ({"read": "colour", "values": {}, "colours": {"red": "a"}}, "'red' is no colour"),
        ({"read": "colour", "values": {}, "colours": {"1,2,256": "a"}}, "is no colour"),
        ({"read": "colour", "values": {}, "colours": COLOURS, "ignore": ["#ff0000"]}, "state a colour twice"),
        ({"read": "colour", "values": {}, "colours": COLOURS, "tolerance": 300}, "'tolerance' must be"),
        ({"colours": COLOURS}, "needs 'read: colour'"),
        ({"ignore": ["#ffffff"]}, "'ignore' has '#ffffff', which is no number"),
        ({"read": "threshold"}, "gives only the number 1"),
        ({"min_pixels": 0}, "expected 1 or more"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LabelMaskOptions(**({"values": LABELS} | options))


def test_notations_of_colours() -> None:
    assert parse_colour("255, 0,1") == parse_colour("#FF0001") == (255, 0, 1)


def test_a_mask_that_never_reaches_the_threshold(tmp_path: Path) -> None:
    dim = (MASK > 0).astype(np.uint8)
    save(tmp_path, dim)
    sample = read(tmp_path, values={"1": "nerve"}, read="threshold")
    assert not sample.regions
    assert [(f.reason, f.regions, f.images) for f in sample.faults] == [
        ("nothing in the mask reaches the threshold", 1, 0)
    ]
    save(tmp_path, np.zeros_like(MASK))
    assert not read(tmp_path, values={"1": "nerve"}, read="threshold").faults


def test_traces_in_a_lossy_mask_are_nothing(tmp_path: Path) -> None:
    save(tmp_path, MASK, mask="masks/a.jpg")
    assert not read(tmp_path, values={"1": "nerve"}, read="threshold").faults


def test_numbers_to_ignore_may_be_quoted(tmp_path: Path) -> None:
    save(tmp_path, MASK)
    sample = read(tmp_path, values={"1": "nerve"}, ignore=["2"])
    assert [r.label for r in sample.regions] == ["nerve"]
    assert not sample.faults


def test_several_suffixes(tmp_path: Path) -> None:
    save(tmp_path, MASK, image="images/21_training.tif", mask="masks/21_manual1.gif")
    save(tmp_path, MASK, image="images/01_test.tif", mask="masks/01_manual.gif")
    options = LabelMaskOptions(
        values=LABELS, image_suffix=["_training", "_test"], mask_suffix=["", "_manual", "_manual1"]
    )
    found = LabelMaskReader(tmp_path, options).scan()
    assert [(item.image, item.annotation.name) for item in found if isinstance(item, Entry)] == [
        ("images/01_test.tif", "01_manual.gif"),
        ("images/21_training.tif", "21_manual1.gif"),
    ]


def test_names_that_return_in_other_folders_below_patterns(tmp_path: Path) -> None:
    for name in ("train", "test"):
        save(tmp_path, MASK, image=f"{name}/images/1.png", mask=f"{name}/masks/1_m.png")
    save(tmp_path, MASK, image="val/images/1.png", mask="other/masks/1_m.png")  # neither belongs to the other
    options = LabelMaskOptions(values=LABELS, images="*/images/*", masks="*/masks/*", mask_suffix="_m")
    found = LabelMaskReader(tmp_path, options).scan()
    assert [(item.image, str(item.annotation.relative_to(tmp_path))) for item in found if isinstance(item, Entry)] == [
        ("test/images/1.png", "test/masks/1_m.png"),
        ("train/images/1.png", "train/masks/1_m.png"),
    ]
    assert sorted(item.reason for item in found if isinstance(item, Fault)) == [
        "annotation without an image",
        "image without an annotation",
    ]
