"""One window for image, boxes, masks and points."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medpclip.data.loading.geometry import Window, fill_colour

windows = st.builds(Window, st.integers(-30, 30), st.integers(-30, 30), st.integers(8, 90))


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 80), st.integers(5, 80), windows, st.data())
def test_image_box_mask_and_points_stay_together(width: int, height: int, window: Window, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, width - 3)), data.draw(st.integers(0, height - 3))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
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
