"""The order and content of batches: a function of (seed, epoch, sample) and of nothing else; what can't be used is told."""

import io
import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medpclip.data.loading import batch as batch_module
from medpclip.data.loading.config import Augmentation, DataConfig
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.loader import (
    Batch,
    RegionDataset,
    StreamingDataset,
    check_state,
    loader_state,
    make_loader,
    open_dataset,
)
from medpclip.data.loading.order import Item
from medpclip.data.loading.prompting import PromptSampling
from medpclip.data.loading.windows import WindowSpec, cut_windows
from medpclip.data.phantom import write_phantoms
from medpclip.data.pictures import PictureError
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import ShardFolder, ShardWriter
from medpclip.errors import MedpclipError

STILL = Augmentation(zoom=(1.0, 1.0), shift=0.0, brightness=0.0, contrast=0.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "phantom"
    write_phantoms(folder, images=20, seed=1, workers=1)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images of 16 pixels in 12 shards of 8."""
    folder = tmp_path_factory.mktemp("tiny") / "source"
    write_tiny(folder, 96, 8)
    return folder


def encoded(number: int, side: int = 16, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def tiny_sample(number: int, side: int = 16, **more: object) -> Sample:
    mask = np.zeros((side, side), bool)
    mask[4:9, 3:12] = True
    regions = [
        Region(0, "a", bbox=[3, 4, 9, 5], segmentation=encode_mask(mask)),
        Region(1, "b", bbox=[1, 1, 5, 6]),
        Region(2, "a", points=[[8, 8], [9.5, 3]]),
    ]
    given = {"source": "s", "split": "train", "group": f"g{number}", "modality": "m", "regions": regions} | more
    return Sample(f"{number:04d}", width=side, height=side, **given)  # type: ignore[arg-type]


def write_tiny(folder: Path, count: int, per_shard: int) -> None:
    with ShardWriter(folder, per_shard) as writer:
        for number in range(count):
            writer.add(tiny_sample(number), encoded(number), "jpg")
        writer.finish()


def dataset(shards: Path, window: WindowSpec | None = None, **options: object) -> RegionDataset | StreamingDataset:
    """Of regions alone, unless asked otherwise: prompts of whole images have a test of their own."""
    options = {"prompts": PromptSampling(whole=0.0)} | options
    return open_dataset(DataConfig([shards], **options), 64, 16, (1, 2, 3), 7, window)  # type: ignore[arg-type]


def first(data: RegionDataset | StreamingDataset, count: int, start: int = 0) -> list[Batch]:
    loader = iter(make_loader(data, 4, start))
    return [next(loader) for _ in range(count)]


def same(a: Batch, b: Batch) -> bool:
    return (
        a.keys == b.keys
        and torch.equal(a.images, b.images)
        and torch.equal(a.colours, b.colours)
        and a.image_facts == b.image_facts
        and all(torch.equal(a.prompts[name], b.prompts[name]) for name in a.prompts)
        and a.region_facts == b.region_facts
        and (a.windows is None) == (b.windows is None)
        and (a.windows is None or torch.equal(a.windows.pixels, b.windows.pixels))  # type: ignore[union-attr]
        and (a.windows is None or torch.equal(a.windows.rects, b.windows.rects))  # type: ignore[union-attr]
    )


@pytest.mark.parametrize("reader", ["indexed", "streaming"])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_random_cuts_go_on_with_the_very_next_sample(
    tiny: Path, reader: str, workers: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids before and after a cut = ids of the uncut run, in order, on every rank; over two ends of an epoch."""
    data = dataset(tiny, reader=reader, workers=workers, shuffle_buffer=10)
    # 96 samples and batches of 5 leave a rest, and cuts fall into the middle of shards of 8.
    uncut, total = {}, 96 // (5 * world) * 2 + 3
    for rank in range(world):
        loader = make_loader(data, 5, 0, rank, world)
        uncut[rank] = [next(loader).keys for _ in range(total)]
    cuts = random.Random(0).choices(range(1, total - 1), k=20)
    for number, cut in enumerate(cuts):
        for rank in range(world) if workers == 0 else [number % world]:
            loader = make_loader(data, 5, cut, rank, world)
            assert [next(loader).keys for _ in range(total - cut)] == uncut[rank][cut:]
    per_epoch = 96 // (5 * world)
    epoch = Counter(key for rank in range(world) for keys in uncut[rank][: per_epoch - 2] for key in keys)
    assert max(epoch.values()) == 1, "no sample twice in an epoch, on any rank"


@pytest.mark.parametrize("workers", [0, 2])
def test_after_a_cut_everything_is_the_same_to_the_bit(shards: Path, workers: int) -> None:
    uncut = first(dataset(shards, workers=0), 12)  # over two epoch ends
    for cut in (1, 5, 7):
        rest = first(dataset(shards, workers=workers), 12 - cut, start=cut)
        assert all(same(a, b) for a, b in zip(uncut[cut:], rest, strict=True))


def test_both_readers_make_the_same_of_a_sample(tiny: Path) -> None:
    indexed, streaming = dataset(tiny), dataset(tiny, reader="streaming", workers=0)
    assert isinstance(indexed, RegionDataset)
    number = {indexed.folders[0].rows[i].key: i for i in range(96)}
    for batch in first(streaming, 3):
        again = indexed[[Item(0, number[key], 0) for key in batch.keys]]
        assert same(batch, again)


def test_prompts_facts_and_padding_agree(shards: Path) -> None:
    for batch in first(dataset(shards, workers=0, regions_per_image=5), 5):
        assert batch.images.shape == (4, 64, 64, 3) and batch.images.dtype == torch.uint8
        given = batch.prompts["box_valid"] | batch.prompts["mask_valid"] | (batch.prompts["point_labels"] >= 0).any(-1)
        assert given.sum(1).tolist() == [len(facts) for facts in batch.region_facts]


def test_prompts_of_whole_images_take_the_last_place(shards: Path) -> None:
    seen = 0
    sampling = PromptSampling(whole=0.5)
    still = dataset(shards, workers=0, regions_per_image=3, prompts=sampling, augmentation=STILL)
    for batch in first(still, 10):
        assert batch.whole is not None
        for whole, facts, valid, boxes in zip(
            batch.whole.tolist(), batch.region_facts, batch.prompts["box_valid"], batch.prompts["boxes"], strict=True
        ):
            x1, y1, x2, y2 = boxes[-1].tolist()
            around = max(x2 - x1, y2 - y1) == 1 and (x1 + x2, y1 + y2) == pytest.approx((1, 1), abs=0.05)
            assert (around and bool(valid[-1])) if whole else not around
            assert len(facts) <= 3 - whole
            seen += whole
    assert 10 <= seen <= 30  # of 40


def test_scribbles_come_in_batches_where_they_are_configured(shards: Path) -> None:
    sampling = PromptSampling(kinds={"scribble": 1.0}, combine=0.0, max_points=2)
    for batch in first(dataset(shards, workers=1, prompts=sampling, augmentation=Augmentation(flip=0.5)), 3):
        labels = batch.prompts["point_labels"]
        assert labels.shape == (4, 8, 2 + 1 + 8)
        drawn = (labels[..., 3:] == 1).all(-1)
        assert drawn.sum(1).tolist() == [len(facts) for facts in batch.region_facts]
        assert ((batch.prompts["points"] >= 0) & (batch.prompts["points"] <= 1)).all()


def test_colours_are_drawn_but_left_to_the_device(shards: Path) -> None:
    data = dataset(shards, augmentation=replace(STILL, brightness=0.1, contrast=0.3))
    still = dataset(shards, augmentation=STILL)
    assert isinstance(data, RegionDataset) and isinstance(still, RegionDataset)
    items = [Item(0, i, 0) for i in range(8)]
    batch, plain = data[items], still[items]
    assert torch.equal(batch.images, plain.images) and plain.colours.tolist() == [[1.0, 0.0]] * 8
    gain, offset = batch.colours.T
    assert batch.colours.dtype == torch.float32 and len(set(gain.tolist())) == len(set(offset.tolist())) == 8
    assert ((gain - 1).abs() <= 0.3).all() and (offset.abs() <= 25.5).all() and offset.abs().max() > 1


def test_balanced_draws_take_each_category_before_any_twice(shards: Path) -> None:
    data = dataset(shards, regions_per_image=3, augmentation=STILL)
    assert isinstance(data, RegionDataset)
    for index in range(len(data)):
        terms = {r.category for r in data.folders[0].sample(index).regions}
        drawn = [facts["term"][0] for facts in data[[Item(0, index, 0)]].region_facts[0]]
        assert len(set(drawn)) == min(3, len(terms))


def test_what_is_drawn_for_a_sample_does_not_depend_on_its_companions(shards: Path) -> None:
    data = dataset(shards)
    assert isinstance(data, RegionDataset)
    together = data[[Item(0, i, 0) for i in range(6)]]
    alone = data[[Item(0, 4, 0)]]
    assert torch.equal(together.images[4], alone.images[0])
    assert all(torch.equal(together.prompts[name][4], alone.prompts[name][0]) for name in alone.prompts)
    other = data[[Item(1, 4, 0)]], data[[Item(0, 4, 1)]]  # another epoch; a second copy in the same one
    assert not any(torch.equal(alone.images[0], batch.images[0]) for batch in other)


def test_without_augmentation_the_image_is_the_padded_original(shards: Path) -> None:
    data = dataset(shards, augmentation=STILL)
    assert isinstance(data, RegionDataset)
    image = data.folders[0].image(0)
    expected = Window.whole(image.shape[1], image.shape[0]).image(image, 64, (1, 2, 3))
    got = data[[Item(0, 0, 0)]].images[0].numpy()
    assert np.abs(got.astype(int) - expected).max() <= 2  # torch's resize and Pillow's


@pytest.mark.parametrize("rotate", [0.0, 30.0])
def test_only_images_without_sides_are_mirrored(tmp_path: Path, rotate: float) -> None:
    """And with them all that lies on them, and what is said of places."""
    with ShardWriter(tmp_path / "s") as writer:
        for number, laterality in enumerate(["none", "radiological"]):
            sample = tiny_sample(number, side=64, extra={"laterality": laterality})
            sample.regions = [Region(0, "a", bbox=[2, 20, 12, 10], segmentation=encode_mask(_box_mask(64)))]
            writer.add(sample, encoded(0, 64, "PNG"), "png")
        writer.finish()
    kinds = {"box": 1.0, "mask": 1.0, "point": 1.0}
    prompts = {"kinds": kinds, "combine": 1.0, "box_jitter": 0.0, "mask_noise": 0.0, "negative": 0.0}
    sampling = PromptSampling(**prompts)  # type: ignore[arg-type]
    still = {"zoom": (1.0, 1.0), "shift": 0.0, "brightness": 0.0, "contrast": 0.0}
    data = dataset(tmp_path / "s", augmentation=Augmentation(flip=1.0, rotate=rotate, **still), prompts=sampling)  # type: ignore[arg-type]
    assert isinstance(data, RegionDataset)
    seen = Counter[str]()
    for epoch in range(12):
        batch = data[[Item(epoch, 0, 0), Item(epoch, 1, 0)]]
        if not rotate:
            assert torch.equal(batch.images[0], batch.images[1].flip(1))
        places = [facts[0]["place"][0] for facts in batch.region_facts]
        assert "right" in places[0] and "left" in places[1]
        for row, side in ((0, 1), (1, -1)):
            p = {name: value[row, 0] for name, value in batch.prompts.items()}
            if p["box_valid"]:
                seen["box"] += 1
                assert ((p["boxes"][0] + p["boxes"][2]) / 2 - 0.5) * side > 0
            if p["mask_valid"]:
                seen["mask"] += 1
                columns = (p["masks"].sum(0) * (torch.arange(16) + 0.5)).sum() / p["masks"].sum() / 16
                assert (columns - 0.5) * side > 0
            for point, label in zip(p["points"], p["point_labels"], strict=True):
                if label == 1:
                    seen["point"] += 1
                    assert (point[0] - 0.5) * side > 0
    assert min(seen[kind] for kind in kinds) > 0


def _box_mask(side: int) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[20:30, 2:14] = True
    return mask


def break_sample(folder: Path, row: int, what: str) -> None:
    """Damage a sample's bytes in place, keeping every size."""
    shards = ShardFolder(folder)
    at = shards.rows[row]
    with open(folder / at.shard, "r+b") as stream:
        if what == "picture":
            stream.seek(at.image_offset)
            stream.write(b"\0" * at.image_size)
        else:
            stream.seek(at.json_offset)
            facts = stream.read(at.json_size).decode()
            changed = {
                "json": facts[:-1] + ",",
                "size": facts.replace('"width":16', '"width":17'),
                "schema": facts.replace('"width":16', '"width":-1'),
                "box": facts.replace('"bbox":[3,4,9,5]', '"bbox":[3,4,9,0]'),
                "term": facts.replace('"category":"b"', '"category":[ ]'),
                "labels": facts.replace('"labels":{}', '"labels":[]'),
                "runs": facts.replace(json.loads(facts)["regions"][0]["segmentation"]["counts"][:3], "~~~"),
            }[what]
            assert len(changed) == len(facts) and changed != facts, what
            stream.seek(at.json_offset)
            stream.write(changed.encode())


@pytest.mark.parametrize("reader", ["indexed", "streaming"])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("picture", "image can't be decoded"),
        ("json", "JSON can't be parsed"),
        ("size", "image is of another size than its JSON says"),
        ("schema", "JSON breaks the schema"),
        ("box", "JSON breaks the schema"),
        ("term", "JSON breaks the schema"),
        ("labels", "JSON breaks the schema"),
        ("runs", "JSON breaks the schema"),
    ],
)
def test_a_sample_that_can_not_be_used_is_counted_and_replaced(
    tmp_path: Path, reader: str, what: str, reason: str
) -> None:
    write_tiny(tmp_path / "s", 16, 4)
    break_sample(tmp_path / "s", 5, what)
    data = dataset(
        tmp_path / "s", reader=reader, workers=0, regions_per_image=8, max_unreadable=1.0, augmentation=STILL
    )
    loader = make_loader(data, 4)
    for _ in range(8):  # two epochs
        batch = next(loader)
        assert len(batch.keys) == 4 and "0005" not in batch.keys
        if batch.faults:
            assert "0005" in batch.faults[0] and "\n" not in batch.faults[0]
            assert len(set(batch.keys)) == 3, "its place is taken by another of the batch"
    assert loader.samples == 32
    assert dict(loader.skipped) == {reason: 2}


