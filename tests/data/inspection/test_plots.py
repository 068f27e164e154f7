"""The page of plots is one file that holds what the tables hold, and no more."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpclip.data.inspection.plots import write_plots
from medpclip.data.inspection.stats import FolderTally, tally_folder
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError


def tally(tmp_path: Path, regions: bool = True) -> FolderTally:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(stream, "PNG")
    mask = np.zeros((10, 20))
    mask[2:5, 3:9] = 1
    with ShardWriter(tmp_path / "s") as writer:
        for i, split in enumerate(("train", "train", "test")):
            drawn = [Region(1, "<b>cell</b>", segmentation=encode_mask(mask)), Region(2, "lung", points=[[1, 1]])]
            sample = Sample(f"{i:032x}", "s", split, f"secret-group-{i}", "m", 20, 10, regions=drawn if regions else [])
            sample.captions = ["secret caption"]
            writer.add(sample, stream.getvalue(), "png")
        quarantine = {"mask is empty": {"faults": 2, "images": 0, "regions": 2}} if regions else {}
        writer.finish(recipe={"name": "mine"}, quarantine=quarantine)
    return tally_folder(tmp_path / "s")


def images(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', page)]


def test_one_page_without_links_and_without_colours(tmp_path: Path) -> None:
    out = write_plots([tally(tmp_path)], tmp_path / "new" / "stats.html")
    page = out.read_text()
    assert "mine: 3 images, 6 regions, 3 groups" in page
    assert "&lt;b&gt;cell" in page and "<b>" not in page
    assert "secret" not in page and "http" not in page
    drawn = images(page)
    assert len(drawn) == 7
    for picture in drawn:
        assert not getattr(picture, "text", {})
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert (pixels.max(axis=2) - pixels.min(axis=2)).max() <= 2  # greys: readable when printed
        assert (pixels < 60).any()


def test_same_numbers_same_page(tmp_path: Path) -> None:
    counted = tally(tmp_path)
    pages = [write_plots([counted, counted], tmp_path / f"{n}.html").read_bytes() for n in "ab"]
    assert pages[0] == pages[1]


def test_images_without_regions(tmp_path: Path) -> None:
    assert len(images(write_plots([tally(tmp_path, False)], tmp_path / "s.html").read_text())) == 3


def test_bad_names(tmp_path: Path) -> None:
    counted = tally(tmp_path)
    with pytest.raises(MedpclipError, match=r"ends in \.html"):
        write_plots([counted], tmp_path / "x.png")
    (tmp_path / "file").touch()
    with pytest.raises(MedpclipError, match="can't be written"):
        write_plots([counted], tmp_path / "file" / "x.html")
