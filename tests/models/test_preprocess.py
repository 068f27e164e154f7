"""Pixels: normalised as the trunk was trained, and recoloured as augmentation drew."""

import numpy as np
import pytest
import torch

from medpclip.data.loading.windows import CutWindows
from medpclip.models.preprocess import Preprocess

PREPROCESS = Preprocess(16, (0.48, 0.45, 0.4), (0.27, 0.26, 0.28))
GREYS = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(4, 1, 1, 3)


def greys(pixels: torch.Tensor) -> np.ndarray:
    """Grey levels 0 to 255 again, (B, 3, 256)."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (PREPROCESS.mean, PREPROCESS.std))
    return ((pixels * std + mean) * 255).flatten(2).numpy()


def test_pixels_are_normalised_planes() -> None:
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    before = images.clone()
    pixels = PREPROCESS.to_pixels(images)
    assert pixels.shape == (2, 3, 16, 16) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    expected = (images.double() / 255 - torch.tensor(PREPROCESS.mean)) / torch.tensor(PREPROCESS.std)
    torch.testing.assert_close(pixels.double(), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=0)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("gain", "offset"), [(1.2, 51.0), (0.8, -51.0), (0.0, 10.0), (2.0, 0.3), (1.0, -255.0)])
def test_recolouring_is_a_look_up_table_to_within_a_grey_level(gain: float, offset: float) -> None:
    colours = torch.tensor([[1.0, 0.0], [gain, offset], [1.0, 0.0], [gain, -offset]])
    pixels = PREPROCESS.to_pixels(GREYS, colours)
    assert torch.equal(pixels[::2], PREPROCESS.to_pixels(GREYS[::2])), "no change is no change, to the bit"
    for row, shift in ((1, offset), (3, -offset)):
        table = np.clip(np.round((np.arange(256) - 128) * gain + 128 + shift), 0, 255)
        assert np.abs(greys(pixels[row : row + 1]) - table).max() <= 1


def test_windows_get_their_images_colours() -> None:
    preprocess = Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    cut_out = CutWindows(torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8), torch.rand(2, 3, 4))
    colours = torch.tensor([[1.2, 10.0], [0.8, -20.0]])
    windows = preprocess.to_windows(cut_out, colours)
    for b in range(2):
        expected = preprocess.to_pixels(cut_out.pixels[b], colours[b : b + 1].expand(3, 2))
        assert torch.equal(windows.pixels[b], expected)
    assert torch.equal(windows.rects, cut_out.rects)
