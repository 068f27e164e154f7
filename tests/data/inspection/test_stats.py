"""Statistics equal a count by hand."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medpclip.data.inspection.stats import Reservoir, folder_stats, format_stats, table, tally_folder
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import ShardWriter


def test_numbers_and_tables(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(stream, "PNG")
    mask = np.zeros((10, 20))
    mask[:5, :4] = 1
    cell = [Region(1, "cell", bbox=[0, 0, 4, 5], segmentation=encode_mask(mask)), Region(2, "cell", bbox=[0, 0, 2, 10])]
    samples = [
        Sample("a", "s", "train", "g1", "m", 20, 10, regions=cell, labels={"finding": "x"}),
        Sample("b", "s", "train", "g1", "m", 20, 10, regions=[Region(1, "cell", bbox=[0, 0, 20, 10])]),
        Sample("c", "s", "test", "g2", "n", 20, 10, regions=[Region(1, "lung", points=[[1, 1]])]),
    ]
    with ShardWriter(tmp_path / "s") as writer:
        for sample in samples:
            writer.add(sample, stream.getvalue(), "png")
        writer.finish(recipe={"name": "mine"}, quarantine={"too bad": {"faults": 2, "images": 0, "regions": 5}})
    stats = folder_stats(tmp_path / "s")
    assert (stats["source"], stats["samples"], stats["regions"], stats["groups"]) == ("mine", 3, 4, 2)
    assert stats["splits"]["train"] == {"samples": 2, "groups": 1, "regions": 3, "modality": {"m": 2}}
    assert stats["categories"] == {
        "cell": {"regions": 3, "images": 2, "masks": 1, "median_area": 0.1},
        "lung": {"regions": 1, "images": 1, "masks": 0, "median_area": 0.0},
    }
    assert stats["labels"] == {"finding": {"x": 1}}
    text = format_stats(stats)
    assert text.startswith("mine: 3 images, 4 regions, 2 groups")
    assert ["cell", "3", "2", "1", "10.00", "%"] in [line.split() for line in text.splitlines()]
    assert "too bad" in text


def test_table_aligns() -> None:
    assert table(["name", "n"], [["a", 5], ["long", 12]]) == "name   n\n----  --\na      5\nlong  12"
    assert table(["name"], []) == ""


def _write(folder: Path, samples: list[Sample]) -> Path:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(stream, "PNG")
    with ShardWriter(folder) as writer:
        for sample in samples:
            writer.add(sample, stream.getvalue(), "png")
        writer.finish()
    return folder


def test_captions_volumes_burned_in_text_and_lists_of_labels(tmp_path: Path) -> None:
    def slice_of(i: int, **facts: Any) -> Sample:
        volume = {"id": "v", "index": i, "count": 3, "axis": "z"}
        return Sample(f"{i}", "s", "train", "g", "m", 20, 10, volume=volume, **facts)

    samples = [
        slice_of(0, labels={"finding": ["nodule", "effusion"]}, captions=["One.", "Two."]),
        slice_of(1, labels={"finding": ["nodule"]}, extra={"burned_in_text": "modality"}),
        slice_of(2, labels={"finding": []}, extra={"burned_in_text": "declared"}),
    ]
    stats = folder_stats(_write(tmp_path / "s", samples))
    assert stats["labels"] == {"finding": {"nodule": 2, "effusion": 1}}
    assert stats["captions"] == {"images": 1, "texts": 2}
    assert stats["volumes"] == {"volumes": 1, "slices": 3}
    assert stats["burned_in_text"] == {"declared": 1, "modality": 1}
    lines = format_stats(stats).splitlines()
    assert any(line.startswith("images with text suspected: usual for their modality") for line in lines)
    assert any(line.split() == ["captions", "2"] for line in lines)


def test_areas_and_centres_equal_a_count_of_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((10, 20)) < 0.2 for _ in range(30)]
    regions = [Region(i, f"c{i}", segmentation=encode_mask(mask)) for i, mask in enumerate(masks)]
    tally = tally_folder(_write(tmp_path / "s", [Sample("a", "s", "train", "g", "m", 20, 10, regions=regions)]))
    for i, mask in enumerate(masks):
        assert tally.categories[f"c{i}"].areas.values == [mask.mean()]
        ((row, column),) = np.argwhere(tally.categories[f"c{i}"].centres)
        y, x = np.argwhere(mask).mean(axis=0) + 0.5
        assert (row, column) == (int(y / 10 * 24), int(x / 20 * 24))


def test_reservoir_is_bounded_exact_at_first_and_fair() -> None:
    few = Reservoir()
    for i in range(100):
        few.add(i)
    assert few.values == list(range(100))
    many = Reservoir()
    for i in range(40_000):
        many.add(i)
    assert len(many.values) == 4096 and many.seen == 40_000
    assert abs(np.median(many.values) / 20_000 - 1) < 0.05