def test_too_many_unusable_samples_stop_the_run(tmp_path: Path) -> None:
    write_tiny(tmp_path / "s", 16, 4)
    for row in (3, 5, 8):
        break_sample(tmp_path / "s", row, "picture")
    loader = make_loader(dataset(tmp_path / "s", workers=1, max_unreadable=0.002), 4)
    with pytest.raises(
        MedpclipError, match=r"000.: .*\(3 of \d+ samples can't be used: image can't be decoded: 3; .*data check"
    ):
        for _ in range(4):
            next(loader)
    loader = make_loader(dataset(tmp_path / "s", workers=0, max_unreadable=0.0), 16)
    with pytest.raises(MedpclipError, match=r"000[358]: unreadable image .*3 of 16 samples"):
        next(loader)


def test_a_batch_without_a_usable_sample_stops_the_run(tmp_path: Path) -> None:
    write_tiny(tmp_path / "s", 2, 4)
    for row in range(2):
        break_sample(tmp_path / "s", row, "picture")
    loader = make_loader(dataset(tmp_path / "s", workers=1, max_unreadable=1.0), 2)
    with pytest.raises(MedpclipError, match=r"000.: .*\(none of a batch of 2 samples can be used\)"):
        next(loader)


def test_a_shard_that_vanishes_is_no_traceback(tmp_path: Path) -> None:
    write_tiny(tmp_path / "s", 8, 4)
    data = dataset(tmp_path / "s", workers=0, max_unreadable=1.0)
    (tmp_path / "s" / "train-000001.tar").unlink()
    batch = next(make_loader(data, 8))
    assert batch.skipped == {"shard can't be read": 4} and set(batch.keys) == {"0000", "0001", "0002", "0003"}


