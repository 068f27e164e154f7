from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest

from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import RegionPrompt
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.evaluation.corpus import Item
from medpclip.evaluation.scores import Case, Scores
from medpclip.evaluation.sections.robustness import jittered_box, run, stretched_mask, variants
from medpclip.evaluation.task import RegionTask, RobustnessTask, Task

GRID = 16
CLASSES = ["aorta", "liver", "spleen"]


def disc(cx: float, cy: float, r: float, height: int = 100, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    return (x - cx) ** 2 + (y - cy) ** 2 <= r * r


def region(number: int, category: str, mask: np.ndarray, box: bool = True) -> Region:
    columns, rows = (np.flatnonzero(mask.any(axis=a)) for a in (0, 1))
    bbox = [float(columns[0]), float(rows[0]), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)]
    return Region(number, category, bbox if box else None, encode_mask(mask))


def cases(key: str = "k") -> list[Case]:
    regions = [
        region(0, "liver", disc(40, 50, 20)),
        region(1, "spleen", disc(110, 40, 12)),
        region(2, "liver", disc(130, 80, 2)),
        Region(3, "aorta", points=[[80.0, 50.0]]),
    ]
    sample = Sample(key, "s", "test", key, "CT", 160, 100, regions=regions)
    item = Item(cast(Any, None), 0, sample)
    return [Case(item, CLASSES.index(r.category), r) for r in regions]


def asked(**changes) -> dict[str, Any]:
    none: dict[str, Any] = {"jitter": [], "wrong": False, "missing": False, "empty_mask": False, "tiny": None}
    return {v.name: v for v in variants(RobustnessTask(**(none | changes)))}


def test_names_say_what_is_disturbed():
    question = RobustnessTask(["box", "mask"], jitter=[0.05, 0.125], corruptions=["noise"], severities=[1, 3])
    names = [v.name for v in variants(question)]
    of_kind = [
        "jittered 5%",
        "jittered 12.5%",
        "of wrong region",
        "missing",
        "of tiny regions",
        "with noise 1",
        "with noise 3",
    ]
    assert names == [f"{kind} {what}" for kind in ("box", "mask") for what in of_kind] + ["mask empty"]
    assert {v.corruption for v in variants(question)} == {None, ("noise", 1), ("noise", 3)}


def test_sides_move_within_their_share_and_in_proportion():
    box = np.array([0.2, 0.3, 0.6, 0.4])
    size = np.array([0.4, 0.1, 0.4, 0.1])
    moves = np.stack([jittered_box(box, 0.2, np.random.default_rng(s)) - box for s in range(2000)]) / size
    assert np.abs(moves).max() <= 0.2 and np.abs(moves).max() > 0.199
    assert np.allclose(moves.mean(axis=0), 0, atol=0.01) and np.allclose(moves.std(axis=0), 0.2 / 3**0.5, atol=0.01)
    assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.1  # each side by itself
    half = jittered_box(box, 0.1, np.random.default_rng(5)) - box
    assert np.allclose(2 * half, jittered_box(box, 0.2, np.random.default_rng(5)) - box)


@pytest.mark.parametrize("seed", range(20))
def test_a_box_stays_a_box_in_the_window(seed):
    own = cases(f"k{seed}")[0]
    assert own.region is not None
    own.region.bbox = [0.0, 0.0, 160.0, 1.0] if seed % 2 else [159.0, 99.0, 1.0, 1.0]
    [variant] = asked(jitter=[1.0]).values()
    prompt = variant.prompt(own, GRID, seed)
    assert (prompt.box[2:] - prompt.box[:2] > 5e-4).all() and prompt.box.min() >= 0 and prompt.box.max() <= 1.0005


def test_a_stretched_mask_has_the_new_extent_and_nothing_changes_without_a_move():
    mask = disc(40, 50, 20)
    assert (stretched_mask(mask, lambda extent: extent) == mask).all()
    moved = stretched_mask(mask, partial(np.add, [10, -5, 10, -5]))
    assert (moved == disc(50, 45, 20)).all()
    wide = stretched_mask(mask, lambda extent: np.array([20, 10, 100, 50.0]))
    columns, rows = (np.flatnonzero(wide.any(axis=a)) for a in (0, 1))
    assert (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1) == (20, 100, 10, 50)
    assert wide.sum() == pytest.approx(2 * mask.sum(), rel=0.05)
    # Half of it beyond the image; all of it; squeezed to nothing.
    assert stretched_mask(mask, partial(np.add, [120, 0, 120, 0])).sum() == pytest.approx(mask.sum() / 2, rel=0.1)
    assert (stretched_mask(mask, partial(np.add, [500, 0, 500, 0])) == mask).all()
    assert (stretched_mask(mask, lambda extent: np.array([30.6, 30, 30.9, 60])) == mask).all()


def test_masks_and_clicks_jitter_by_the_region_s_size():
    [mask_variant], [click_variant] = (asked(prompts=[kind], jitter=[0.2]).values() for kind in ("mask", "point"))
    [plain_click] = asked(prompts=["point"], corruptions=["blur"], severities=[1]).values()
    exact = Window.whole(160, 100).coverage(disc(40, 50, 20), GRID)
    shares, shifts = [], []
    for seed in range(60):
        own = cases()[0]
        mask = mask_variant.prompt(own, GRID, seed).mask
        assert mask.shape == (GRID, GRID) and (mask != exact).any() and mask.max() <= 1
        shares.append(mask.sum() / exact.sum())
        shifts.append(click_variant.prompt(own, GRID, seed).points - plain_click.prompt(own, GRID, seed).points)
    assert np.mean(shares) == pytest.approx(1, abs=0.15) and np.std(shares) > 0.05
    moves = np.abs(np.concatenate(shifts))
    assert moves.max() <= 0.2 * 40 / 160 + 1e-6 and moves.max() > 0.15 * 40 / 160
    point_only = cases()[3]
    assert click_variant.prompt(point_only, GRID, 0) is None and mask_variant.prompt(point_only, GRID, 0) is None
    assert plain_click.prompt(point_only, GRID, 0) is not None


