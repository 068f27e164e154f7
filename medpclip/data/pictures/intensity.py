"""Values of a scanner -> 8 bits: by a window, or by percentiles; NaN and infinities have a fixed fate.

A window is a pair (low, high) in the source's real units, after slope and intercept (Hounsfield units for CT): `low`
becomes 0, `high` becomes 255, in between it's a line.
"""

from __future__ import annotations

import numpy as np

# Percentiles of more values than this are taken of a regular part of them: the error is far below one grey level.
MOST_VALUES = 1 << 22


def window_to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..255, rounded; what lies outside is clipped.

    NaN and -inf become 0, +inf becomes 255. Where `high` <= `low` there is no line, only a step: what is above `low`
    becomes 255, all else 0; so a constant image becomes black.

    Args:
        values: real values of any numeric dtype and shape.
        low: what becomes black.
        high: what becomes white.

    Returns:
        uint8, of the same shape.
    """
    if high <= low:
        return (values > low).astype(np.uint8) * np.uint8(255)  # NaN > low is false
    scaled = (values.astype(np.float64) - low) / (high - low) * 255
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0, posinf=255, neginf=0), 0, 255)).astype(np.uint8)


def sigmoid_to_8_bits(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """The VOI LUT function SIGMOID (DICOM PS3.3 C.11.2.1.3.1), 255 / (1 + exp(-4 (x - centre) / width)), as uint8.

    NaN becomes 0.

    Raises:
        ValueError: `width` isn't above 0.
    """
    if not width > 0:
        raise ValueError(f"window width {width} is not above 0")
    exponent = np.clip(-4 * (values.astype(np.float64) - centre) / width, -700, 700)
    return np.rint(np.nan_to_num(255 / (1 + np.exp(exponent)), nan=0)).astype(np.uint8)


def dicom_window(centre: float, width: float, function: str = "LINEAR") -> tuple[float, float]:
    """(low, high) of a window as DICOM states it, by centre and width (PS3.3 C.11.2.1.2 and C.11.2.1.3.2).

    LINEAR, the default, means pixel values that are whole numbers: it ends at centre - 0.5 -+ (width - 1) / 2.
    LINEAR_EXACT ends at centre -+ width / 2.

    Raises:
        ValueError: a width below 1 (LINEAR) or not above 0 (LINEAR_EXACT), values that aren't finite, or another
            function: SIGMOID has no ends, see `sigmoid_to_8_bits`.
    """
    if not (np.isfinite(centre) and np.isfinite(width)):
        raise ValueError(f"window {centre}/{width} is not finite")
    if function == "LINEAR":
        if width < 1:
            raise ValueError(f"window width {width} is below 1")
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    if function == "LINEAR_EXACT":
        if width <= 0:
            raise ValueError(f"window width {width} is not above 0")
        return centre - width / 2, centre + width / 2
    raise ValueError(f"VOI LUT function {function!r} is not a line between two ends")


def regular_part(values: np.ndarray) -> np.ndarray:
    """At most four million values, (N,): all, or each n-th, always the same; enough for percentiles."""
    step = -(-values.size // MOST_VALUES)
    if step <= 1:
        return values.ravel()
    return values.flat[:: step | 1]  # odd, so that it doesn't keep step with rows of 2^n


def percentile_range(
    values: np.ndarray, low: float, high: float, foreground: bool = False
) -> tuple[float, float] | None:
    """Two percentiles of the finite values (of a `regular_part` of them), or None where no value is finite.

    Args:
        values: real values of any numeric dtype and shape.
        low: lower percentile, 0 to 100.
        high: upper percentile.
        foreground: leave zeros out (the outside of skull-stripped or padded scans), unless there is nothing else.
    """
    part = regular_part(values)
    finite = part[np.isfinite(part)]
    if not finite.size:
        return None
    kept = finite[finite != 0] if foreground else finite
    bottom, top = np.percentile(kept if kept.size else finite, (low, high)).tolist()
    return float(bottom), float(top)
