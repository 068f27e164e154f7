"""Several labels of one image: what is true, and how much a model says for it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpclip.data.lexicon import Lexicon
from medpclip.data.schema import Sample
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import read_corpus
from medpclip.evaluation.sections.multi_label import multi_label, truth_of
from medpclip.evaluation.task import ImageTask, Task

STATED: list[object] = [["nodule", "effusion"], ["effusion"], [], None, "nodule"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder) as writer:
        for i, stated in enumerate(STATED):
            stream = io.BytesIO()
            Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(stream, "PNG")
            labels = {} if stated is None else {"findings": stated}
            writer.add(Sample(f"k{i}", "s", "test", f"g{i}", "CT", 20, 20, labels=labels), stream.getvalue(), "png")
        writer.finish()
    return folder


class Planted:
    """Texts and images with chosen cosines: an image has the mean of the texts of what it shows."""

    comparators = ("unprompted",)
    image_scale, region_scale, mask_grid = 10.0, 99.0, 4

    def __init__(self) -> None:
        self.words: list[str] = []

    def texts(self, texts):
        for text in texts:
            if text not in self.words:
                self.words.append(text)
        return np.eye(16, dtype=np.float32)[[self.words.index(text) for text in texts]]

    def embed(self, requests, name=""):
        rows = self.texts(["nodule", "effusion", "no nodule", "no effusion"])
        out = []
        for request in requests:
            said = request.item.sample.labels["findings"]
            row = rows[0 if "nodule" in said else 2] + rows[1 if "effusion" in said else 3]
            out.append(row / np.linalg.norm(row))
        return np.stack(out)


def test_each_label_is_weighed_against_its_absence(shards: Path) -> None:
    question = ImageTask("labels.findings", ["{name}"], kind="multi_label", prompts=["none", "full_box"])
    task = Task("t", str(shards), image=[question])
    left_out: list[str] = []
    scores = multi_label(Planted(), task, question, read_corpus(task), left_out)  # type: ignore[arg-type]
    assert scores.classes == ["effusion", "nodule"] and list(scores.values) == [("image", "unprompted")]
    assert scores.truth.tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]] and scores.truth.dtype == np.int8
    for_it, against = -np.log1p(np.exp(-10 / np.sqrt(2))), -np.log1p(np.exp(10 / np.sqrt(2)))
    want = np.where(scores.truth == 1, for_it, against)
    np.testing.assert_allclose(scores.values["image", "unprompted"], want, rtol=1e-4)
    assert left_out == [
        "image label 'labels.findings': 1 images that don't state it",
        "image label 'labels.findings': prompt full_box, since the model was never trained with prompts",
    ]
    with pytest.raises(MedpclipError, match="'labels.other' has fewer than two values"):
        other = ImageTask("labels.other", ["{name}"], kind="multi_label")
        task = Task("t", str(shards), image=[other])
        multi_label(Planted(), task, other, read_corpus(task), [])  # type: ignore[arg-type]


def test_a_misspelt_label_is_named(shards: Path) -> None:
    question = ImageTask("labels.findings", ["{name}"], ["nodule", "efusion"], kind="multi_label")
    task = Task("t", str(shards), image=[question])
    with pytest.raises(MedpclipError, match="'efusion' is in no split .*; did you mean 'effusion'"):
        multi_label(Planted(), task, question, read_corpus(task), [])  # type: ignore[arg-type]


def test_kinds_of_what_is_stated_are_open() -> None:
    assert Lexicon.load().related("blood cell", "red blood cell")
    classes = ["blood cell", "red blood cell", "rbc", "platelet"]
    terms = ["blood cell", "red blood cell", "rbc's own term", "platelet"]
    words = {"cells": "blood cell"}
    assert truth_of(classes, terms, ["red blood cell"], words).tolist() == [-1, 1, 0, 0]
    assert truth_of(classes, terms, ["cells"], words).tolist() == [1, -1, 0, -1]
    assert truth_of(classes, terms, [], words).tolist() == [0, 0, 0, 0]
    assert truth_of(classes, terms, ["rbc", "elsewhere"], words).tolist() == [0, 0, 1, 0]
