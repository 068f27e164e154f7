"""Squares around prompts: where they lie, and that their pixels are those of the picture there."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medpclip.data.loading.decode import render
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import RegionPrompt, stack
from medpclip.data.loading.windows import CutWindows, WindowSpec, cut_windows, place_windows

FILL = (1, 2, 255)
GRID = 8
SPEC = WindowSpec(size=16, context=1.5)


def ramps(width: int, height: int) -> np.ndarray:
    """Red says how far right a pixel lies, green how far down, a grey level for each two pixels; blue is 0."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns / 2, rows / 2, np.zeros((height, width))], -1).round().astype(np.uint8)


def boxed(*corners: float) -> RegionPrompt:
    return RegionPrompt(box=np.array(corners, np.float32))


def clicked(*points: tuple[float, float], off: int = 0) -> RegionPrompt:
    labels = np.array([1] * (len(points) - off) + [0] * off, np.int64)
    return RegionPrompt(points=np.array(points, np.float32).reshape(-1, 2), labels=labels)


def masked(rows: slice, columns: slice) -> RegionPrompt:
    mask = np.zeros((GRID, GRID), np.float32)
    mask[rows, columns] = 0.25
    return RegionPrompt(mask=mask)


def cut(picture: np.ndarray, window: Window, *prompts: RegionPrompt, spec: WindowSpec = SPEC) -> CutWindows:
    return cut_windows([picture], [window], stack([prompts], GRID), spec, FILL)


def rect_in_pixels(window: Window, rect: np.ndarray) -> list[float]:
    """Of an upright window that isn't mirrored."""
    return (rect * window.side + np.array([window.left, window.top] * 2)).tolist()


def pixels_of(window: Window, unit: np.ndarray) -> np.ndarray:
    """Unit coordinates (n, 2) -> pixels, by solving for what `Window.unit_points` maps there."""
    corner, right, down = window.unit_points(np.array([[0, 0], [1000, 0], [0, 1000]])).astype(np.float64)
    return np.linalg.solve(np.stack([right - corner, down - corner], 1), (unit - corner).T).T * 1000


def check_pixels(pixels: np.ndarray, rect: np.ndarray, window: Window, width: int, height: int) -> int:
    """Compare with `ramps`, where clearly inside or outside; returns how many were compared."""
    size = len(pixels)
    steps = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(*(rect[i] + (rect[i + 2] - rect[i]) * steps for i in (0, 1)))
    source = pixels_of(window, np.stack([x.ravel(), y.ravel()], 1)).reshape(size, size, 2)
    margin = 4 + 3 * (rect[2] - rect[0]) * window.side / size
    inside = ((source > margin) & (source < np.array([width, height]) - margin)).all(-1)
    outside = ((source < -margin) | (source > np.array([width, height]) + margin)).any(-1)
    expected = (source - 0.5) / 2
    assert np.abs(pixels[..., :2][inside] - expected[inside]).max(initial=0) < 2.5
    assert (pixels[outside] == FILL).all()
    return int(inside.sum() + outside.sum())


units = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(60, 500), st.integers(60, 500)),
    st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(0.5, 1.4)),
    st.sampled_from([0.0, 0.0, 12.5, -90.0, 171.0]),
    st.booleans(),
    st.tuples(units, units, units, units),
    st.sampled_from([8, 24]),
)
def test_pixels_are_the_pictures_where_the_rect_says(
    size: tuple[int, int],
    place: tuple[float, float, float],
    angle: float,
    flip: bool,
    corners: tuple[float, float, float, float],
    cells: int,
) -> None:
    width, height = size
    side = max(8, round(max(size) * place[2]))
    window = Window(round(place[0] * width), round(place[1] * height), side, angle, flip)
    x, y = sorted(corners[:2]), sorted(corners[2:])
    prompts = [boxed(x[0], y[0], x[1], y[1]), clicked((corners[0], corners[2])), RegionPrompt()]
    spec = WindowSpec(cells, 1.25)
    out = cut(ramps(width, height), window, *prompts, spec=spec)
    assert out.pixels.shape == (1, 3, cells, cells, 3) and out.pixels.dtype == torch.uint8
    for pixels, rect in zip(out.pixels[0].numpy(), out.rects[0].numpy(), strict=True):
        check_pixels(pixels, rect, window, width, height)
    # Squares are moved to whole pixels, of the picture as much smaller as it is made for them; by half a one at most.
    slack = 0.51 * max(1, 1.25 * side / (4 * cells)) / side
    wanted = [(sum(x) / 2, sum(y) / 2, 1.25 * max(x[1] - x[0], y[1] - y[0])), (corners[0], corners[2], 0.25)]
    for (u, v, extent), rect in zip([*wanted, (0.5, 0.5, 1.0)], out.rects[0].tolist(), strict=True):
        assert rect[2] - rect[0] == pytest.approx(extent, abs=max(slack, 1 / side) + 1e-5)
        assert rect[3] - rect[1] == pytest.approx(rect[2] - rect[0], abs=1e-5)
        turned = 1.42 if angle % 90 else 1
        assert (rect[0] + rect[2]) / 2 == pytest.approx(u, abs=turned * 2 * slack + 1e-5)
        assert (rect[1] + rect[3]) / 2 == pytest.approx(v, abs=turned * 2 * slack + 1e-5)


def test_a_planted_error_of_two_pixels_is_seen() -> None:
    window = Window(-10, 5, 200, 30.0, True)
    out = cut(ramps(180, 160), window, boxed(0.3, 0.3, 0.6, 0.6))
    pixels, rect = out.pixels[0, 0].numpy(), out.rects[0, 0].numpy()
    assert check_pixels(pixels, rect, window, 180, 160) > 100
    for wrong in (rect + 0.03, rect[[2, 1, 0, 3]], rect * np.float32(1.1)):
        with pytest.raises(AssertionError):
            check_pixels(pixels, wrong, window, 180, 160)


