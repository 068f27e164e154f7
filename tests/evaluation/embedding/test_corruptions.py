from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from medpclip.evaluation.embedding.corruptions import corrupt
from medpclip.evaluation.task import Corruption

KINDS = get_args(Corruption)


def picture(height: int = 200, width: int = 300) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = np.stack([np.sin(20 * rows + 3 * c) + np.cos(30 * columns) for c in range(3)], axis=-1)
    grain = np.random.default_rng(0).normal(0, 10, waves.shape)  # something for the least blur to take away
    return np.clip(128 + 40 * waves + grain, 0, 255).astype(np.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("name", KINDS)
def test_is_repeatable_leaves_its_input_and_gets_worse(name):
    given = picture()
    before = given.copy()
    made = [corrupt(given, name, severity, rng()) for severity in range(1, 6)]
    assert (given == before).all()
    assert all(one.shape == given.shape and one.dtype == np.uint8 for one in made)
    assert (corrupt(given, name, 3, rng()) == made[2]).all()
    distances = [np.abs(one.astype(float) - given).mean() for one in made]
    assert distances[0] > 0 and all(a < b for a, b in pairwise(distances))


@pytest.mark.parametrize("name", KINDS)
def test_black_and_white_stay_in_range_and_one_pixel_is_enough(name):
    for value in (0, 255):
        assert corrupt(np.full((1, 1, 3), value, np.uint8), name, 5, rng()).shape == (1, 1, 3)


def test_what_is_drawn_follows_the_generator():
    given = picture()
    assert (corrupt(given, "noise", 3, np.random.default_rng(8)) != corrupt(given, "noise", 3, rng())).any()
    signs = {
        float(np.sign(corrupt(given, "brightness", 3, np.random.default_rng(s)).mean() - given.mean()))
        for s in range(9)
    }
    assert signs == {-1.0, 1.0}


def test_noise_has_its_strength_at_any_resolution():
    for size in (100, 448, 3 * 448):
        grey = np.full((size, size, 3), 128, np.uint8)
        change = corrupt(grey, "noise", 2, rng())[..., 0] - 128.0
        # Seen at a model's resolution: grains as large as a 448th of the side don't average out.
        step = max(1, size // 448)
        seen = change[: size // step * step, : size // step * step].reshape(size // step, step, -1, step).mean((1, 3))
        assert seen.std() == pytest.approx(0.04 * 255, rel=0.12), size


def test_blur_and_contrast_do_what_they_say():
    given = picture()
    flat = corrupt(given, "contrast", 2, rng()).astype(float)
    assert flat.std() == pytest.approx(0.6 * given.std(), rel=0.01) and flat.mean() == pytest.approx(
        given.mean(), abs=0.5
    )
    blurred = corrupt(given, "blur", 5, rng()).astype(float)
    assert np.abs(np.diff(blurred, axis=1)).mean() < np.abs(np.diff(given.astype(float), axis=1)).mean()
