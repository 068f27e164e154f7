"""The faults that are planted are those that are said; what is said of them: tests/evaluation/test_compare.py."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import open_clip
import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[2] / "benchmarks"
TABLE = "clip.token_embedding.weight"


@pytest.fixture(scope="module")
def planted() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("planted_faults")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("planted_faults", None)


def test_two_words_change_places_and_nothing_else_does(planted: ModuleType) -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    left, right = (tokenizer.encode(word) for word in ("left", "right"))
    before = {TABLE: torch.randn(tokenizer.vocab_size, 3), "other": torch.ones(2)}
    after = planted._swapped(tokenizer(["left", "right"]), before, ["left", "right"])
    assert list(after) == [TABLE]
    changed = (after[TABLE] != before[TABLE]).any(1).nonzero().flatten().tolist()
    assert sorted(changed) == sorted([*left, *right])
    assert torch.equal(after[TABLE][left], before[TABLE][right])


def test_words_of_several_tokens_are_refused(planted: ModuleType) -> None:
    words = ["left", "pneumothorax"]
    tokens = open_clip.SimpleTokenizer(context_length=8)(words)
    with pytest.raises(SystemExit, match="--words left pneumothorax: not one token each"):
        planted._swapped(tokens, {TABLE: torch.zeros(4, 3)}, words)


def test_a_copy_has_all_but_the_optimizer(planted: ModuleType, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-1"
    (checkpoint / "engine").mkdir(parents=True)
    (checkpoint / "meta.json").write_text("{}")
    for value in (1.0, 2.0):  # the second over the first
        folder = planted._copy(checkpoint, {"a": torch.full((2,), value)}, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "model.safetensors"]
    assert load_file(folder / "model.safetensors")["a"].tolist() == [2.0, 2.0]
