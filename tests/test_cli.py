"""The command's words: verbs of two words, and overrides wherever they stand."""

import pytest

from medpclip.cli import build_parser


def test_overrides_may_stand_among_the_options_or_after_them():
    words = ["eval", "t.yaml", "seed=1", "--model", "m", "region=null", "--out", "o", "--ema", "a.b=[x, y]"]
    args = build_parser().parse_args(words)
    assert args.overrides == ["seed=1", "region=null", "a.b=[x, y]"] and args.ema and args.model == "m"
    args = build_parser().parse_args(
        [*words[:2], "--model", "m", "--out", "o", "--data", "a", "b/c=d", "seed=2", "--ema"]
    )
    assert args.data == ["a", "b/c=d"] and args.overrides == ["seed=2"]
    assert build_parser().parse_args(["train", "c.yaml", "--resume", "steps=2"]).overrides == ["steps=2"]


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "t.yaml", "--model", "m", "--out", "o", "--seeed=1"],
        ["eval", "t.yaml", "--model", "m", "--out", "o", "again"],
        ["data", "check", "folder", "seed=1"],
    ],
)
def test_other_words_too_many_are_refused(words, capsys):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(words)
    assert caught.value.code == 2 and words[-1] in capsys.readouterr().err
