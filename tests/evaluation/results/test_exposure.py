import pytest

from medpclip.errors import MedpclipError
from medpclip.evaluation.results.exposure import TrainedOn, exposure_of, least, read_trained_on, trained_on_warnings

TRAINED = TrainedOn(["train"], ["s"], ["liver", "spleen"], ["0" * 64])


@pytest.mark.parametrize(
    ("sources", "terms", "expected"),
    [
        (["s"], ["liver"], "seen source"),
        (["s"], ["liver", "kidney"], "seen source"),
        (["s"], ["kidney"], "unseen term"),
        (["t"], ["kidney"], "unseen term"),
        (["t"], ["liver", "kidney"], "unseen source"),
        (["s", "t"], None, "seen source"),
        (["t"], None, "unseen source"),
    ],
)
def test_exposure(sources, terms, expected):
    assert exposure_of(TRAINED, sources, terms) == expected
    assert exposure_of(None, sources, terms) == "unknown"


def test_several_together_are_as_new_as_the_least_new():
    assert least(["unseen term", "unseen source"]) == "unseen source"
    assert least(["unseen term", "seen source", "unseen source"]) == "seen source"
    assert least(["seen source", "unknown"]) == "unknown"


def test_the_block_of_a_checkpoint_may_be_missing_may_know_more_but_not_be_broken():
    assert read_trained_on({"step": 3}, "m") is None
    block = {"splits": ["train"], "sources": ["s"], "terms": ["liver", "spleen"], "manifests": ["0" * 64], "later": 1}
    assert read_trained_on({"trained_on": block}, "m") == TRAINED
    for broken in ("s", {**block, "sources": "s"}, {"splits": ["train"]}):
        with pytest.raises(MedpclipError, match="meta.json: key 'trained_on'"):
            read_trained_on({"trained_on": broken}, "meta.json")


def test_a_warning_needs_the_same_manifest_and_the_same_split():
    manifests = [("mine", "0" * 64), ("other", "1" * 64)]
    [warning] = trained_on_warnings(TRAINED, "train", manifests)
    assert "trained on the train split of mine" in warning
    assert trained_on_warnings(TRAINED, "test", manifests) == []
    assert trained_on_warnings(TRAINED, "train", manifests[1:]) == trained_on_warnings(None, "train", manifests) == []
