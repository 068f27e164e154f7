"""Captions: every form of table, images in Parquet itself, several rows per image, and every fault told."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpclip.config import from_mapping
from medpclip.data.pictures import read_picture
from medpclip.data.readers import Entry, Fault, UnusableError
from medpclip.data.readers import tables as tables_module
from medpclip.data.readers.captions import CaptionsOptions, CaptionsReader
from medpclip.errors import MedpclipError

DATA = os.environ.get("MEDPCLIP_DATA", "")
ROWS = [{"image": "a.png", "caption": "A small, round lesion."}, {"image": "b.png", "caption": "No finding."}]


def reader(folder: Path, table: str, content: str | bytes | None = None, **options: Any) -> CaptionsReader:
    files = options.pop("files", ("a.png", "b.png"))
    for name in files:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # scanning opens no image
    if content is not None:
        (folder / table).write_bytes(content if isinstance(content, bytes) else content.encode())
    return CaptionsReader(folder, from_mapping(CaptionsOptions, {"table": table} | options, "test"))


def entries(of: CaptionsReader) -> list[Entry]:
    return [item for item in of.scan() if isinstance(item, Entry)]


def texts(of: CaptionsReader) -> dict[str, Any]:
    return {entry.image: entry.metadata["caption"] for entry in entries(of)}


def told(faults: Any) -> list[tuple[str, str, str, int, int]]:
    return [(f.file, f.key, f.reason, f.images, f.regions) for f in faults if isinstance(f, Fault)]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("c.jsonl", lines(ROWS)),
        ("c.JSONL", "\ufeff" + lines(ROWS).replace("\n", "\r\n\r\n")),
        ("c.json", json.dumps(ROWS)),
        ("c.json", json.dumps({row["image"]: row["caption"] for row in ROWS})),
        ("c.json", json.dumps({row["image"]: {"caption": row["caption"]} for row in ROWS})),
        ("c.csv", 'image,caption\na.png,"A small, round lesion."\nb.png,No finding.\n'),
        ("c.tsv", "image\tcaption\na\tA small, round lesion.\nb\tNo finding.\n"),
        ("c.txt", "image|caption\nx/a.jpg|A small, round lesion.\nx/b.jpg|No finding.\n"),
    ],
)
def test_forms_of_tables(tmp_path: Path, table: str, content: str) -> None:
    of = reader(tmp_path, table, content)
    assert texts(of) == {"images/a.png": "A small, round lesion.", "images/b.png": "No finding."}
    assert not told(of.scan())
    assert of.read(entries(of)[0]).regions == []


def test_nested_keys_and_the_whole_row(tmp_path: Path) -> None:
    row = {"meta": {"file": "a.png"}, "text": {"caption": ["one", "two"]}, "patient": 7}
    options = {"image_column": "meta.file", "caption_column": "text.caption"}
    (entry,) = entries(reader(tmp_path, "c.jsonl", lines([row]), files=("a.png",), **options))
    assert entry.metadata == row


def test_several_rows_of_one_image(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "caption": "one", "patient": "p", "page": 1},
        {"image": "a.png", "caption": ["two", "one"], "patient": "p", "page": 2},
        ROWS[1],
        ROWS[1],
    ]
    strict = reader(tmp_path, "c.jsonl", lines(rows))
    assert texts(strict) == {"images/b.png": "No finding."}  # the same row again adds nothing
    assert told(strict.scan()) == [("images/a.png", "", "image is listed several times", 1, 0)]
    joined = entries(reader(tmp_path, "c.jsonl", lines(rows), several="join"))
    assert [e.metadata for e in joined] == [{"image": "a.png", "caption": ["one", "two"], "patient": "p"}, ROWS[1]]


def test_every_fault_with_its_reason(tmp_path: Path) -> None:
    rows = lines(
        [
            {"image": "a.png", "caption": "fine"},
            {"image": "b.png", "caption": "  "},
            {"image": "c.png", "caption": "fine"},
            {"image": "c.png"},
            ["d.png", "a list"],
            {"caption": "whose?"},
            {"image": "gone.png", "caption": "x"},
            {"image": "f.png", "caption": []},
        ]
    )
    of = reader(tmp_path, "c.jsonl", rows + '{"image": "g.png", \n', files=[f"{x}.png" for x in "abcdfg"])
    assert list(texts(of)) == ["images/a.png", "images/c.png"]
    assert told(of.scan()) == [
        ("c.jsonl", "row 5", "row is not a JSON object", 0, 0),
        ("c.jsonl", "row 6", "row names no image", 0, 0),
        ("c.jsonl", "row 9", "row is not a JSON object", 0, 0),
        ("c.jsonl", "row 7", "image file is missing", 1, 0),
        ("c.jsonl", "row 2", "caption is empty", 1, 0),
        ("c.jsonl", "row 4", "caption is empty", 0, 0),
        ("images/d.png", "", "image without an annotation", 1, 0),
        ("c.jsonl", "row 8", "caption is empty", 1, 0),
        ("images/g.png", "", "image without an annotation", 1, 0),
    ]


def test_moved_cells(tmp_path: Path) -> None:
    of = reader(tmp_path, "c.csv", "image,caption\na.png,A small, round lesion.\nb.png,No finding.\n")
    assert told(of.scan()) == [("c.csv", "row 2", "row has another number of cells than the header", 1, 0)]


@pytest.mark.parametrize(
    ("table", "content", "match"),
    [
        (
            "c.jsonl",
            lines([{"img": "a.png", "caption": "x"}]),
            "no object has the key 'image' .they have: img, caption",
        ),
        ("c.json", "[1", "broken JSON"),
        ("c.json", json.dumps({"data": ROWS}), "an object with data"),
        ("c.json", "5", "expected a list"),
        ("c.csv", "image,text\na.png,x\n", "no column 'caption'.*options.caption_column"),
        ("c.parquet", b"PAR1PAR1", "Parquet"),
        ("", None, "'table' is missing"),
        ("none.jsonl", None, "options.table"),
    ],
)
def test_what_ends_the_run(tmp_path: Path, table: str, content: Any, match: str) -> None:
    with pytest.raises(MedpclipError, match=match) as caught:
        reader(tmp_path, table, content).scan()
    assert "\n" not in str(caught.value)


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Path]:
    """Parquet files as the library "datasets" writes them: seven rows in row groups of two."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    images = [{"bytes": png(10 * i), "path": f"{i}.png"} for i in range(7)]
    images[3]["bytes"], images[4]["bytes"] = None, b"no image"
    captions = [f"caption {i}" if i != 5 else " " for i in range(7)]
    table = pyarrow.table({"image": images, "caption": captions, "patient": list(range(7))})
    (tmp_path / "data").mkdir()
    parquet.write_table(table, tmp_path / "data/train-0.parquet", row_group_size=2)
    yield tmp_path


