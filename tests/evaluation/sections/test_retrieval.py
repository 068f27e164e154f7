import itertools
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpclip.data.schema import Region, Sample
from medpclip.evaluation.corpus import Corpus, Item, Source
from medpclip.evaluation.sections import retrieval as module
from medpclip.evaluation.sections.retrieval import places, rank, run
from medpclip.evaluation.task import RegionTask, RetrievalTask, Task

DEPTHS = (1, 2, 4)


def cases(seed: int, ties: int = 3):
    rng = np.random.default_rng(seed)
    shape = (4, int(rng.integers(1, 6)))
    similarity = rng.integers(0, ties, shape) / 2
    return similarity, rng.random(shape) < 0.4, rng.random(shape) < 0.8


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100_000))
def test_places_equal_a_loop_over_all_orders_of_equals(seed):
    similarity, right, ranked = cases(seed)
    found = places(similarity, right, ranked, DEPTHS)
    for q in range(len(similarity)):
        there = [m for m in range(similarity.shape[1]) if ranked[q, m]]
        good = [m for m in there if right[q, m]]
        if not good:
            assert found.best_rank[q] == -1 and all(np.isnan(found.found[k][q]) for k in DEPTHS)
            continue
        best = max(similarity[q, m] for m in good)
        wrong = [similarity[q, m] for m in there if m not in good]
        expected = sum(s > best for s in wrong) + sum(s == best for s in wrong) / 2
        assert found.best_rank[q] == int(np.ceil(expected))
        orders = [
            order
            for order in itertools.permutations(there)
            if all(similarity[q, a] >= similarity[q, b] for a, b in itertools.pairwise(order))
        ]
        for k in DEPTHS:
            shares = [len(set(order[:k]) & set(good)) / len(good) for order in orders]
            assert found.found[k][q] == pytest.approx(np.mean(shares), abs=1e-6)


def test_ranks_are_the_same_in_parts_and_rounding_makes_no_order(monkeypatch):
    rng = np.random.default_rng(0)
    queries, candidates = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 30, 8)))
    candidates[1] = candidates[0] + 1e-9  # the same picture, embedded twice
    right, unranked = [np.array([i % 7]) for i in range(30)], [np.array([], np.int64)] * 30
    queries[4], candidates[9] = np.nan, np.nan
    whole = rank(queries, candidates, right, unranked, [1, 5])
    monkeypatch.setattr(module, "_CELLS", 100)
    parts = rank(queries, candidates, right, unranked, [1, 5])
    assert (whole.best_rank == parts.best_rank).all() and whole.best_rank[4] == -1
    assert all(np.array_equal(whole.found[k], parts.found[k], equal_nan=True) for k in (1, 5))
    both = rank(candidates[:1], candidates, [np.array([0])], unranked[:1], [1])
    assert both.best_rank[0] == 1 and both.found[1][0] == 0.5  # one equal before it: half, rounded up


class Fake:
    """Embeds an image by its key and a region by its category as the very text that is told here."""

    image_scale = region_scale = 10.0
    comparators = ("unprompted", "prompted")
    mask_grid = 4

    def __init__(self, says: dict[str, str]) -> None:
        self.says = says
        self.known: dict[str, int] = {}

    def texts(self, texts):
        return np.stack([self._of(text) for text in texts])

    def embed(self, requests, name=""):
        rows = []
        for request in requests:
            if request.prompt is None:
                rows.append(self._of(self.says[request.item.sample.key]))
            else:
                x = request.prompt.box[0] * max(request.item.sample.width, request.item.sample.height)
                [region] = [r for r in request.item.sample.regions if r.bbox and abs(r.bbox[0] - x) < 0.5]
                rows.append(self._of(self.says[region.category]))
        return np.stack(rows) if rows else np.zeros((0, 16), np.float32)

    def _of(self, text: str) -> np.ndarray:
        return np.eye(16, dtype=np.float32)[self.known.setdefault(text, len(self.known))]


def item(key: str, captions=(), regions=(), modality="CT", source="s") -> Item:
    made = [Region(i, c, bbox=[10.0 * i + 1, 5.0, 8.0, 8.0]) for i, c in enumerate(regions)]
    sample = Sample(key, source, "test", key, modality, 100, 100, captions=list(captions), regions=made)
    return Item(cast(Any, None), 0, sample)


def corpus(*items: Item, classes=()) -> Corpus:
    return Corpus([Source("s", list(items), classes=list(classes))], {}, [])


def captions_of(says, *items):
    left_out: list[str] = []
    question = RetrievalTask("caption", k=[1, 2])
    found = run(cast(Any, Fake(says)), Task("t", "d", retrieval=[question]), question, corpus(*items), left_out)
    return found, left_out


