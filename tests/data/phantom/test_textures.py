"""Every pattern ends in one grey-level distribution; patterns and periods differ as they should."""

import numpy as np
import pytest

from medpclip.data.phantom.fields import smooth_noise
from medpclip.data.phantom.textures import PATTERNS, equalise


def _disc(size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    return x**2 + y**2 < (size / 2 - 1) ** 2


@pytest.mark.parametrize("name", PATTERNS)
def test_equalised_values_follow_the_sine_distribution(name: str) -> None:
    mask = _disc(40)
    values = equalise(PATTERNS[name](np.random.default_rng(1), 40, 40, 6.0), mask)[mask]
    expected = -np.cos(np.pi * (np.arange(values.size) + 0.5) / values.size)
    np.testing.assert_allclose(np.sort(values), expected, atol=0.02)


def test_equalise_keeps_order_and_bounds_outside() -> None:
    mask = np.array([[True, True, True, False, False]])
    values = equalise(np.array([[3.0, 1.0, 2.0, 9.0, -9.0]]), mask)
    assert values[0, 1] < values[0, 2] < values[0, 0]
    assert np.abs(values).max() <= 1.0


def _peak(name: str, period: float, seed: int) -> np.ndarray:
    field = PATTERNS[name](np.random.default_rng(seed), 96, 96, period)
    spectrum = np.abs(np.fft.fft2(field - field.mean())) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96)))
    return (spectrum * radius).sum() / spectrum.sum()


@pytest.mark.parametrize("name", PATTERNS)
def test_period_scales_the_pattern(name: str) -> None:
    fine = np.mean([_peak(name, 4.5, seed) for seed in range(6)])
    coarse = np.mean([_peak(name, 11.0, seed) for seed in range(6)])
    assert fine / coarse == pytest.approx(11.0 / 4.5, rel=0.3)


def test_stripes_have_one_direction_and_dots_two() -> None:
    for seed in range(5):
        ratio = {}
        for name in ("stripes", "dots"):
            dy, dx = np.gradient(PATTERNS[name](np.random.default_rng(seed), 64, 64, 8.0))
            low, high = np.linalg.eigvalsh([[np.mean(dx * dx), np.mean(dx * dy)], [np.mean(dx * dy), np.mean(dy * dy)]])
            ratio[name] = low / high
        assert ratio["stripes"] < 0.25 < 0.6 < ratio["dots"]


def test_smooth_noise_has_its_size_and_scale() -> None:
    field = smooth_noise(np.random.default_rng(0), 90, 130, 6.0)
    assert field.shape == (90, 130) and field.dtype == np.float32
    assert 0.3 < field.std() < 1.2 and abs(field.mean()) < 0.3
