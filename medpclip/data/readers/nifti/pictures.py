"""Slices of a volume -> 8-bit pictures, and the record of how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medpclip.data.pictures.intensity import percentile_range, regular_part, window_to_8_bits
from medpclip.data.readers.nifti.volumes import Volume, VolumeError, as_slices


@dataclass(frozen=True, kw_only=True)
class PictureRules:
    """How values become pictures; the attributes are options of the reader "nifti".

    Attributes:
        windows: [low, high] in the volume's real values (Hounsfield units for CT): one, or three for the channels red,
            green and blue; none for percentiles.
        percentiles: of the values, which become black and white.
        foreground: whether percentiles leave zeros out.
        scope: whether percentiles are those of the volume or of each slice.
        neighbours: k > 0 puts the slices i - k, i and i + k into the three channels; at the ends the last slice repeats.
    """

    windows: list[tuple[float, float]] = field(default_factory=list)
    percentiles: tuple[float, float] = (0.5, 99.5)
    foreground: bool = False
    scope: Literal["volume", "slice"] = "volume"
    neighbours: int = 0

    def __post_init__(self) -> None:
        if len(self.windows) not in (0, 1, 3):
            raise ValueError(f"'windows' has {len(self.windows)}; expected one, or three for the colour channels")
        if any(low >= high for low, high in self.windows):
            raise ValueError("'windows' has one whose low end isn't below its high end; give [low, high]")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(
                f"'percentiles' is {list(self.percentiles)}; expected two of 0 to 100, the lower one first"
            )
        if self.neighbours < 0 or (self.neighbours and len(self.windows) == 3):
            raise ValueError("'neighbours' must be 0 or more, and needs the channels that three windows would take")


class SlicePainter:
    """Makes the pictures of one volume.

    Args:
        volume: canonical, one frame.
        axis: that the slices are perpendicular to.
        rules: how.

    Raises:
        VolumeError: no value is finite.
    """

    def __init__(self, volume: Volume, axis: int, rules: PictureRules) -> None:
        self.volume, self.rules = volume, rules
        self.slices = as_slices(volume.raw, axis)
        if volume.raw.dtype.kind == "f" and not np.isfinite(volume.raw).any():
            raise VolumeError("image has no finite value")
        self._windows = rules.windows
        if not rules.windows and rules.scope == "volume":
            self._windows = [self._range(volume.raw)]

    def paint(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The picture of a slice, uint8 (height, width) or (height, width, 3), and how it was made."""
        values = self.volume.real(self.slices[index])
        windows = self._windows or [self._range(self.slices[index])]
        step = self.rules.neighbours
        if step:
            around = [min(max(i, 0), len(self.slices) - 1) for i in (index - step, index, index + step)]
            pictures = [window_to_8_bits(self.volume.real(self.slices[i]), *windows[0]) for i in around]
        else:
            pictures = [window_to_8_bits(values, *window) for window in windows]
        pixels = pictures[0] if len(pictures) == 1 else np.stack(pictures, axis=2)
        return pixels, self._record(windows, int(np.count_nonzero(~np.isfinite(values))))

    def _range(self, stored: np.ndarray) -> tuple[float, float]:
        low, high = self.rules.percentiles
        values = self.volume.real(regular_part(stored))
        return percentile_range(values, low, high, self.rules.foreground) or (0.0, 0.0)  # all black

    def _record(self, windows: list[tuple[float, float]], nonfinite: int) -> dict[str, Any]:
        record: dict[str, Any] = {"window": list(windows[0]) if len(windows) == 1 else [list(w) for w in windows]}
        if not self.rules.windows:
            record |= {"percentiles": list(self.rules.percentiles), "scope": self.rules.scope}
            record |= {"foreground": True} if self.rules.foreground else {}
        record["bits"] = self.volume.bits
        if self.rules.neighbours:
            record["neighbours"] = self.rules.neighbours
        if nonfinite:
            record["nonfinite"] = nonfinite
        return record
