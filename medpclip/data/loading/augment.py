"""The draws that make a training image's window and colours."""

from __future__ import annotations

from collections.abc import Sequence

from medpclip.data.loading.config import Augmentation
from medpclip.data.loading.geometry import Window

DRAWS = 7  # uniform numbers that an image takes


def draw_window(
    width: int, height: int, may_flip: bool, augmentation: Augmentation, size: int, draws: Sequence[float]
) -> Window:
    """The whole image, zoomed, shifted, turned and mirrored a little.

    Args:
        width, height: of the image.
        may_flip: whether left and right mean nothing in it.
        size: the window will be resized to; where it is many times larger, it lies on every second, fourth or eighth
            pixel only, so that the image can be decoded that much smaller.
        draws: DRAWS uniform numbers.
    """
    whole = Window.whole(width, height)
    angle = (2 * draws[0] - 1) * augmentation.rotate
    flip = bool(may_flip and draws[1] < augmentation.flip)
    low, high = augmentation.zoom
    if low == high == 1 and not augmentation.shift:
        return Window(whole.left, whole.top, whole.side, angle, flip)
    wanted = whole.side * (low + (high - low) * draws[2])
    step = next((step for step in (8, 4, 2) if wanted >= step * size), 1)
    side = max(1, round(wanted / step)) * step
    # In Python: for so few numbers, numpy takes ten times longer.
    dx, dy = ((2 * draw - 1) * augmentation.shift * side + (whole.side - side) / 2 for draw in draws[3:5])
    left, top = (round((corner + d) / step) * step for corner, d in ((whole.left, dx), (whole.top, dy)))
    return Window(left, top, side, angle, flip)


def draw_colours(augmentation: Augmentation, draws: Sequence[float]) -> tuple[float, float]:
    """Gain and offset, as `Batch.colours` has them."""
    gain, offset = (2 * draw - 1 for draw in draws[5:7])
    return 1 + gain * augmentation.contrast, 255 * offset * augmentation.brightness
