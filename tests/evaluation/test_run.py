"""A task's sections are run, and what a model can't be asked is said."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medpclip.data.schema import Region, Sample
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import read_corpus
from medpclip.evaluation.embedding.features import Features
from medpclip.evaluation.run import run_task
from medpclip.evaluation.subject import load_subject
from medpclip.evaluation.task import ImageTask, ProbeTask, RegionTask, RetrievalTask, RobustnessTask, Task
from medpclip.export.clip_vision import export_clip_vision
from medpclip.models.load import build_model
from medpclip.models.region_clip import ModelConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    with ShardWriter(folder) as writer:
        for i in range(18):
            image = rng.integers(0, 100, (40, 40, 3), np.uint8)
            image[..., i % 2] += 120
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            regions = [Region(0, "disc", [2.0, 3.0, 9.0, 9.0]), Region(1, "ring", [20.0, 20.0, 9.0, 12.0])]
            split, modality = ("train", "val", "test")[i // 2 % 3], ("CT", "MRI")[i % 2]
            sample = Sample(f"k{i}", "s", split, f"g{i}", modality, 40, 40, captions=[f"image {i}"], regions=regions)
            writer.add(sample, stream.getvalue(), "png")
        writer.finish()
    return folder


def task_on(shards: Path, **changes: object) -> Task:
    given: dict[str, object] = {
        "image": [ImageTask("modality", ["{name}"])],
        "region": RegionTask(["{name}"], prompts=["box"]),
        "retrieval": [RetrievalTask("caption", k=[1]), RetrievalTask("region", k=[1])],
        "probe": [ProbeTask("modality", ["linear", "knn"]), ProbeTask("region", ["knn"])],
        "robustness": RobustnessTask(jitter=[0.1], comparators=["prompted", "crop"]),
        "comparators": ["prompted", "unprompted", "crop"],
    }
    return Task("t", str(shards), **(given | changes))  # type: ignore[arg-type]


def test_all_sections_are_run_in_order(shards: Path, micro_trunk: Path) -> None:
    subject = load_subject(str(micro_trunk))
    task = task_on(shards)
    evaluation = run_task(Features(subject, shown=False), task, read_corpus(task))
    assert [scores.section for scores in evaluation.scores] == sorted(
        (scores.section for scores in evaluation.scores), key=["image", "region", "probe", "robustness"].index
    )
    assert {s.section for s in evaluation.scores} == {"image", "region", "probe", "robustness"}
    assert any("caption" in ranking.name or "image" in ranking.name for ranking in evaluation.rankings)
    asked = {comparator for scores in evaluation.scores for _, comparator in scores.values}
    assert "prompted" not in asked and "crop" in asked  # random weights
    assert "prompted: the model was never trained with prompts" in evaluation.left_out
    assert task.comparators == ["prompted", "unprompted", "crop"]  # the task itself stays as it was
    assert {"images per second", "regions per second: crop"} <= evaluation.speed.keys()


def test_an_image_tower_is_probed_and_nothing_else(shards: Path, micro_trunk: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build_model(ModelConfig(trunk=str(micro_trunk)))
    export_clip_vision(model.clip, model.preprocess, tmp_path / "tower")
    subject = load_subject(str(tmp_path / "tower"))
    task = task_on(shards, probe=[ProbeTask("modality", ["linear"])])
    evaluation = run_task(Features(subject, shown=False), task, read_corpus(task))
    [probe] = evaluation.scores
    [values] = probe.values.values()
    assert probe.section == "probe" and (values.argmax(1) == probe.true).mean() > 0.8  # red or green
    assert [note for note in evaluation.left_out if note.startswith("region: the model is an image tower")]
    task = task_on(shards, probe=[])
    with pytest.raises(MedpclipError, match="tower is an image tower without texts, which only a section 'probe'"):
        run_task(Features(subject, shown=False), task, read_corpus(task))
