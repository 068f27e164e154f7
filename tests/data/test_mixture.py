"""Several sources as one corpus: what is written is what is read, and what is wrong is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from medpclip.data.mixture import MIXTURE, read_mixture, write_mixture
from medpclip.data.schema import Sample
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError


def source(folder: Path) -> Path:
    with ShardWriter(folder) as writer:
        writer.add(Sample("k", folder.name, "train", "g", "m", 4, 4), b"x", "png")
        writer.finish()
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in "abc":
        source(tmp_path / name)
    return tmp_path


def test_weights_survive_a_round_trip(corpus: Path) -> None:
    write_mixture(corpus, {"b": 2, "a": 0.5})
    assert read_mixture(corpus) == [(corpus / "a", 0.5), (corpus / "b", 2.0)]
    assert not list(corpus.glob(".*.part"))


def test_without_weights_each_source_counts_once(corpus: Path) -> None:
    assert read_mixture(corpus) == [(corpus / name, 1.0) for name in "abc"]
    assert read_mixture(corpus / "a") == [(corpus / "a", 1.0)]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({}, "no source is named"),
        ({"a": 0.0}, "'sources.a.weight' is 0.0, expected a number above 0"),
        ({"a": float("nan")}, "'sources.a.weight' is nan"),
        ({"d": 1.0}, "'sources.d': .* holds no finished shards; build them, or drop it"),
        ({"../a": 1.0}, "is no folder's name"),
    ],
)
def test_what_can_not_be_a_mixture_is_not_written(corpus: Path, weights: dict[str, float], says: str) -> None:
    with pytest.raises(MedpclipError, match=says):
        write_mixture(corpus, weights)
    assert not (corpus / MIXTURE).exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "broken JSON"),
        ([], "key 'schema'"),
        ({"schema": 2, "sources": {}}, "key 'schema' is not 1"),
        ({"schema": 1}, "key 'sources' is missing or empty"),
        ({"schema": 1, "sources": {"a": 2.0}}, "'sources.a.weight' is None"),
        ({"schema": 1, "sources": {"a": {"weight": "2"}}}, "'sources.a.weight' is '2'"),
        ({"schema": 1, "sources": {"a": {"weight": True}}}, "'sources.a.weight' is True"),
        ({"schema": 1, "sources": {"..": {"weight": 1}}}, "is no folder's name"),
    ],
)
def test_a_broken_mixture_says_where(corpus: Path, content: Any, says: str) -> None:
    (corpus / MIXTURE).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(MedpclipError, match=says) as error:
        read_mixture(corpus)
    assert "mixture.json" in str(error.value) and "\n" not in str(error.value)


def test_neither_shards_nor_a_mixture(tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match="no such folder"):
        read_mixture(tmp_path / "nowhere")
    with pytest.raises(MedpclipError, match=r"no manifest\.json"):
        read_mixture(tmp_path)
