"""Streamed shards: from disk and pipes, shared out evenly or not at all."""

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medpclip.data.loading import stream
from medpclip.data.loading.config import DataConfig
from medpclip.data.loading.loader import make_loader
from medpclip.data.loading.stream import StreamingDataset
from medpclip.data.schema import Region, Sample
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError


def write(folder: Path, count: int, per_shard: int) -> Path:
    picture = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(picture, "PNG")
    with ShardWriter(folder, per_shard) as writer:
        for number in range(count):
            regions = [Region(0, "a", bbox=[1, 2, 3, 4])]
            sample = Sample(f"{number:04d}", "s", "train", f"g{number}", "m", 16, 16, regions=regions)
            writer.add(sample, picture.getvalue(), "png")
        writer.finish()
    return folder


def dataset(folder: Path, **options: object) -> StreamingDataset:
    options = {"reader": "streaming", "workers": 0, "shuffle_buffer": 6} | options
    return StreamingDataset(DataConfig([folder], **options), 32, 8, (1, 2, 3), seed=5)  # type: ignore[arg-type]


def keys(data: StreamingDataset, batch: int, batches: int, start: int = 0, rank: int = 0, world: int = 1) -> list[str]:
    loader = make_loader(data, batch, start, rank, world)
    return [key for _ in range(batches) for key in next(loader).keys]


def test_an_epoch_has_each_sample_once_over_all_workers_and_ranks(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", 48, 4)
    data = dataset(folder, workers=2)
    seen = [keys(data, 3, 8, rank=rank, world=2) for rank in range(2)]
    assert sorted(seen[0] + seen[1]) == [f"{i:04d}" for i in range(48)]
    again = keys(data, 3, 16, rank=0, world=2)
    assert again[:24] == seen[0] and Counter(again[24:]) != Counter(again[:24]), "shards are dealt out anew"


def test_a_resumed_stream_reads_only_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(write(tmp_path / "s", 48, 4))
    opened: list[str] = []
    real = stream._members

    def noting(url: str):  # type: ignore[no-untyped-def]
        opened.append(url)
        return real(url)

    monkeypatch.setattr(stream, "_members", noting)
    whole = keys(data, 4, 12)
    assert len(opened) == 12
    opened.clear()
    assert keys(data, 4, 2, start=10) == whole[40:]
    assert len(opened) <= 5  # a buffer of 6 spans few shards of 4


def test_weights_draw_whole_shards(tmp_path: Path) -> None:
    data = dataset(write(tmp_path / "s", 24, 4), weights={"s": 2.0})
    assert set(Counter(keys(data, 4, 12)).values()) == {2}


@pytest.mark.parametrize(
    ("count", "options", "world", "batch", "says"),
    [
        (24, {"workers": 4}, 2, 1, "an epoch has 6 shards for 2 ranks x 4 workers; use fewer"),
        (24, {"workers": 4}, 1, 1, "6 shards can't be shared out evenly to 1 rank x 4 workers; set data.trim"),
        (22, {"workers": 2}, 1, 1, "shards of 2 to 4 samples can't be shared out evenly"),
        (24, {"workers": 2}, 1, 13, "'batch_size' is 13, more than the samples"),
    ],
)
def test_too_few_or_uneven_shards_are_an_error_before_training(
    tmp_path: Path, count: int, options: dict[str, int], world: int, batch: int, says: str
) -> None:
    data = dataset(write(tmp_path / "s", count, 4), **options)
    with pytest.raises(MedpclipError, match=says):
        make_loader(data, batch, world=world)


def test_trimmed_ranks_have_the_same_number_of_batches_and_repeat_nothing(tmp_path: Path) -> None:
    data = dataset(write(tmp_path / "s", 22, 4), workers=2, trim=True)
    make_loader(data, 2, world=2)
    per_epoch = [2 * data.plan_of(epoch) for epoch in range(6)]  # of a rank
    assert min(per_epoch) >= 2
    seen = [keys(data, 2, sum(per_epoch), rank=rank, world=2) for rank in range(2)]
    begin, total = 0, Counter[str]()
    for batches in per_epoch:
        part = [key for rank in seen for key in rank[2 * begin : 2 * (begin + batches)]]
        assert max(Counter(part).values()) == 1
        total.update(part)
        begin += batches
    assert len(total) == 22, "what is left out differs from epoch to epoch"


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", 16, 4)
    from_disk = keys(dataset(folder), 4, 4)
    (tmp_path / "elsewhere").mkdir()
    for shard in folder.glob("*.tar"):
        shard.rename(tmp_path / "elsewhere" / shard.name)
    assert keys(dataset(folder, urls={"s": f"pipe:cat {tmp_path}/elsewhere/{{}}"}), 4, 4) == from_disk


@pytest.mark.filterwarnings("ignore")  # webdataset leaves a failed pipe to the garbage collector
def test_a_pipe_that_fails_is_counted_or_stops_the_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", 16, 4)
    half = tmp_path / "half.tar"
    half.write_bytes((folder / "train-000000.tar").read_bytes()[:3000])
    command = f'pipe:{sys.executable} -c \'import sys; sys.stdout.buffer.write(open("{half}", "rb").read())\' {{}}'
    loader = make_loader(dataset(folder, urls={"s": command}, max_unreadable=1.0, shuffle_buffer=16), 16)
    batch = next(loader)
    assert (
        batch.skipped["shard can't be read"] == 16 - 4 * len(set(batch.keys))
        and "copy the shard again" in batch.faults[0]
    )
    with pytest.raises(MedpclipError, match="samples can't be used|none of a batch"):
        for _ in range(4):
            next(make_loader(dataset(folder, urls={"s": "pipe:false {}"}), 4))


def test_a_shard_with_more_samples_than_its_manifest_says(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", 8, 4)
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"samples": 4', '"samples": 3'))
    with pytest.raises(MedpclipError, match=r"train-00000\d\.tar: more than the 3 samples"):
        keys(dataset(folder, workers=1), 3, 4)


def test_urls_name_where_shards_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \{\} where"):
        DataConfig([tmp_path], urls={"s": "https://store/corpus"})
    with pytest.raises(MedpclipError, match=r"'data\.urls\.t' names no folder"):
        dataset(write(tmp_path / "s", 4, 4), urls={"t": "https://store/{}"})
    with pytest.raises(MedpclipError, match="no split 'val'"):
        dataset(tmp_path / "s", split="val")
