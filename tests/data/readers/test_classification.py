"""Images with labels alone: rows meet images, folders stand for themselves, and every fault is told."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpclip.config import from_mapping
from medpclip.data.readers import Entry, Fault
from medpclip.data.readers.classification import ClassificationOptions, ClassificationReader
from medpclip.errors import MedpclipError

DATA = os.environ.get("MEDPCLIP_DATA", "")


def reader(
    folder: Path, content: str | bytes = "", files: tuple[str, ...] = (), **options: Any
) -> ClassificationReader:
    (folder / "images").mkdir(exist_ok=True)
    for name in files:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # scanning opens no image
    if content:
        (folder / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        options = {"table": "labels.csv"} | options
    return ClassificationReader(folder, from_mapping(ClassificationOptions, options, "test"))


def entries(of: ClassificationReader) -> dict[str, Any]:
    return {item.image: item.metadata for item in of.scan() if isinstance(item, Entry)}


def told(faults: Any) -> list[tuple[str, str, str, int, int]]:
    return [(f.file, f.key, f.reason, f.images, f.regions) for f in faults if isinstance(f, Fault)]


def test_without_a_table_every_image_counts(tmp_path: Path) -> None:
    of = reader(tmp_path, files=("nevus/1.JPG", "melanoma/1.jpeg", "readme.md", "scan.xyz", ".hidden.png"))
    assert entries(of) == {"images/melanoma/1.jpeg": {}, "images/nevus/1.JPG": {}}
    assert told(of.scan()) == [("images/scan.xyz", "", "file is of a kind that no image reader reads", 0, 0)]
    assert all(not of.read(item).regions for item in of.scan() if isinstance(item, Entry))


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("image,dx\na.jpg,nevus\nb.png,mel\n", {}),
        ("image,dx\na,nevus\nb,mel\n", {"match": "stem"}),
        ("image\tdx\r\nx/a.jpg\tnevus\r\ny\\b.png\tmel\r\n", {"match": "name"}),
        ('\ufeff"image";"dx"\n"/home/me/a.JPEG";nevus\n"b";mel', {}),
        ("a,nevus\nb,mel\n", {"header": ["image", "dx"]}),
    ],
)
def test_rows_become_metadata(tmp_path: Path, content: str, options: dict[str, Any]) -> None:
    found = entries(reader(tmp_path, content, ("a.jpg", "b.png"), **options))
    assert {image: row["dx"] for image, row in found.items()} == {"images/a.jpg": "nevus", "images/b.png": "mel"}


def test_every_fault_with_its_reason(tmp_path: Path) -> None:
    rows = ["image,dx,age", "good,nevus,50", "twice,mel,1", "twice,mel,2", "same,mel,1", "same,mel,1", ",mel,3"]
    rows += ["gone,mel,4", "short,mel", "long,mel,5,6", "lost,mel", "clash,mel,1"]
    files = ("good.png", "twice.png", "same.png", "short.png", "long.png", "alone.png", "x/clash.png", "y/clash.png")
    of = reader(tmp_path, "\n".join(rows), files)
    assert list(entries(of)) == ["images/good.png", "images/same.png"]
    assert told(of.scan()) == [
        ("images/x/clash.png", "", "several files share one name", 1, 0),
        ("images/y/clash.png", "", "several files share one name", 1, 0),
        ("labels.csv", "row 7", "row names no image", 0, 0),
        ("labels.csv", "row 11", "row has another number of cells than the header", 0, 0),
        ("labels.csv", "row 8", "image file is missing", 1, 0),
        ("labels.csv", "row 12", "several files share one name", 0, 0),
        ("images/alone.png", "", "image without an annotation", 1, 0),
        ("labels.csv", "row 10", "row has another number of cells than the header", 1, 0),
        ("labels.csv", "row 9", "row has another number of cells than the header", 1, 0),
        ("images/twice.png", "", "image is listed several times", 1, 0),
    ]
    # Each image file is in one entry or one fault, and the one that is missing is counted too.
    assert len(entries(of)) + sum(f.images for f in of.scan() if isinstance(f, Fault)) == len(files) + 1


def test_parquet(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    (tmp_path / "images").mkdir()
    pandas.DataFrame({"image": [7, 8], "dx": ["mel", None]}).to_parquet(tmp_path / "labels.parquet")
    found = entries(reader(tmp_path, files=("7.png", "8.png"), table="labels.parquet"))
    assert found == {"images/7.png": {"image": 7, "dx": "mel"}, "images/8.png": {"image": 8, "dx": None}}


@pytest.mark.parametrize(
    ("content", "options", "match"),
    [
        ("image_id,dx\na,b\n", {}, "no column 'image' .did you mean 'image_id'.*options.image_column"),
        ("image,dx\n\xe4,b\n".encode("latin-1"), {}, "options.encoding"),
        ('image,dx\n"a,b\n', {}, "never closed"),
        ("image,dx\n", {"images": "pictures"}, "options.images"),
        ("image,dx\n", {"match": "stm"}, "match"),
        ("image,dx\n", {"tabel": "x.csv"}, "did you mean 'table'"),
    ],
)
def test_what_ends_the_run(tmp_path: Path, content: str | bytes, options: dict[str, Any], match: str) -> None:
    with pytest.raises(MedpclipError, match=match):
        reader(tmp_path, content, ("a.png",), **options).scan()


names = st.text("abc123", min_size=1, max_size=3)


@given(st.sets(names, min_size=1, max_size=6), st.sets(names, max_size=6))
def test_found_is_kept_or_lost(tmp_path_factory: pytest.TempPathFactory, there: set[str], listed: set[str]) -> None:
    folder = tmp_path_factory.mktemp("labels")
    table = "image,dx\n" + "".join(f"{name},x\n" for name in sorted(listed))
    of = reader(folder, table, tuple(f"{name}.png" for name in there))
    assert set(entries(of)) == {f"images/{name}.png" for name in there & listed}
    reasons = Counter(fault.reason for fault in of.scan() if isinstance(fault, Fault))
    assert reasons["image file is missing"] == len(listed - there)
    assert reasons["image without an annotation"] == len(there - listed)
    assert sum(reasons.values()) == len(listed ^ there)


@pytest.mark.skipif(not Path(DATA, "isic2017_derm").is_dir(), reason="MEDPCLIP_DATA doesn't name the real data")
def test_real_labels() -> None:
    options = ClassificationOptions(table="labels.csv", image_column="image_id", match="stem")
    of = ClassificationReader(Path(DATA, "isic2017_derm"), options)
    assert not told(of.scan())
    assert Counter(row["melanoma"] for row in entries(of).values()) == {"0.0": 190, "1.0": 110}
