"""Left-out terms: no region of them, no word of them, and everything else as it was."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.left_out import left_out
from medpclip.data.loading.loader import Batch, DataConfig, RegionDataset, open_dataset
from medpclip.data.loading.order import Item
from medpclip.data.loading.prompting import PromptSampling
from medpclip.data.loading.texts import TextSampling, draw_image_text, draw_region_texts, known_of_regions
from medpclip.data.phantom import write_phantoms
from medpclip.data.schema import Region, Sample
from medpclip.data.shards import ShardWriter, read_manifest
from medpclip.errors import MedpclipError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "phantom"
    write_phantoms(folder, images=24, seed=1, workers=1)
    return folder


def batch_of(shards: Path, **options: object) -> Batch:
    options = {"prompts": PromptSampling(whole=0.0)} | options
    data = RegionDataset(DataConfig([shards], **options), 64, 16, (1, 2, 3), seed=7)  # type: ignore[arg-type]
    return data[[Item(0, sample, 0) for sample in range(len(data))]]


def test_regions_and_words_of_a_term_are_gone_and_all_others_stay(shards: Path) -> None:
    """Also how the others are pointed at: an image has fewer regions than it may, so none takes a left-out one's place."""
    terms = sorted(read_manifest(shards)["splits"]["train"]["category"])
    out = terms[0]
    whole = batch_of(shards, regions_per_image=64)
    part = batch_of(shards, regions_per_image=64, leave_out_terms=[out])
    assert torch.equal(whole.images, part.images) and whole.keys == part.keys
    lost = 0
    for b, (row, kept) in enumerate(zip(whole.region_facts, part.region_facts, strict=True)):
        places = [r for r, facts in enumerate(row) if facts["term"] != (out,)]
        lost += len(row) - len(places)
        assert sorted(map(repr, kept)) == sorted(repr(row[r]) for r in places)
        boxes = {tuple(box.tolist()) for box in whole.prompts["boxes"][b, places]}
        assert {tuple(box.tolist()) for box in part.prompts["boxes"][b, : len(kept)]} == boxes
        valid = part.prompts["box_valid"] | part.prompts["mask_valid"] | (part.prompts["point_labels"] >= 0).any(-1)
        assert valid[b].sum() == len(kept)
    assert lost
    named = [value for facts in part.image_facts for name in ("present", "absent") for value in facts[name]]
    assert named and out not in named
    rng = np.random.default_rng(0)
    known = known_of_regions(facts for row in part.region_facts for facts in row)
    texts = draw_region_texts(known, Lexicon.load(), TextSampling(), rng)
    texts += [draw_image_text(f, Lexicon.load(), TextSampling(), rng) for f in part.image_facts for _ in range(20)]
    assert not any(value == out for text in texts for _, value in text.facts)


def test_an_empty_list_changes_nothing(shards: Path) -> None:
    batch = batch_of(shards)
    assert left_out(()).of_images(batch.image_facts) is batch.image_facts
    assert any(facts["term"] for row in batch.region_facts for facts in row)


def test_texts_of_images_that_name_a_term() -> None:
    """By the lexicon: synonyms, case and plurals too, but neither kinds of the term nor words that it is a part of."""
    assert "liver" in Lexicon.load().terms and "RBC" in Lexicon.load().terms["red blood cell"].synonyms
    without = left_out(("red blood cell", "liver"))
    facts = {
        "modality": ("CT",),
        "anatomy": ("Liver",),
        "label.finding": ("Red blood cells", "mass"),
        "label.other": ("RBC",),
        "caption": ("Many RBCs.", "An enlarged liver", "All of them are overly delivered."),
        "present": ("liver", "spleen"),
        "absent": ("red blood cell",),
    }
    assert without.of_images([facts]) == [
        {
            "modality": ("CT",),
            "label.finding": ("mass",),
            "label.other": (),  # known to be none of the others
            "caption": ("All of them are overly delivered.",),
            "present": ("spleen",),
            "absent": (),
        }
    ]
    assert without.of_images([{"modality": ("CT",), "caption": ("livers",)}]) == [{"modality": ("CT",)}]


def test_a_batch_without_regions_left(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(stream, "PNG")
    with ShardWriter(tmp_path / "one", 4) as writer:
        sample = Sample("0", "s", "train", "g", "CT", 16, 16, regions=[Region(0, "a", bbox=[1, 1, 9, 9])])
        writer.add(sample, stream.getvalue(), "png")
        writer.finish()
    batch = batch_of(tmp_path / "one", leave_out_terms=["a"])
    assert batch.region_facts == [[]] and batch.image_facts[0]["present"] == ()
    assert not batch.prompts["box_valid"].any()


@pytest.mark.parametrize("reader", ["indexed", "streaming"])
def test_a_term_that_no_region_has_is_refused(shards: Path, reader: str) -> None:
    term = min(read_manifest(shards)["splits"]["train"]["category"])
    config = DataConfig([shards], reader=reader, leave_out_terms=[term + "x"])  # type: ignore[arg-type]
    with pytest.raises(MedpclipError, match=f"'data.leave_out_terms' has '{term}x', .* there is {term}$"):
        open_dataset(config, 64, 16, (1, 2, 3), 0)
