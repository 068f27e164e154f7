"""One window for image, boxes, masks and points."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from medpclip.data.loading.geometry import Window, Windows, fill_colour

upright = st.builds(Window, st.integers(-30, 30), st.integers(-30, 30), st.integers(8, 90))
mirrored = st.builds(
    Window, st.integers(-30, 30), st.integers(-30, 30), st.integers(8, 90), st.just(0.0), st.booleans()
)
turned = st.builds(
    Window, st.integers(-20, 20), st.integers(-20, 20), st.integers(40, 90), st.floats(-180, 180), st.booleans()
)


def rectangle(data: st.DataObject, width: int, height: int) -> tuple[list[int], np.ndarray]:
    x, y = data.draw(st.integers(0, width - 3)), data.draw(st.integers(0, height - 3))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    return [x, y, w, h], mask


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 80), st.integers(5, 80), mirrored, st.data())
def test_image_box_mask_and_points_stay_together(width: int, height: int, window: Window, data: st.DataObject) -> None:
    (x, y, w, h), mask = rectangle(data, width, height)
    box = window.unit_box([x, y, w, h]) * window.side
    cut = window.cut(mask)
    expected = np.zeros((window.side, window.side), bool)
    x1, y1, x2, y2 = box.round().astype(int)
    expected[y1:y2, x1:x2] = True
    assert (cut == expected).all()
    # A pixel's centre lands on that pixel of the cut.
    centre = window.unit_points(np.array([x + 0.5, y + 0.5])) * window.side
    if (centre > 0).all() and (centre < window.side).all():
        assert cut[int(centre[1]), int(centre[0])]
    # The covered area is kept by the grid.
    assert np.isclose(window.coverage(mask, 8).mean(), cut.mean(), atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(20, 80), st.integers(20, 80), turned, st.data())
def test_turned_a_masks_box_is_the_mapped_box_within_a_pixel(
    width: int, height: int, window: Window, data: st.DataObject
) -> None:
    bbox, mask = rectangle(data, width, height)
    assume(min(bbox[2:]) >= 3)
    corners = np.array([[bbox[0] + i * bbox[2], bbox[1] + j * bbox[3]] for i in (0, 1) for j in (0, 1)], float)
    unit = window.unit_points(corners)
    assume(unit.min() > 0 and unit.max() < 1)
    x1, y1, x2, y2 = window.unit_box([float(v) for v in bbox]) * window.side
    cut = window.cut(mask)
    down, across = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
    found = np.array([across[0], down[0], across[-1] + 1, down[-1] + 1])
    # A corner's last pixel centre may lie up to half a diagonal inside.
    assert np.abs(found - [x1, y1, x2, y2]).max() <= 1.01
    assert abs(int(cut.sum()) - bbox[2] * bbox[3]) <= 2 * (bbox[2] + bbox[3])
    centre = window.unit_points(np.array([bbox[0] + bbox[2] / 2, bbox[1] + bbox[3] / 2])) * window.side
    assert cut[int(centre[1]), int(centre[0])]


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 60), st.integers(10, 60), st.one_of(upright, turned))
def test_a_mirrored_window_is_the_window_mirrored(width: int, height: int, window: Window) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    plain = Window(window.left, window.top, window.side, window.angle)
    mirror = Window(window.left, window.top, window.side, window.angle, flip=True)
    assert np.array_equal(mirror.cut(image, (9, 8, 7)), np.flip(plain.cut(image, (9, 8, 7)), 1))
    assert np.array_equal(mirror.coverage(image[:, :, 0] > 99, 7), np.flip(plain.coverage(image[:, :, 0] > 99, 7), 1))
    points = rng.uniform(0, 50, (5, 2))
    assert np.allclose(mirror.unit_points(points), [1, 0] + plain.unit_points(points) * [-1, 1], atol=1e-6)
    a, b = mirror.unit_box([3, 4, 5, 2]), plain.unit_box([3, 4, 5, 2])
    assert np.allclose(a, [1 - b[2], b[1], 1 - b[0], b[3]], atol=1e-6)


def test_turning_is_anticlockwise_as_seen() -> None:
    window = Window(0, 0, 9, angle=90.0)
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 8] = 255  # at the right
    assert window.cut(image)[0, 4].tolist() == [255] * 3  # now at the top
    assert np.allclose(window.unit_points(np.array([8.5, 4.5])) * 9, [4.5, 0.5], atol=1e-5)
    assert np.array_equal(Window(0, 0, 9, angle=1e-9).cut(image), image)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(upright, turned), min_size=1, max_size=5), st.integers(0, 99))
def test_many_windows_at_once_are_each_of_them_before_mirroring(windows: list[Window], seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(0, 30, (len(windows), 2)), rng.uniform(1, 30, (len(windows), 2))], 1)
    plain = [Window(w.left, w.top, w.side, w.angle) for w in windows]
    together = Windows.of(windows)
    assert np.allclose(
        together.unit_boxes(boxes), [w.unit_box(list(b)) for w, b in zip(plain, boxes, strict=True)], atol=1e-5
    )
    points = rng.uniform(0, 50, (len(windows), 3, 2))
    alone = [w.unit_points(p) for w, p in zip(plain, points, strict=True)]
    assert np.allclose(together.unit_points(points), alone, atol=1e-5)


def test_coverage_equals_counting() -> None:
    mask = np.random.default_rng(0).random((64, 64)) > 0.5
    counted = mask.reshape(8, 8, 8, 8).mean((1, 3))
    assert np.allclose(Window.whole(64, 64).coverage(mask, 8), counted, atol=1e-6)


def test_whole_pads_with_the_mean_colour_and_centres() -> None:
    mean = (0.48145466, 0.4578275, 0.40821073)
    image = np.full((4, 8, 3), 200, np.uint8)
    out = Window.whole(8, 4).image(image, 8, fill_colour(mean))
    assert (out[2:6] == 200).all() and (out[[0, 1, 6, 7]] == (122, 116, 104)).all()


def test_resizing_is_pillows_antialiased_bicubic() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
    assert (Window.whole(60, 60).image(image, 16, (0, 0, 0)) == expected).all()
