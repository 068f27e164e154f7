"""Windows and percentiles: golden values, the standard's own formula, and values that aren't numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpclip.data.pictures import intensity
from medpclip.data.pictures.intensity import (
    dicom_window,
    percentile_range,
    regular_part,
    sigmoid_to_8_bits,
    window_to_8_bits,
)


def standard_linear(x: float, centre: float, width: float) -> float:
    """DICOM PS3.3 C.11.2.1.2.1, as written there, with the output range 0..255."""
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0
    if x > centre - 0.5 + (width - 1) / 2:
        return 255
    return ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255


def standard_linear_exact(x: float, centre: float, width: float) -> float:
    """C.11.2.1.3.2."""
    if x <= centre - width / 2:
        return 0
    if x > centre + width / 2:
        return 255
    return ((x - centre) / width + 0.5) * 255


@given(st.integers(-1100, 3000), st.integers(-600, 600), st.integers(1, 2500))
def test_windows_are_the_standards(x: int, centre: int, width: int) -> None:
    for function, expected in (("LINEAR", standard_linear), ("LINEAR_EXACT", standard_linear_exact)):
        (found,) = window_to_8_bits(np.array([x]), *dicom_window(centre, width, function)).tolist()
        assert abs(found - expected(x, centre, width)) <= 0.5 + 1e-9


def test_golden_window() -> None:
    values = np.array([-1000, -160, -159, 40, 239, 240, 3000], np.int16)
    assert window_to_8_bits(values, -160, 240).tolist() == [0, 0, 1, 128, 254, 255, 255]
    assert dicom_window(40, 400) == (-160, 239)
    assert dicom_window(40, 400, "LINEAR_EXACT") == (-160, 240)
    assert dicom_window(100, 1) == (99.5, 99.5)
    assert window_to_8_bits(np.array([99, 100]), 99.5, 99.5).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.uint32, np.float32, np.float64])
def test_dtypes(dtype: str) -> None:
    values = np.arange(0, 101, 20).astype(dtype).reshape(2, 3)
    found = window_to_8_bits(values, 20, 80)
    assert (found.dtype, found.tolist()) == (np.uint8, [[0, 0, 85], [170, 255, 255]])


def test_values_that_are_no_numbers() -> None:
    values = np.array([np.nan, -np.inf, np.inf, 5.0], np.float32)
    assert window_to_8_bits(values, 0, 10).tolist() == [0, 0, 255, 128]
    assert window_to_8_bits(values, 7, 7).tolist() == [0, 0, 255, 0]
    assert sigmoid_to_8_bits(values, 5, 10).tolist() == [0, 0, 255, 128]
    assert percentile_range(values, 0, 100) == (5, 5)
    assert percentile_range(values[:3], 0, 100) is None


def test_constant_image_is_black() -> None:
    values = np.full((3, 3), 7)
    low, high = percentile_range(values, 0.5, 99.5) or (math.nan, math.nan)
    assert (low, high) == (7, 7)
    assert not window_to_8_bits(values, low, high).any()


def test_sigmoid_is_the_standards() -> None:
    values = np.linspace(-3000, 3000, 50)
    expected = 255 / (1 + np.exp(-4 * (values - 40) / 400))
    assert np.abs(sigmoid_to_8_bits(values, 40, 400) - expected).max() <= 0.5
    with pytest.raises(ValueError, match="not above 0"):
        sigmoid_to_8_bits(values, 40, 0)


@pytest.mark.parametrize(
    "window", [(40, 0.5, "LINEAR"), (40, 0, "LINEAR_EXACT"), (math.nan, 4, "LINEAR"), (0, 4, "SIGMOID")]
)
def test_windows_that_make_no_sense(window: tuple[float, float, str]) -> None:
    with pytest.raises(ValueError, match=r"window|VOI"):
        dicom_window(*window)


def test_percentiles_of_the_foreground() -> None:
    values = np.concatenate([np.zeros(900), np.arange(1, 101)])
    assert percentile_range(values, 50, 100) == (0, 100)
    assert percentile_range(values, 50, 100, foreground=True) == (50.5, 100)
    assert percentile_range(np.zeros(5), 1, 99, foreground=True) == (0, 0)


def test_a_part_of_many_values_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intensity, "MOST_VALUES", 5000)
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(64, 64, 16)))[::-1]
    assert 2000 <= regular_part(values).size <= 5000
    found = percentile_range(values, 5, 95) or (0, 0)
    assert np.abs(np.array(found) - np.percentile(values, (5, 95))).max() < 0.1
