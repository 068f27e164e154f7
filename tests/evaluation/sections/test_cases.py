from typing import Any, cast

import numpy as np

from medpclip.data.loading.prompting import RegionPrompt
from medpclip.data.schema import Region, Sample
from medpclip.evaluation.corpus import Item
from medpclip.evaluation.scores import Case
from medpclip.evaluation.sections.cases import Way, chosen_regions, embed_ways, region_prompt


def item(key: str = "k", count: int = 10) -> Item:
    regions = [Region(i, "ab"[i % 2], [float(i), 2.0, 4.0, 4.0], iscrowd=int(i == 0)) for i in range(count)]
    return Item(cast(Any, None), 0, Sample(key, "s", "test", key, "CT", 40, 20, regions=regions))


def test_regions_without_crowds_and_a_seeded_choice_in_their_order():
    assert [r.id for r in chosen_regions(item(), {"a", "b"}, None, 0)] == list(range(1, 10))
    assert [r.id for r in chosen_regions(item(), {"a"}, 4, 0)] == [2, 4, 6, 8]  # no more than there are
    some = [
        [r.id for r in chosen_regions(item(key), {"a", "b"}, 3, seed)]
        for key, seed in (("k", 0), ("k", 0), ("k", 1), ("l", 0))
    ]
    assert all(len(ids) == 3 and ids == sorted(ids) and 0 not in ids for ids in some)
    assert some[0] == some[1] and some[0] != some[2] and some[0] != some[3]


def test_a_prompt_as_annotated_or_none():
    case = Case(item(), 0, Region(3, "a", [4.0, 2.0, 8.0, 4.0]))
    box = region_prompt(case, "box", 8, 0)
    assert box is not None and np.allclose(box.box, [0.1, 0.3, 0.3, 0.4])  # padded by ten rows above and below
    assert region_prompt(case, "mask", 8, 0) is None
    clicks = [region_prompt(case, "point", 8, seed) for seed in (0, 0, 1)]
    points = [click.points for click in clicks if click is not None]
    assert (points[0] == points[1]).all() and (points[0] != points[2]).any()
    assert all(((p >= [0.1, 0.3]) & (p <= [0.3, 0.4])).all() for p in points)


class Fake:
    """Writes down what it is asked and answers with the request's number."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []

    def embed(self, requests, name=""):
        self.calls.append(list(requests))
        return np.arange(len(requests), dtype=np.float32)[:, None].repeat(2, 1)


def test_all_ways_are_asked_in_one_go_and_each_row_finds_its_place():
    features = Fake()
    cases = [Case(item(key), 0) for key in "xyz"]
    ways = [
        Way("one", [RegionPrompt(), None, RegionPrompt()]),
        Way("other", [None, RegionPrompt(), None], ("noise", 2)),
        Way("never", [None, None, None]),
    ]
    found = embed_ways(cast(Any, features), cases, ways, ["p", "q"], "test")
    [asked] = features.calls
    assert set(found) == {(way.name, name) for way in ways for name in "pq"}
    for (way, name), rows in found.items():
        prompts = {w.name: w for w in ways}[way]
        for i, row in enumerate(rows):
            assert np.isnan(row).all() == (prompts.prompts[i] is None)
            if not np.isnan(row).any():
                request = asked[int(row[0])]
                assert request.item is cases[i].item and request.prompt is prompts.prompts[i]
                assert (request.comparator, request.corruption) == (name, prompts.corruption)
