"""Image files -> shard bytes: pixels as they were, everything else gone."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from medpclip.data.pictures import PictureError, read_picture
from medpclip.data.stripping import strip_jpeg, strip_png

SECRET = b"DOE^JANE"
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 32, 3), np.uint8)
GREY = RGB[..., 0]


def encode(pixels: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int | None = None) -> bytes:
    tags = Image.Exif()
    tags[0x010E] = SECRET.decode()
    if orientation is not None:
        tags[274] = orientation
    return tags.tobytes()


def put(tmp_path: Path, data: bytes, name: str = "image.any") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("pixels", "restart"), [(RGB, 0), (GREY, 0), (RGB, 2)])
def test_jpeg_keeps_its_pixels_and_loses_its_metadata(
    tmp_path: Path, pixels: np.ndarray, restart: int, progressive: bool
) -> None:
    options = {"exif": exif(), "comment": SECRET, "icc_profile": SECRET * 9, "progressive": progressive}
    data = encode(pixels, "JPEG", restart_marker_blocks=restart, **options) + SECRET
    assert data.count(SECRET) >= 4
    picture = read_picture(put(tmp_path, data))
    assert SECRET not in picture.data
    assert picture.extension == "jpg"
    assert picture.size == (32, 24)
    original = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture.data))), original)
    assert np.array_equal(picture.pixels, original)


def test_jpeg_thumbnail_in_jfif_is_dropped() -> None:
    data = encode(RGB, "JPEG")
    assert data[2:4] == b"\xff\xe0"
    body = data[6:18] + bytes([1, 1]) + SECRET[:3]
    planted = data[:4] + (len(body) + 2).to_bytes(2, "big") + body + data[20:]
    assert Image.open(io.BytesIO(planted)).size == (32, 24)
    assert strip_jpeg(planted) == strip_jpeg(data)


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    picture = read_picture(put(tmp_path, encode(RGB, "JPEG", "CMYK")))
    assert picture.extension == "png"
    assert picture.pixels.shape == (24, 32, 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_other_kinds_become_png(tmp_path: Path, kind: str) -> None:
    picture = read_picture(put(tmp_path, encode(GREY, kind)))
    assert picture.extension == "png"
    decoded = np.asarray(Image.open(io.BytesIO(picture.data)).convert("L"))
    assert np.array_equal(decoded, GREY)


def test_png_text_and_alpha_are_dropped(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", SECRET.decode())
    alpha = np.dstack([RGB, RNG.integers(0, 256, (24, 32), np.uint8)])
    data = encode(alpha, "PNG", pnginfo=text, exif=exif())
    picture = read_picture(put(tmp_path, data))
    assert SECRET in data
    assert SECRET not in picture.data
    assert np.array_equal(picture.pixels, RGB)


@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_png_of_8_bits_keeps_its_compressed_data(tmp_path: Path, pixels: np.ndarray) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("PatientName", SECRET.decode())
    plain, carrying = encode(pixels, "PNG"), encode(pixels, "PNG", pnginfo=text, exif=exif(), dpi=(300, 300))
    assert SECRET in carrying
    picture = read_picture(put(tmp_path, carrying + SECRET))
    assert picture.data == plain
    assert np.array_equal(picture.pixels, pixels)


def test_other_pngs_are_not_stripped(tmp_path: Path) -> None:
    plain = encode(RGB, "PNG")
    assert strip_png(plain) == plain
    broken = bytearray(plain)
    broken[60] ^= 1
    for data in (bytes(broken), plain[:-3], b"no picture", encode(RGB, "PNG", "P"), encode(GREY > 9, "PNG")):
        assert strip_png(data) is None


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 250])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    picture = read_picture(put(tmp_path, stream.getvalue()))
    assert picture.pixels.tolist() == [[[9, 9, 9], [200, 0, 0]], [[0, 0, 250], [200, 0, 0]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_windowed_between_percentiles(tmp_path: Path, kind: str) -> None:
    values = RNG.integers(1000, 4000, (40, 50)).astype(np.uint16)
    values[0, 0] = 65535  # one hot pixel must not darken the rest
    picture = read_picture(put(tmp_path, encode(values, kind)))
    low, high = np.percentile(values, [0.5, 99.5])
    expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(picture.pixels, expected)
    assert picture.intensity == {"window": [low, high], "percentiles": [0.5, 99.5], "bits": 16}


def test_constant_and_empty_float_images(tmp_path: Path) -> None:
    constant = read_picture(put(tmp_path, encode(np.full((4, 4), 7, np.uint16), "PNG")))
    assert constant.pixels.max() == 0
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(stream, "TIFF")
    with pytest.raises(PictureError, match="no finite value"):
        read_picture(put(tmp_path, stream.getvalue()))


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_turned_images_are_refused(tmp_path: Path, kind: str, orientation: int) -> None:
    with pytest.raises(PictureError, match="turned by its EXIF orientation"):
        read_picture(put(tmp_path, encode(RGB, kind, exif=exif(orientation))))


@pytest.mark.parametrize("orientation", [0, 1])
def test_upright_images_with_the_tag_are_taken(tmp_path: Path, orientation: int) -> None:
    assert read_picture(put(tmp_path, encode(RGB, "JPEG", exif=exif(orientation)))).size == (32, 24)


def test_several_frames_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:])
    with pytest.raises(PictureError, match="several frames"):
        read_picture(put(tmp_path, stream.getvalue()))


@pytest.mark.parametrize("keep", [0, 1, 2, 10, 100, 300, -1, -2, -30])
def test_truncated_jpeg_is_refused(tmp_path: Path, keep: int) -> None:
    data = encode(RGB, "JPEG")
    with pytest.raises(PictureError):
        read_picture(put(tmp_path, data[:keep]))


def test_missing_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="can't be decoded"):
        read_picture(tmp_path / "none.png")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "BMP"]), st.data())
def test_damaged_bytes_are_decoded_or_refused_never_worse(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    content = bytearray(encode(GREY, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = put(tmp_path_factory.getbasetemp(), bytes(content), f"damaged-{kind}")
    try:
        read_picture(path)
    except PictureError as error:
        assert error.reason
