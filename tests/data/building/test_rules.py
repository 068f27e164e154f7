"""What a source says in its own words -> ours, and nothing else."""

from typing import Any

import pytest

from medpclip.data.building.rules import GroupRule, ValueRule


@pytest.mark.parametrize(
    ("rule", "metadata", "words", "strange"),
    [
        (ValueRule("a", {"P": "pneumonia"}), {"a": "P"}, ["pneumonia"], []),
        (ValueRule("a", {"P": "pneumonia"}), {"a": " P "}, ["pneumonia"], []),
        (ValueRule("a", {"P": "pneumonia"}), {"a": "Q"}, None, ["Q"]),
        (ValueRule("a", {"P": "pneumonia"}, unlabelled=["Q"]), {"a": "Q"}, None, []),
        (ValueRule("a", {"P": "pneumonia"}), {}, None, []),
        (ValueRule("a.b", {"1": "x"}), {"a": {"b": 1}}, ["x"], []),
        (ValueRule("a", {"P": "p", "Q": "q"}, separator="|"), {"a": "Q|P| |Q"}, ["q", "p"], []),
        (ValueRule("a", {"P": "p"}, separator="|"), {"a": "P|R"}, ["p"], ["R"]),
        (ValueRule("a", lexicon=True), {"a": "Kidney_Left"}, ["left kidney"], []),
        (ValueRule("a", lexicon=True), {"a": "Jane Doe"}, None, ["Jane Doe"]),
        (ValueRule("a", ranges={"child": (0, 18), "adult": (18, 200)}), {"a": "18"}, ["adult"], []),
        (ValueRule("a", ranges={"child": (0, 18)}), {"a": "17.9"}, ["child"], []),
        (ValueRule("a", ranges={"child": (0, 18)}), {"a": "90"}, None, ["90"]),
        (ValueRule("a", ranges={"child": (0, 18)}), {"a": "young"}, None, ["young"]),
        (ValueRule(columns={"x": "effusion", "y": "nodule"}), {"x": "1", "y": "0"}, ["effusion"], []),
        (ValueRule(columns={"x": "effusion", "y": "nodule"}), {"x": 0, "y": 0}, [], []),
        (ValueRule(columns={"x": "effusion"}), {"y": "1"}, None, []),
        (ValueRule(columns={"x": "effusion", "y": "nodule"}), {"x": "1", "y": "-1"}, None, ["-1"]),
        (ValueRule(columns={"x": "effusion", "y": "nodule"}), {"x": "TRUE", "y": ""}, ["effusion"], []),
        (ValueRule(columns={"x": "effusion", "y": "nodule"}, unlabelled=["-1"]), {"x": "1", "y": "-1"}, None, []),
    ],
)
def test_words(rule: ValueRule, metadata: dict[str, Any], words: list[str] | None, strange: list[str]) -> None:
    assert rule.read(metadata) == (words, strange)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected one of"),
        ({"key": "a", "values": {"a": "b"}, "ranges": {"a": (0, 1)}}, "expected one of"),
        ({"values": {"a": "b"}}, "needs 'key'"),
        ({"key": "a", "columns": {"a": "b"}}, "names its own keys"),
    ],
)
def test_rules_that_say_nothing_or_two_things(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ValueRule(**given)


def test_groups() -> None:
    assert GroupRule().find("a/b.png", {}) == "a/b.png"
    assert GroupRule(metadata="patient").find("a.png", {"patient": 7}) == "7"
    assert GroupRule(metadata="patient").find("a.png", {"patient": ""}) is None
    assert GroupRule(path=r"(p\d+)_").find("x/p12_3.png", {}) == "p12"
    assert GroupRule(path=r"p\d+").find("x/p12_3.png", {}) == "p12"
    assert GroupRule(path=r"q\d+").find("x/p12_3.png", {}) is None