def test_images_inside_parquet(embedded: Path) -> None:
    of = reader(embedded, "data/*.parquet", files=())
    found = entries(of)
    assert told(of.scan()) == [("data/train-0.parquet", "row 6", "caption is empty", 1, 0)]
    assert [entry.image for entry in found] == [f"data/train-0.parquet#{i}" for i in (1, 2, 3, 4, 5, 7)]
    assert found[2].metadata == {"image": {"path": "2.png"}, "caption": "caption 2", "patient": 2}
    (embedded / "2.png").write_bytes(png(20))
    expected = read_picture(embedded / "2.png")
    for entry in reversed(found):
        number = int(entry.image.rpartition("#")[2]) - 1
        if number in (3, 4):
            with pytest.raises(UnusableError) as caught:
                of.read(entry)
            reason = "image file is missing" if number == 3 else "image can't be decoded"
            assert told([caught.value.fault]) == [(entry.image, "", reason, 1, 0)]
            continue
        picture = of.read(entry).picture
        assert picture is not None and picture.pixels.shape == (6, 8) and (picture.pixels == 10 * number).all()
        if number == 2:
            assert (picture.data, picture.digest) == (expected.data, expected.digest)


def test_scanning_leaves_the_bytes_unread_and_groups_are_read_once(
    embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import medpclip.data.readers.captions as captions_module

    groups: list[int] = []

    def counted(path: Path, group: int, column: str) -> Any:
        groups.append(group)
        return tables_module.read_row_group(path, group, column)

    monkeypatch.setattr(captions_module, "read_row_group", counted)
    of = reader(embedded, "data/train-0.parquet", files=())
    found = entries(of)
    assert groups == []
    assert all(b"PNG" not in repr(entry).encode() for entry in found)
    for entry in found[:3]:
        of.read(entry)
    assert groups == [0, 1]


def test_parquet_that_names_files(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([*ROWS, {"image": "c.png", "caption": None}])
    frame["mask"] = b"binary columns stay unread"
    frame.to_parquet(tmp_path / "c.parquet")
    of = reader(tmp_path, "c.parquet", files=("a.png", "b.png", "c.png"))
    assert [entry.metadata for entry in entries(of)] == ROWS
    assert told(of.scan()) == [("c.parquet", "row 3", "caption is empty", 1, 0)]


@pytest.mark.skipif(not Path(DATA, "cxr_structures").is_dir(), reason="MEDPCLIP_DATA doesn't name the real data")
def test_real_notes() -> None:
    options = {"image_column": "filename", "caption_column": "clinical_notes"}
    of = CaptionsReader(
        Path(DATA, "cxr_structures"), from_mapping(CaptionsOptions, {"table": "metadata.csv"} | options, "test")
    )
    assert not told(of.scan())
    assert len(entries(of)) == 29
    assert all(entry.metadata["clinical_notes"] for entry in entries(of))