def test_an_upright_square_at_its_own_size_is_a_slice_of_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    window = Window(10, 0, 64)
    out = cut(picture, window, boxed(0.25, 0.25, 0.5, 0.5), spec=WindowSpec(16, 1.0))
    assert np.array_equal(out.pixels[0, 0], picture[16:32, 26:42])
    assert out.rects[0, 0].tolist() == [0.25, 0.25, 0.5, 0.5]
    mirrored = cut(picture, Window(10, 0, 64, 0.0, True), boxed(0.5, 0.25, 0.75, 0.5), spec=WindowSpec(16, 1.0))
    assert np.array_equal(mirrored.pixels[0, 0], picture[16:32, 26:42][:, ::-1])
    assert mirrored.rects[0, 0].tolist() == [0.5, 0.25, 0.75, 0.5]


def test_the_mask_comes_before_the_box_and_the_box_before_clicks() -> None:
    picture, window = ramps(400, 200), Window.whole(400, 200)
    both = boxed(0, 0, 0.5, 0.5)
    both.mask = masked(slice(3, 5), slice(4, 8)).mask
    with_click = clicked((0.9, 0.9))
    with_click.box = np.array([0.25, 0.25, 0.5, 0.375], np.float32)
    several = clicked((0.2, 0.4), (0.4, 0.6), (0.9, 0.9), off=1)
    rects = cut(picture, window, both, with_click, several).rects[0].numpy()
    # Mask: x 0.5 to 1, y 0.375 to 0.625, so a square of 1.5 * 0.5 around (0.75, 0.5).
    assert rects[0] == pytest.approx([0.375, 0.125, 1.125, 0.875], abs=2.01 / 400)  # on every fourth pixel
    assert rects[1] == pytest.approx([0.1875, 0.125, 0.5625, 0.5], abs=1.01 / 400)
    assert rects[2] == pytest.approx([0.175, 0.375, 0.425, 0.625], abs=1e-6)
    assert rect_in_pixels(window, rects[2]) == pytest.approx([70, 50, 170, 150], abs=1e-3)


@pytest.mark.parametrize("window", [Window(-5, 3, 90), Window(10, 10, 60, 20.0, True)])
def test_where_nothing_points_at_a_region_it_is_the_whole_window(window: Window) -> None:
    picture = ramps(100, 80)
    off_only = clicked((0.3, 0.3), off=1)
    nothing = [RegionPrompt(), off_only, RegionPrompt(mask=np.zeros((GRID, GRID), np.float32))]
    out = cut(picture, window, *nothing)
    whole = render(picture, 1, window, SPEC.size, FILL)
    assert all(np.array_equal(pixels, whole) for pixels in out.pixels[0])
    assert out.rects[0].numpy() == pytest.approx(np.array([[0, 0, 1, 1]] * 3), abs=1e-6)
    # An empty mask leaves it to the box.
    prompt = boxed(0.5, 0.5, 0.75, 0.75)
    expected = cut(picture, window, prompt)
    prompt.mask = nothing[2].mask
    assert torch.equal(cut(picture, window, prompt).rects, expected.rects)


def test_beyond_the_picture_is_fill() -> None:
    out = cut(ramps(100, 50), Window.whole(100, 50), boxed(0.2, 0.0, 0.4, 0.2), spec=WindowSpec(20, 1.0))
    assert (out.pixels == torch.tensor(FILL)).all()


@pytest.mark.parametrize("angle", [0.0, 33.0])
@pytest.mark.parametrize("flip", [False, True])
def test_a_large_picture_is_made_smaller_first_and_shows_the_same(angle: float, flip: bool) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((1001, 803), Image.Resampling.BICUBIC))
    window = Window(100, 0, 800, angle, flip)
    prompts = stack([[boxed(0.1, 0.2, 0.7, 0.9), boxed(0.4, 0.4, 0.45, 0.45)]], GRID)
    places = place_windows([window], prompts, SPEC)
    assert places.factors.tolist() == [[8, 1]] and places.least_factor(0) == 1
    pixels = cut_windows([picture], [window], prompts, SPEC, FILL).pixels[0, 0].numpy()
    square = places.windows[0, 0]
    assert square.left % 8 == square.top % 8 == square.side % 8 == 0
    direct = render(picture, 1, square, SPEC.size, FILL)
    assert np.abs(pixels.astype(float) - direct).mean() < 2


def test_padding_is_the_fill_and_costs_no_picture() -> None:
    prompts = stack([[boxed(0, 0, 1, 1)], []], GRID, regions=2)
    places = place_windows([Window(0, 0, 50)] * 2, prompts, SPEC, np.array([[True, False], [False, False]]))
    assert places.rects[0, 0].any() and not places.rects[0, 1].any() and not places.rects[1].any()
    assert places.least_factor(1) == 0
    out = np.empty((2, 16, 16, 3), np.uint8)
    places.cut(1, None, 1, FILL, out)
    assert (out == FILL).all()


def test_a_regions_square_does_not_depend_on_its_companions() -> None:
    picture, window = ramps(300, 200), Window.whole(300, 200)
    prompts = [boxed(0.2, 0.3, 0.6, 0.5), clicked((0.5, 0.5)), masked(slice(2, 5), slice(1, 4)), RegionPrompt()]
    together = cut(picture, window, *prompts)
    for r, prompt in enumerate(prompts):
        alone = cut(picture, window, prompt)
        assert torch.equal(alone.pixels[0, 0], together.pixels[0, r])
        assert torch.equal(alone.rects[0, 0], together.rects[0, r])