WINDOW = WindowSpec(24, 1.5)


@pytest.mark.parametrize("kept", [0, 2**23])
@pytest.mark.parametrize("workers", [0, 2])
def test_windows_are_the_same_whoever_reads_and_change_nothing_else(
    shards: Path, workers: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a picture has to be decoded again, and after a cut."""
    turned = Augmentation(rotate=15.0, flip=0.5)
    expected = first(dataset(shards, WINDOW, workers=0, augmentation=turned), 6)
    plain = first(dataset(shards, workers=0, augmentation=turned), 6)
    monkeypatch.setattr(batch_module, "_KEPT_BYTES", kept)
    batches = first(dataset(shards, WINDOW, workers=workers, augmentation=turned), 4, start=2)
    assert all(same(a, b) for a, b in zip(batches, expected[2:], strict=True))
    for batch, without in zip(expected, plain, strict=True):
        assert same(replace(batch, windows=None), without)
        assert batch.windows is not None and batch.windows.pixels.shape == (4, 8, 24, 24, 3)
        for rects, facts in zip(batch.windows.rects, batch.region_facts, strict=True):
            assert (rects != 0).any(-1).tolist() == [r < len(facts) for r in range(8)]


def test_windows_are_cut_from_the_picture_at_its_own_resolution(shards: Path) -> None:
    data = dataset(shards, WINDOW, augmentation=STILL, regions_per_image=3)
    assert isinstance(data, RegionDataset)
    batch = data[[Item(0, index, 0) for index in range(6)]]
    pictures = [data.folders[0].image(index) for index in range(6)]
    places = [Window.whole(picture.shape[1], picture.shape[0]) for picture in pictures]
    prompts = {name: value.numpy() for name, value in batch.prompts.items()}
    expected = cut_windows(pictures, places, prompts, WINDOW, (1, 2, 3))
    there = torch.tensor([[r < len(facts) for r in range(3)] for facts in batch.region_facts])
    assert batch.windows is not None and there.any()
    assert torch.equal(batch.windows.rects[there], expected.rects[there])
    off = (batch.windows.pixels[there].int() - expected.pixels[there].int()).abs()
    assert off.max() <= 3  # the decoders differ
    assert (batch.windows.pixels[~there] == torch.tensor([1, 2, 3])).all()


def test_a_picture_that_fails_at_its_own_resolution_is_replaced(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(shards, WINDOW, augmentation=STILL)
    assert isinstance(data, RegionDataset)
    bad = data.folders[0].read(2)[1]
    real = batch_module.decode

    def decode(image: bytes, extension: str, width: int, height: int, factor: int) -> tuple[np.ndarray, int]:
        if image == bad and factor == 1:
            raise PictureError("image can't be decoded", "planted")
        return real(image, extension, width, height, factor)

    monkeypatch.setattr(batch_module, "_KEPT_BYTES", 0)
    items = [Item(0, index, 0) for index in range(4)]
    whole = data[items]
    monkeypatch.setattr(batch_module, "decode", decode)
    batch = data[items]
    assert batch.skipped == {"image can't be decoded": 1} and "planted" in batch.faults[0]
    assert batch.keys == [whole.keys[i] for i in (0, 1, 3, 3)]
    assert batch.windows is not None and whole.windows is not None
    for place in (0, 1, 3):
        assert torch.equal(batch.windows.pixels[place], whole.windows.pixels[place])


def test_no_shards_and_too_few_samples_are_errors_before_training(tiny: Path) -> None:
    with pytest.raises(MedpclipError, match=r"data\.shards"):
        RegionDataset(DataConfig([]), 64, 16, (0, 0, 0), 0)
    with pytest.raises(MedpclipError, match="'batch_size' is 100, but an epoch has only 96"):
        make_loader(dataset(tiny), 50, world=2)


def test_a_stream_is_only_continued_by_as_many_workers_and_ranks(tiny: Path) -> None:
    streaming = DataConfig([tiny], reader="streaming", workers=2)
    state = json.loads(json.dumps(loader_state(streaming, 7, world=2)))
    check_state(state, streaming, world=2)
    with pytest.raises(MedpclipError, match=r"data\.workers was 2, is now 3"):
        check_state(state, DataConfig([tiny], reader="streaming", workers=3), world=2)
    with pytest.raises(MedpclipError, match="number of ranks was 2, is now 1"):
        check_state(state, streaming)
    with pytest.raises(MedpclipError, match=r"data\.reader was streaming"):
        check_state(state, DataConfig([tiny]))
    one = loader_state(DataConfig([tiny], reader="streaming", workers=0), 7)
    check_state(one, DataConfig([tiny], reader="streaming", workers=1))  # both read one stream
    check_state(loader_state(DataConfig([tiny], workers=1), 7), DataConfig([tiny], workers=5))


def test_weights_name_folders(tiny: Path) -> None:
    with pytest.raises(MedpclipError, match=r"data\.weights\.sorce.*there is source"):
        dataset(tiny, weights={"sorce": 2.0})
    data = dataset(tiny, weights={"source": 0.5})
    assert isinstance(data, RegionDataset) and len(data.plan) == 48


def test_a_bug_in_the_main_process_leaves_no_worker_waiting(shards: Path) -> None:
    """Workers take no notice of signals meant for the whole job, but of the end of the main process."""
    program = f"""
from pathlib import Path
from medpclip.data.loading.loader import DataConfig, RegionDataset, make_loader
data = RegionDataset(DataConfig([Path({str(shards)!r})], workers=2), 64, 16, (1, 2, 3), seed=7)
batches = make_loader(data, 4)
next(batches)
raise RuntimeError("a bug")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.endswith("RuntimeError: a bug\n")
