"""Pictures at reduced scale: the same picture to within a stated error; grey, odd and broken ones."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medpclip.data.loading.augment import DRAWS, draw_window
from medpclip.data.loading.config import Augmentation
from medpclip.data.loading.decode import decode, reduction, render
from medpclip.data.loading.geometry import Window
from medpclip.data.pictures import PictureError


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(a.astype(float) - b).mean())))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(
    "window", [Window(0, 0, 512), Window(64, 32, 384), Window(-64, -64, 640), Window(64, 32, 384, flip=True)]
)
def test_reduced_decoding_gives_the_same_window(factor: int, window: Window) -> None:
    data, size = encode(picture(512, 512), quality=90), 512 // factor // 2
    full, one = decode(data, "jpg", 512, 512, 1)
    small, reduced = decode(data, "jpg", 512, 512, factor)
    assert one == 1 and reduced == factor and small.shape == (512 // factor, 512 // factor, 3)
    a, b = (render(pixels, f, window, size, (122, 116, 104)) for pixels, f in ((full, 1), (small, factor)))
    assert psnr(a, b) > 37  # with structures of 16 pixels, two of the most reduced picture; more with coarser ones


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 224, 336]), st.integers(0, 10**6))
def test_reductions_are_exact_and_never_too_small(width: int, height: int, size: int, seed: int) -> None:
    draws = np.random.default_rng(seed).random(DRAWS).tolist()
    for augmentation in (Augmentation(), Augmentation(zoom=(1.0, 1.0), shift=0.0)):
        window = draw_window(width, height, True, augmentation, size, draws)
        factor = reduction(window, size)
        assert window.scaled(factor).side >= size or factor == 1
        if augmentation.shift and window.side >= 2 * size:
            assert factor > 1


def test_a_still_window_is_the_whole_image() -> None:
    still = Augmentation(zoom=(1.0, 1.0), shift=0.0)
    assert draw_window(511, 300, True, still, 64, [0.3] * DRAWS) == Window.whole(511, 300)


@pytest.mark.parametrize("window", [Window.whole(90, 61), Window(10, 5, 40), Window(-20, 30, 77)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("grey", [False, True])
def test_rendering_is_pillows_resize(window: Window, kind: str, grey: bool) -> None:
    pixels = picture(90, 61)
    data = encode(pixels[:, :, 0] if grey else pixels, kind)
    decoded, factor = decode(data, kind.lower().replace("jpeg", "jpg"), 90, 61, 1)
    assert decoded.shape == (61, 90, 3) and factor == 1
    with Image.open(io.BytesIO(data)) as opened:
        expected = window.image(np.asarray(opened.convert("RGB")), 32, (9, 200, 30))
    assert psnr(render(decoded, 1, window, 32, (9, 200, 30)), expected) > 45


def test_alpha_is_dropped_and_other_modes_become_rgb() -> None:
    rgba = np.dstack([picture(20, 20), np.zeros((20, 20), np.uint8)])
    assert np.array_equal(decode(encode(rgba, "PNG"), "png", 20, 20, 1)[0], rgba[:, :, :3])
    stream = io.BytesIO()
    Image.fromarray(picture(20, 20)).convert("CMYK").save(stream, "JPEG")
    assert decode(stream.getvalue(), "jpg", 20, 20, 2)[0].shape == (20, 20, 3)
    assert decode(encode(picture(20, 20), "WEBP"), "webp", 20, 20, 1)[0].shape == (20, 20, 3)


@pytest.mark.parametrize("cut", [0, 10, 300, -200])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_broken_pictures_say_so(cut: int, kind: str) -> None:
    data = encode(picture(64, 64), {"jpg": "JPEG", "png": "PNG"}[kind])[:cut]
    with pytest.raises(PictureError) as error:
        decode(data, kind, 64, 64, 1)
    assert error.value.reason == "image can't be decoded"


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_another_size_is_refused(kind: str) -> None:
    with pytest.raises(PictureError) as error:
        decode(encode(picture(64, 48), {"jpg": "JPEG", "png": "PNG"}[kind]), kind, 48, 64, 1)
    assert error.value.reason == "image is of another size than its JSON says" and "64x48" in error.value.detail


def test_torch_resizes_bytes_as_expected() -> None:
    """What `render` relies on: channels that come last stay there, which is the faster way."""
    pixels = torch.zeros(1, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(pixels, (4, 4), mode="bicubic", antialias=True)
    assert out.permute(0, 2, 3, 1).is_contiguous() and out.dtype == torch.uint8
