"""Prompts that are drawn lie where the region is, in every window."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.loading.draws import normals, stream_keys, uniforms
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import PromptSampling, empty_arrays
from medpclip.data.loading.regions import RegionTable
from medpclip.data.loading.sampling import Pointed, choose, draws_per_region, sample_prompts
from medpclip.data.schema import encode_mask

WIDTH, HEIGHT = 80, 60
WHOLE = Window.whole(WIDTH, HEIGHT)


def disc(x: float = 30, y: float = 20, radius: float = 8) -> tuple[dict[str, Any], np.ndarray]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    mask = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    ys, xs = np.where(mask)
    bbox = [int(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)]
    return {"id": 1, "category": "disc", "bbox": bbox, "segmentation": encode_mask(mask)}, mask


def table(regions: list[dict[str, Any]], window: Window = WHOLE) -> RegionTable:
    return RegionTable.read([{"width": WIDTH, "height": HEIGHT, "regions": regions}], [window])


def draw(
    regions: list[dict[str, Any]], sampling: PromptSampling, seed: int, window: Window = WHOLE, grid: int = 16
) -> dict[str, np.ndarray]:
    """Prompts of all these regions of one image."""
    given = table(regions, window)
    every, masked = np.arange(len(regions)), np.flatnonzero(given.has_mask)
    draws = uniforms(stream_keys(seed, every), draws_per_region(sampling))
    strips = given.strips(masked)
    strips.owner, strips.count = masked[strips.owner], len(regions)
    points = [region.get("points") for region in regions]
    pointed = Pointed(given.windows, given.boxes, strips, given.has_mask, points, given.sizes)
    out = empty_arrays(1, len(regions), sampling.points, grid)
    flat = {name: array[0] for name, array in out.items()}
    sample_prompts(pointed, choose(pointed.has_box, given.has_mask, sampling, draws), sampling, draws, flat, every)
    return flat


def pixel(point: np.ndarray) -> tuple[int, int]:
    x, y = point * WHOLE.side + (WHOLE.left, WHOLE.top)
    return int(y), int(x)


def test_streams_are_uniform_and_unrelated() -> None:
    numbers = uniforms(stream_keys(1, np.arange(400)), 50)
    assert numbers.min() >= 0 and numbers.max() < 1 and len(np.unique(numbers)) == numbers.size
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 5 * np.sqrt(38)
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.15
    assert not np.isin(uniforms(stream_keys(np.arange(2, 400), 1), 50), numbers).any()  # the order of parts matters
    assert np.array_equal(uniforms(stream_keys(1, np.array([7])), 9)[0], numbers[7, :9])
    z = normals(uniforms(stream_keys(3, np.arange(5000)), 4))
    assert np.allclose([z.mean(), z.std()], [0, 1], atol=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 25.0]))
def test_clicks_lie_on_the_region_and_negative_ones_off_it(seed: int, flip: bool, angle: float) -> None:
    region, mask = disc()
    window = Window(WHOLE.left, WHOLE.top, WHOLE.side, angle, flip)
    sampling = PromptSampling(kinds={"point": 1.0}, combine=0.0, max_points=4, negative=1.0)
    prompt = draw([region, region], sampling, seed, window)
    cut = window.cut(mask)
    assert not prompt["box_valid"].any() and not prompt["mask_valid"].any()
    for points, labels in zip(prompt["points"], prompt["point_labels"], strict=True):
        assert 1 <= (labels == 1).sum() <= 4 and (labels == 0).sum() == 1
        for point, label in zip(points, labels, strict=True):
            if label >= 0:
                x, y = np.minimum(point * window.side, window.side - 1).astype(int)
                assert cut[y, x] == bool(label)
            else:
                assert (point == 0).all()


def test_clicks_are_uniform_in_the_mask() -> None:
    region, mask = disc()
    counts = np.zeros(mask.shape)
    sampling = PromptSampling(kinds={"point": 1.0}, combine=0.0, max_points=1, negative=0.0)
    for point in draw([region] * 4000, sampling, 0)["points"][:, 0]:
        counts[pixel(point)] += 1
    expected = 4000 / mask.sum()
    assert (counts[~mask] == 0).all()
    chi2 = ((counts[mask] - expected) ** 2 / expected).sum()
    assert chi2 < mask.sum() + 5 * np.sqrt(2 * mask.sum())


def test_jitter_has_the_stated_size_and_never_inverts_a_box() -> None:
    region, _ = disc()
    boxes = draw([region] * 2000, PromptSampling(kinds={"box": 1.0}, combine=0.0, box_jitter=0.1), 0)["boxes"]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert np.allclose(boxes.std(0) / (16 / 80), 0.1, rtol=0.15)


def test_a_region_is_only_prompted_by_what_it_has() -> None:
    box_only = {"id": 1, "category": "a", "bbox": [1, 2, 3, 4]}
    point_only = {"id": 1, "category": "a", "points": [[5, 6], [70, 50]]}
    prompts = draw([box_only, point_only] * 50, PromptSampling(kinds={"mask": 1.0}), 0)
    assert not prompts["mask_valid"].any() and not prompts["box_valid"][1::2].any()
    assert prompts["box_valid"][::2].any() and (prompts["point_labels"][1::2] == 1).any(1).all()
    clicks = prompts["points"][1::2][prompts["point_labels"][1::2] == 1]
    expected = WHOLE.unit_points(np.array(point_only["points"]))
    assert (np.abs(clicks[:, None] - expected).max(-1).min(1) < 1e-6).all()
    on_box = prompts["points"][::2][prompts["point_labels"][::2] == 1]
    box = WHOLE.unit_box([1.0, 2.0, 3.0, 4.0])
    assert ((on_box >= box[:2]) & (on_box <= box[2:])).all() and len(on_box)


def test_kinds_come_as_often_as_configured() -> None:
    region, _ = disc()
    sampling = PromptSampling(kinds={"box": 3.0, "mask": 1.0}, combine=0.0)
    assert np.isclose(draw([region] * 2000, sampling, 0)["box_valid"].mean(), 0.75, atol=0.03)
    both = draw([region] * 50, PromptSampling(kinds={"box": 1.0}, combine=1.0), 0)
    assert both["box_valid"].all() and not both["mask_valid"].any() and (both["point_labels"] == -1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.0, 25.0]))
def test_scribbles_lie_on_the_region_beside_its_clicks(seed: int, flip: bool, angle: float) -> None:
    region, mask = disc()
    window = Window(WHOLE.left, WHOLE.top, WHOLE.side, angle, flip)
    sampling = PromptSampling(kinds={"scribble": 1.0, "point": 1.0}, combine=1.0, max_points=2, negative=0.5)
    prompt = draw([region] * 8, sampling, seed, window)
    cut = window.cut(mask)
    given = prompt["point_labels"] >= 0
    assert given[:, 3:].any() and given[:, :3].any()
    for points, labels in zip(prompt["points"], prompt["point_labels"], strict=True):
        assert (labels[3:] == 1).sum() in (0, 8) and (labels == 1).any()
        for point, label in zip(points[labels >= 0], labels[labels >= 0], strict=True):
            x, y = np.minimum(point * window.side, window.side - 1).astype(int)
            assert cut[y, x] == bool(label)


def test_scribbles_of_boxes_are_mirrored_and_points_get_none() -> None:
    box = {"id": 1, "category": "a", "bbox": [4, 10, 30, 8]}
    point_only = {"id": 1, "category": "a", "points": [[5, 6]]}
    sampling = PromptSampling(kinds={"scribble": 1.0}, combine=0.0, negative=0.0)
    straight = draw([box, point_only], sampling, 0)
    assert (straight["point_labels"][0] == [-1] * 4 + [1] * 8).all()
    assert (straight["point_labels"][1, :3] == 1).any() and (straight["point_labels"][1, 4:] == -1).all()
    mirrored = draw([box, point_only], sampling, 0, Window(WHOLE.left, WHOLE.top, WHOLE.side, 0.0, True))
    assert np.allclose(mirrored["points"][0, 4:, 0], 1 - straight["points"][0, 4:, 0])
    assert np.array_equal(mirrored["points"][0, 4:, 1], straight["points"][0, 4:, 1])


def test_other_draws_do_not_know_of_scribbles() -> None:
    """Regions that lack the configured kinds never get one; and where none is configured, draws are what they were."""
    regions = [{"id": 1, "category": "a", "bbox": [1, 2, 30, 4]}] * 200
    given = draw(regions, PromptSampling(kinds={"mask": 1.0}, combine=0.0), 0)
    assert given["points"].shape[1] == 4 and 60 < given["box_valid"].sum() < 140
    default = PromptSampling()
    assert default.points == 4 and draws_per_region(default) == 3 + 8 + 20 + 9


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(-20, 30),
    st.integers(-20, 30),
    st.integers(30, 70),
    st.sampled_from([0.0, 40.0]),
)
def test_a_region_half_in_the_window_is_only_prompted_where_it_is_seen(
    seed: int, left: int, top: int, side: int, angle: float
) -> None:
    region, mask = disc()
    window = Window(left, top, side, angle)
    seen = int(window.cut(mask).sum())
    is_visible = bool(table([region], window).visible()[0])
    # The box decides where it says that everything is seen, or the mask otherwise; a turned mask has rounded pixels.
    assert is_visible == (2 * seen >= mask.sum()) or angle
    if is_visible:
        sampling = PromptSampling(kinds={"point": 1.0, "mask": 1.0}, combine=1.0, max_points=4, mask_noise=0.5)
        prompt = draw([region], sampling, seed, window)
        assert ((prompt["points"] >= 0) & (prompt["points"] <= 1)).all()
        assert not prompt["mask_valid"][0] or prompt["masks"][0].any()


def test_boxes_and_points_are_visible_by_their_own_rule() -> None:
    window = Window(10, 10, 40)
    regions = [
        {"id": 1, "category": "a", "bbox": [0, 20, 20, 5]},  # half of it
        {"id": 1, "category": "a", "bbox": [0, 20, 19, 5]},
        {"id": 1, "category": "a", "points": [[1, 1], [30, 30]]},
        {"id": 1, "category": "a", "points": [[1, 1]]},
    ]
    assert table(regions, window).visible().tolist() == [True, False, True, False]
    crowd = [{"id": 1, "category": "a", "bbox": [0, 0, 9, 9], "iscrowd": 1}, regions[0]]
    assert table(crowd, window).visible().tolist() == [False, True]


def test_noise_swells_and_shrinks_by_a_cell() -> None:
    region, mask = disc(radius=14)
    sampling = PromptSampling(kinds={"mask": 1.0}, combine=0.0, mask_noise=1.0)
    masks = draw([region] * 40, sampling, 0)["masks"]
    exact = WHOLE.coverage(mask, 16)
    near = np.pad(exact, 1)
    shifted = [near[1 + dy : 17 + dy, 1 + dx : 17 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    larger, smaller = np.max(shifted, 0), np.min(shifted, 0)
    swollen = np.array([np.allclose(m, larger, atol=1e-6) for m in masks])
    shrunk = np.array([np.allclose(m, smaller, atol=1e-6) for m in masks])
    assert (swollen ^ shrunk).all() and 8 < swollen.sum() < 32
    tiny, _ = disc(radius=1.2)
    assert draw([tiny] * 20, sampling, 0)["masks"].any((1, 2)).all(), "none vanishes"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_what_is_drawn_takes_categories_by_turns(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    regions = [{"id": 1, "category": f"{rng.integers(4)}", "bbox": [1, 1, 5, 5]} for _ in range(rng.integers(1, 20))]
    given = table(regions)
    every = np.arange(len(regions))
    chosen, place = given.draw(every, rng.random(len(regions)), True, most)
    assert place.tolist() == list(range(min(most, len(regions)))) and len(set(chosen)) == len(chosen)
    left = {c: sum(r["category"] == c for r in regions) for c in {r["category"] for r in regions}}
    while len(chosen):  # each round has every category that is left
        round_size = min(sum(n > 0 for n in left.values()), len(chosen))
        names = [regions[i]["category"] for i in chosen[:round_size]]
        assert len(set(names)) == round_size
        left = {c: n - (c in names) for c, n in left.items()}
        chosen = chosen[round_size:]


def test_an_image_without_regions_is_no_trouble() -> None:
    empty = table([])
    assert empty.visible().shape == (0,)
    chosen, place = empty.draw(np.zeros(0, int), np.zeros(0), True, 4)
    assert len(chosen) == len(place) == 0
    assert not draw([], PromptSampling(), 0)["box_valid"].any()
