"""Contact sheets: what is drawn lies where the annotation says; nothing identifying is written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpclip.data.inspection import sheet
from medpclip.data.inspection.sheet import PALETTE, category_colours, draw_regions, write_sheet
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError


def _sample(key: str = "k0", split: str = "train", regions: list[Region] | None = None) -> Sample:
    return Sample(key, "made up", split, "g" + key, "drawing", 60, 40, regions=regions or [])


def _region(number: int, category: str, box: tuple[int, int, int, int]) -> Region:
    x, y, w, h = box
    mask = np.zeros((40, 60), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return Region(number, category, list(map(float, box)), encode_mask(mask), [[x + w / 2, y + h / 2]])


def _png(size: tuple[int, int] = (60, 40)) -> bytes:
    import io

    stream = io.BytesIO()
    Image.new("RGB", size, (90, 90, 90)).save(stream, "PNG")
    return stream.getvalue()


def _shards(folder: Path, keys: str, split: str = "train") -> Path:
    with ShardWriter(folder) as writer:
        for key in keys:
            writer.add(_sample(key, split, [_region(0, f"thing {key}", (5, 5, 20, 10))]), _png(), "png")
        writer.finish()
    return folder


def test_draws_inside_the_region_and_nowhere_else() -> None:
    sample = _sample(regions=[_region(0, "square", (10, 10, 20, 20))])
    blank = np.full((40, 60, 3), 90, dtype=np.uint8)
    picture = np.asarray(draw_regions(blank, sample, 240, texts={}))
    assert picture.shape == (160, 240, 3)
    changed = (picture != 90).any(axis=2)
    assert changed[44:116, 44:116].all()
    changed[38:122, 38:122] = False
    assert not changed.any()


def test_box_and_point_are_in_their_colour() -> None:
    region = Region(3, "spot", [10.0, 10.0, 20.0, 20.0], None, [[45.0, 20.0]])
    picture = draw_regions(np.zeros((40, 60, 3), dtype=np.uint8), _sample(regions=[region]), 120, texts={})
    assert picture.getpixel((20, 40)) == picture.getpixel((59, 40)) == picture.getpixel((90, 40)) == PALETTE[0]
    assert picture.getpixel((40, 40)) == (0, 0, 0)


def test_regions_can_be_chosen_and_named() -> None:
    blank = np.zeros((40, 60, 3), dtype=np.uint8)
    sample = _sample(regions=[_region(0, "a", (2, 2, 10, 10)), _region(1, "b", (40, 20, 15, 15))])
    only = np.asarray(draw_regions(blank, sample, 60, regions=[1], texts={}))
    assert not only[:, :30].any() and only[:, 38:].any()
    named = np.asarray(draw_regions(blank, sample, 360, regions=[1], texts={1: "answer"}))
    plain = np.asarray(draw_regions(blank, sample, 360, regions=[1], texts={}))
    assert (named != plain).any()


def test_only_the_first_of_many_are_named() -> None:
    regions = [_region(i, "cell", (i * 5, 3, 4, 4)) for i in range(10)] + [_region(10, "other", (5, 30, 4, 4))]
    assert sheet._first_of_each(regions) == {0: "cell (1 of 10)", 1: "cell", 10: "other"}


def test_colours_differ_within_a_picture() -> None:
    names = [f"c{i:02d}" for i in range(28)]
    together = [set(names[i::4]) for i in range(4)]  # seven each
    colours = category_colours(together)
    for group in together:
        assert len({colours[name] for name in group}) == 7


def test_texts_do_not_overlap() -> None:
    taken: list[tuple[float, float, float, float]] = []
    from PIL import ImageDraw

    page = Image.new("RGB", (200, 200))
    for _ in range(3):
        sheet._draw_text(ImageDraw.Draw(page), page.size, "a term", (20, 20, 30, 30), (255, 0, 0), 2.0, taken)
    assert not any(sheet._overlap(a, b) for i, a in enumerate(taken) for b in taken[:i])
    assert all(x0 >= 0 and y0 >= 0 and x1 <= 200 and y1 <= 200 for x0, y0, x1, y1 in taken)


def test_sheet_of_one_folder(tmp_path: Path) -> None:
    out = write_sheet(_shards(tmp_path / "a", "abcdefgh"), tmp_path / "new" / "sheet.png", count=7)
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.size[0] > 6 * 340 and not picture.text
    assert [path.name for path in out.parent.iterdir()] == ["sheet.png"]


def test_sheet_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    folder = _shards(tmp_path / "a", "abcdefgh")
    first, again, other = (
        write_sheet(folder, tmp_path / f"{name}.png", count=3, seed=seed).read_bytes()
        for name, seed in (("x", 0), ("y", 0), ("z", 1))
    )
    assert first == again != other


def test_sources_take_turns() -> None:
    picked = sheet._pick([100, 1, 50], 7, 0)
    assert [s for s, _ in picked] == [0, 0, 0, 1, 2, 2, 2]
    assert len(set(picked)) == 7
    assert len(sheet._pick([2, 1], 24, 0)) == 3


def test_sheet_of_several_folders_takes_those_with_the_split(tmp_path: Path) -> None:
    _shards(tmp_path / "all" / "a", "ab")
    _shards(tmp_path / "all" / "b", "cd", split="test")
    opened = sheet._open(tmp_path / "all", "test")
    assert [f.folder.name for f in opened] == ["b"]
    assert len(sheet._open(tmp_path / "all", None)) == 2
    title = sheet._title(opened, "test", [(opened[0].image(0), opened[0].sample(0))])
    assert title.split("   |   ") == ["made up", "split test", "1 of 2 images, 2 regions in all"]


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    folder = _shards(tmp_path / "a", "ab")
    (tmp_path / "none" / "in").mkdir(parents=True)
    cases = [
        (folder, "s.png", {"split": "val"}, "no split 'val'"),
        (folder, "s.jpg", {}, r"ends in \.png"),
        (folder, "s.png", {"count": 0}, "count is 0"),
        (tmp_path / "gone", "s.png", {}, "no such folder"),
        (tmp_path / "none", "s.png", {}, "folders with one"),
        (tmp_path, "s.png", {"split": "val"}, "split 'val'"),
        (folder, "a/train-000000.tar/s.png", {}, "cannot write there"),
    ]
    for source, name, options, words in cases:
        with pytest.raises(MedpclipError, match=words) as caught:
            write_sheet(source, tmp_path / name, **options)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.png"))


def test_long_texts_are_cut_to_the_cell() -> None:
    from PIL import ImageDraw

    pen = ImageDraw.Draw(Image.new("RGB", (10, 10)))
    cut = sheet._shorten(pen, "term " * 50)
    assert cut.endswith("...") and pen.textlength(cut, font=sheet.font(13)) <= 340
    assert sheet._shorten(pen, "term") == "term"
