"""Classes in words, and their probabilities."""

import hashlib

import numpy as np
import pytest

from medpclip.data.lexicon import Lexicon
from medpclip.errors import MedpclipError
from medpclip.evaluation.embedding.texts import TextClassifier, class_texts, log_softmax


def encode(texts):
    """A unit vector for each wording."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") for text in texts]
    rows = np.stack([np.random.default_rng(seed).normal(size=6) for seed in seeds])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_class_is_the_mean_of_its_templates():
    classifier = TextClassifier(encode, ["liver", "spleen"], ["{name}", "a {name} on {modality}"])
    for modality in ("CT", "MRI"):
        for row, name in zip(classifier.weights(modality), ["liver", "spleen"], strict=True):
            mean = encode([name, f"a {name} on {modality}"]).mean(0)
            np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-5)
    embeddings = encode(["x", "y", "z"])
    embeddings[1] = np.nan
    scores = classifier.scores(embeddings, ["CT", "CT", "MRI"], 7.0)
    assert scores.dtype == np.float32 and np.isnan(scores[1]).all()
    for i, modality in ((0, "CT"), (2, "MRI")):
        chances = np.exp(7.0 * (embeddings[i] @ classifier.weights(modality).T))
        np.testing.assert_allclose(np.exp(scores[i]), chances / chances.sum(), rtol=1e-4)


def test_a_wording_that_does_not_speak_of_the_modality_is_encoded_once():
    calls = []

    def counted(texts):
        calls.append(texts)
        return encode(texts)

    classifier = TextClassifier(counted, ["liver", "spleen"], ["a {name}"])
    assert classifier.weights("CT") is classifier.weights("MRI") and calls == [["a liver", "a spleen"]]


def test_a_template_that_needs_a_description_is_left_out_where_there_is_none():
    lexicon = Lexicon.load()
    assert class_texts("no such term", ["{name}", "{description}"], "CT", lexicon) == ["no such term"]
    with pytest.raises(MedpclipError, match="class 'no such term': the lexicon doesn't describe it"):
        class_texts("no such term", ["{description}"], "CT", lexicon)


def test_log_softmax_holds_where_exponentials_do_not():
    found = log_softmax(np.array([[1000.0, 0.0], [-2000.0, -2000.0], [np.nan, 1.0]], np.float32))
    np.testing.assert_allclose(found[:2], [[0, -1000], [-np.log(2)] * 2], rtol=1e-6)
    assert np.isnan(found[2]).all() and found.dtype == np.float32