def test_the_wrong_region_is_of_a_class_that_excludes_the_own():
    [wrong] = asked(wrong=True).values()
    own = cases()
    spleen = Window.whole(160, 100).unit_box(own[1].region.bbox)
    livers = [Window.whole(160, 100).unit_box(own[i].region.bbox) for i in (0, 2)]
    for seed in range(8):
        assert (wrong.prompt(own[0], GRID, seed).box == spleen).all()
        assert any((wrong.prompt(own[1], GRID, seed).box == liver).all() for liver in livers)
    assert len({tuple(wrong.prompt(own[1], GRID, seed).box) for seed in range(8)}) == 2
    assert wrong.prompt(own[3], GRID, 0) is None  # it has no box itself
    own[0].item.sample.regions = [region(0, "lung", disc(40, 50, 20)), region(1, "left lung", disc(90, 50, 20))]
    kin = replace(own[0], region=own[0].item.sample.regions[0])
    assert wrong.prompt(kin, GRID, 0) is None  # one is a kind of the other


def test_missing_empty_and_tiny():
    own = cases()
    missing, empty, tiny = asked(missing=True)["box missing"], asked(empty_mask=True)["mask empty"], asked(tiny=0.01)
    prompt = missing.prompt(own[0], GRID, 0)
    assert (
        prompt.box is None
        and prompt.mask is None
        and not len(prompt.points)
        and missing.prompt(own[3], GRID, 0) is None
    )
    mask = empty.prompt(own[0], GRID, 0).mask
    assert mask.shape == (GRID, GRID) and not mask.any() and empty.prompt(own[3], GRID, 0) is None
    assert [tiny["box of tiny regions"].prompt(c, GRID, 0) is not None for c in own] == [False, False, True, False]


class Fake:
    """Says "liver" of whatever lies left, "spleen" of the rest, and "aorta" of nothing and of noisy pictures."""

    region_scale = 5.0
    comparators = ("prompted", "unprompted")
    mask_grid = GRID

    def __init__(self) -> None:
        self.calls = 0

    def texts(self, texts):
        return np.stack([np.eye(3, dtype=np.float32)[CLASSES.index(text)] for text in texts])

    def embed(self, requests, name=""):
        self.calls += 1
        rows = [np.eye(3, dtype=np.float32)[self._answer(r.prompt, r.corruption)] for r in requests]
        return np.stack(rows) if rows else np.zeros((0, 3), np.float32)

    def _answer(self, prompt: RegionPrompt, corruption) -> int:
        nothing = prompt.box is None and (prompt.mask is None or not prompt.mask.any())
        if corruption == ("noise", 5) or nothing:
            return 0
        x = (
            prompt.box[[0, 2]].mean()
            if prompt.box is not None
            else np.flatnonzero(prompt.mask.any(axis=0)).mean() / GRID
        )
        return 1 if x < 0.5 else 2


def scores_of(own: list[Case]) -> Scores:
    return Scores("region", "s", CLASSES, own, mixed=True, pairs={"kind": [("liver", "spleen")]})


def test_the_section_asks_all_variants_and_says_what_it_could_not(monkeypatch):
    monkeypatch.setattr("medpclip.evaluation.sections.robustness._CASES", 3)  # in two parts
    question = RobustnessTask(
        ["box"], jitter=[0.1], corruptions=["noise"], severities=[1, 5], tiny=1e-6, empty_mask=False
    )
    task = Task("t", "d", region=RegionTask(["{name}"]), robustness=question)
    left_out: list[str] = []
    own = cases()
    features = Fake()
    [found] = run(cast(Any, features), task, [scores_of(own)], left_out)
    assert features.calls == 2
    assert (found.section, found.name, found.pairs) == ("robustness", "s", {}) and found.cases is own
    assert list(found.values) == [
        (name, "prompted")
        for name in ("box jittered 10%", "box of wrong region", "box missing", "box with noise 1", "box with noise 5")
    ]

    def answers(name: str) -> list[int]:
        values = found.values[name, "prompted"]
        assert np.isnan(values[3]).all()  # a point only
        assert np.allclose(np.exp(values[:3]).sum(axis=1), 1)
        return values[:3].argmax(axis=1).tolist()

    assert answers("box jittered 10%") == answers("box with noise 1") == [1, 2, 2]
    assert answers("box of wrong region")[0] == 2  # the spleen's place
    assert answers("box missing") == answers("box with noise 5") == [0, 0, 0]
    assert left_out == ["s: 'box of tiny regions', which none of its regions can be asked"]


def test_its_own_comparators_else_the_task_s():
    question = RobustnessTask(["box"], jitter=[0.1], comparators=None)
    task = Task("t", "d", region=RegionTask(["{name}"]), robustness=question, comparators=["unprompted", "crop"])
    [found] = run(cast(Any, Fake()), task, [scores_of(cases())], [])
    assert {name for _, name in found.values} == {"unprompted"}


def test_the_same_task_gives_the_same_prompts():
    for variant in variants(RobustnessTask(["box", "mask", "point"], tiny=0.5)):
        one, other = (variant.prompt(cases()[0], GRID, 3) for _ in range(2))
        assert repr(one) == repr(other), variant.name