def test_captions_may_be_shared_and_several():
    says = {"a": "lung", "b": "lung", "c": "a brain", "d": "an eye"}
    items = [item("a", ["lung"]), item("b", ["lung", "the chest"]), item("c", ["a  brain "]), item("d", ["a foot"])]
    (to_text, to_image), left_out = captions_of(says, *items, item("e"))
    assert (to_text.name, to_image.name) == ("image to text: s", "text to image: s")
    assert (to_text.candidates, to_image.candidates) == (4, 4) and left_out == [
        "s: caption retrieval of 1 images without a caption"
    ]
    asked = ("image", "unprompted")
    # "d" says what nobody wrote: all four captions are alike to it, three of them wrong.
    assert to_text.best_rank[asked].tolist() == [0, 0, 0, 2]
    assert to_text.found[asked][1].tolist() == [1, 0.5, 1, 0.25]
    # lung has both of its images on top; "the chest" and "a foot" are like no image.
    assert to_image.best_rank[asked].tolist() == [0, 2, 0, 2]
    assert to_image.found[asked][1].tolist() == [0.5, 0.25, 1, 0.25] and to_image.found[asked][2][0] == 1
    assert [case.item.sample.key for case in to_image.cases] == ["a", "b", "c", "d"]


def test_one_caption_is_no_question():
    found, left_out = captions_of({"a": "x", "b": "x"}, item("a", ["x"]), item("b", ["x"]))
    assert not found and "fewer than two different captions" in left_out[0]


def regions_of(says, *items, classes, **changes):
    question = RetrievalTask("region", k=[1, 2], **changes)
    task = Task("t", "d", retrieval=[question], comparators=["prompted", "box_geometry"])
    left_out: list[str] = []
    found = run(cast(Any, Fake(says)), task, question, corpus(*items, classes=classes), left_out)
    return found, left_out, task


def test_regions_find_their_class_and_classes_their_regions():
    says = {"liver": "liver", "spleen": "liver", "aorta": "aorta"}  # spleens look like livers
    items = [item("a", regions=["liver", "spleen"]), item("b", regions=["aorta", "liver"])]
    (to_text, to_region), _, _ = regions_of(says, *items, classes=["aorta", "liver", "pancreas", "spleen"])
    asked = ("box", "prompted")
    assert to_text.best_rank.keys() == {asked} and to_text.candidates == 4 and to_region.candidates == 4
    assert to_text.best_rank[asked].tolist() == [0, 2, 0, 0]  # aorta, pancreas beside spleen: one and a half, and liver
    assert [case.true for case in to_region.cases] == [0, 1, 3]  # no region of the third class asks for it
    assert to_region.best_rank[asked].tolist() == [0, 1, 2]  # one spleen beside the livers
    assert np.allclose(to_region.found[asked][1], [1, 1 / 3, 1 / 4])
    assert np.allclose(to_region.found[asked][2], [1, 2 / 3, 1 / 2])


def test_kinds_of_one_another_are_not_ranked():
    says = {"lung": "left lung", "left lung": "lung", "heart": "heart"}  # each is taken for the other
    (to_text, to_region), _, _ = regions_of(
        says, item("a", regions=["lung", "left lung", "heart"]), classes=["heart", "left lung", "lung"]
    )
    # Without the other, what remains is the heart, as unlike as the right one.
    assert to_text.best_rank["box", "prompted"].tolist() == [1, 1, 0]
    assert to_region.best_rank["box", "prompted"].tolist() == [0, 1, 1]


def test_texts_that_speak_of_the_modality_rank_among_their_own():
    says = {"liver": "liver on CT", "spleen": "spleen on CT"}
    items = [item("a", regions=["liver", "spleen"]), item("b", regions=["liver"], modality="MRI")]
    (to_text, to_region), _, _ = regions_of(
        says, *items, classes=["liver", "spleen"], templates=["{name} on {modality}"]
    )
    assert len(to_region.cases) == 3 and to_text.candidates == 2
    assert to_text.best_rank["box", "prompted"].tolist() == [0, 0, 1]  # on MRI neither text is like what it says
    assert to_region.best_rank["box", "prompted"].tolist() == [0, 0, 0]  # the MRI's liver is its only region


def test_what_has_no_box_is_not_asked_by_box_and_the_regions_section_s_choice_holds():
    one = item("a", regions=["liver", "spleen"])
    one.sample.regions[1] = Region(1, "spleen", points=[[5.0, 5.0]])
    (to_text, to_region), _, task = regions_of({"liver": "liver"}, one, classes=["liver", "spleen"])
    assert to_text.best_rank["box", "prompted"].tolist() == [0, -1]
    assert np.isnan(to_text.found["box", "prompted"][1][1]) and to_region.best_rank["box", "prompted"].tolist() == [
        0,
        -1,
    ]
    task.region = RegionTask(["{name}"], max_regions_per_image=1)
    found = run(
        cast(Any, Fake({"liver": "liver"})), task, task.retrieval[0], corpus(one, classes=["liver", "spleen"]), []
    )
    assert len(found[0].cases) == 1
