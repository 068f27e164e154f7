"""Splits: whole groups, reproducible, independent of the salt."""

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpclip.data.building.rules import SplitRule, ValueRule
from medpclip.data.building.splits import Splitter, draw_split, refuse_torn_groups
from medpclip.errors import MedpclipError

GOLDEN = ["train", "test", "train", "test", "train", "train", "test", "train", "train", "train"]


def test_golden_draws() -> None:
    """These must never change: a lab's test patients would become another's training patients."""
    rule = SplitRule(seed=0, train=0.7, val=0.1, test=0.2)
    assert [draw_split(f"patient {i}", rule) for i in range(10)] == GOLDEN
    assert [draw_split(f"patient {i}", SplitRule(seed=1)) for i in range(10)] != GOLDEN


@given(st.lists(st.tuples(st.text(max_size=3), st.text(min_size=1, max_size=2)), max_size=30), st.integers(0, 5))
def test_no_group_is_in_two_splits(images: list[tuple[str, str]], seed: int) -> None:
    splitter = Splitter(SplitRule(seed=seed, train=0.4, val=0.3, test=0.3), Path())
    splits = defaultdict(set)
    for image, group in images:
        splits[group].add(splitter.split(image, group, {}))
    assert all(len(found) == 1 for found in splits.values())


def test_fractions_hold_on_average() -> None:
    rule = SplitRule(train=0.6, val=0.15, test=0.25)
    drawn = [draw_split(str(i), rule) for i in range(20_000)]
    for split, fraction in (("train", 0.6), ("val", 0.15), ("test", 0.25)):
        assert drawn.count(split) / len(drawn) == pytest.approx(fraction, abs=0.015)


@pytest.mark.parametrize("only", ["train", "val", "test"])
def test_a_split_may_have_all(only: str) -> None:
    rule = SplitRule(**({"train": 0.0, "val": 0.0, "test": 0.0} | {only: 1.0}))
    assert {draw_split(str(i), rule) for i in range(500)} == {only}


def test_published_lists_by_stem_name_or_path(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo.png\n")
    (tmp_path / "b.txt").write_text("images/three.png\n")
    splitter = Splitter(SplitRule(files={"train": "a.txt", "test": "b.txt"}), tmp_path)
    names = ("one", "two", "three", "four")
    found = [splitter.split(f"images/{name}.png", f"group of {name}", {}) for name in names]
    assert found == ["train", "train", "test", None]


def test_published_lists_may_be_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('filename,label\n"one, first.png",nodule\ntwo.png,mass\n')
    splitter = Splitter(SplitRule(files={"train": "a.csv"}), tmp_path)
    assert [splitter.split(f"x/{name}.png", name, {}) for name in ("one, first", "two", "nodule")] == [
        "train",
        "train",
        None,
    ]


def test_published_folders(tmp_path: Path) -> None:
    splitter = Splitter(SplitRule(folders={"train": "Training", "test": "Testing"}), tmp_path)
    images = ("Training/a.png", "Testing/x/a.png", "TestingMore/a.png")
    assert [splitter.split(image, image, {}) for image in images] == ["train", "test", None]


def test_published_lists_may_name_groups(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("patient 7\n")
    splitter = Splitter(SplitRule(files={"val": "a.txt"}), tmp_path)
    assert [splitter.split("x.png", group, {}) for group in ("patient 7", "patient 8")] == ["val", None]


def test_published_in_the_metadata() -> None:
    rule = SplitRule(metadata=ValueRule(key="subset", values={"training": "train", "testing": "test"}))
    splitter = Splitter(rule, Path())
    found = [splitter.split("x.png", "x", {"subset": subset}) for subset in ("training", "testing", "other", None)]
    assert found == ["train", "test", None, None]


def test_published_split_that_tears_a_group_is_refused() -> None:
    refuse_torn_groups([("a/1.png", "patient", "train"), ("a/2.png", "patient", "train"), ("b/1.png", "other", "test")])
    with pytest.raises(MedpclipError, match="one group in 'train' and 'test'.*b/2.png"):
        refuse_torn_groups([("a/1.png", "patient", "train"), ("b/2.png", "patient", "test")])


def test_broken_lists(tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match=r"unreadable list.*split\.files\.train"):
        Splitter(SplitRule(files={"train": "none.txt"}), tmp_path)
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(MedpclipError, match="'one' is in 'train' and in 'test'"):
        Splitter(SplitRule(files={"train": "a.txt", "test": "a.txt"}), tmp_path)
