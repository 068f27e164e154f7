"""Statistics equal a count by hand."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from medpclip.data.inspection.stats import folder_stats, format_stats, table
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
