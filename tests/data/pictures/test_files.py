"""Image files -> shard bytes: pixels as they were, everything else gone."""

import errno
import io
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from medpclip.data.inspection.image_metadata import image_metadata
from medpclip.data.pictures import PictureError, read_picture, read_size
from medpclip.data.pictures.stripping import strip_jpeg, strip_png
from medpclip.errors import MedpclipError

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


def test_a_source_that_is_gone_ends_the_build_instead_of_losing_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, encode(RGB, "PNG"), "a.png")
    with pytest.raises(MedpclipError, match="see that the source is there, and run the same command again"):
        read_picture(tmp_path / "unmounted" / "a.png")

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(MedpclipError, match=r"a.png: can't be read \(Stale file handle\)"):
        read_picture(path)


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


def with_extra(data: bytes) -> bytes:
    return data[:-2] + SECRET + data[-2:]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_bytes_between_the_last_block_and_the_end_are_left_behind(tmp_path: Path, mode: str) -> None:
    """Decoders skip them, so anything may stand there."""
    data = encode(RGB, "JPEG", mode)
    picture = read_picture(put(tmp_path, with_extra(data)))
    assert SECRET not in picture.data
    assert picture.extension == "png"
    assert np.array_equal(picture.pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("marker", [0xDC, 0xF0, 0xF7, 0xFD, 0xEB, 0xFE])
def test_segments_that_decoding_does_not_need_are_dropped(marker: int) -> None:
    data = encode(RGB, "JPEG")
    segment = bytes([0xFF, marker]) + (len(SECRET) + 2).to_bytes(2, "big") + SECRET
    assert strip_jpeg(data[:2] + segment + data[2:]) == strip_jpeg(data)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lost_data_in_its_middle_is_refused(tmp_path: Path, mode: str, progressive: bool) -> None:
    """Its end marker is there: decoders fill in grey, and most say nothing."""
    data = encode(np.tile(RGB, (5, 5, 1)), "JPEG", mode, progressive=progressive)
    with pytest.raises(PictureError, match="can't be decoded"):
        read_picture(put(tmp_path, data[: len(data) * 2 // 3] + b"\xff\xd9"))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["rgb", "grey+alpha", "rgba"])
def test_16_bit_colours_are_read_by_their_upper_byte_and_say_so(
    tmp_path: Path, colour_type: int, channels: int
) -> None:
    values = RNG.integers(0, 65536, (24, 32, channels)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 32, 24, 16, colour_type, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    picture = read_picture(put(tmp_path, data))
    assert picture.intensity == {"window": [0.0, 65535.0], "bits": 16}
    assert np.array_equal(np.dstack([picture.pixels])[..., 0], values[..., 0] >> 8)


def test_no_file_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand EPS to Ghostscript, whatever the file's name."""
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started a program"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for read in (read_picture, read_size):
        with pytest.raises(PictureError, match="can't be decoded"):
            read(put(tmp_path, eps, "picture.png"))


def test_the_check_sees_a_second_picture_behind_the_end() -> None:
    data = encode(RGB, "JPEG")
    assert image_metadata(strip_jpeg(data)) == []
    assert image_metadata(strip_jpeg(data) + data) == ["bytes behind the JPEG's end"]
    assert image_metadata(strip_jpeg(data) + SECRET) == ["bytes behind the JPEG's end"]
