"""The order and content of batches: a function of (seed, epoch, sample) and of nothing else."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medpclip.data.loading.loader import Augmentation, Batch, BatchOrder, DataConfig, RegionDataset, make_loader
from medpclip.data.phantom import write_phantoms
from medpclip.errors import MedpclipError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "phantom"
    write_phantoms(folder, images=20, seed=1, workers=1)
    return folder


def dataset(shards: Path, **options: object) -> RegionDataset:
    return RegionDataset(DataConfig([shards], **options), 64, 16, (1, 2, 3), seed=7)  # type: ignore[arg-type]


def first(data: RegionDataset, count: int, start: int = 0) -> list[Batch]:
    loader = iter(make_loader(data, 4, start))
    return [next(loader) for _ in range(count)]


def same(a: Batch, b: Batch) -> bool:
    return (
        a.keys == b.keys
        and torch.equal(a.images, b.images)
        and all(torch.equal(a.prompts[name], b.prompts[name]) for name in a.prompts)
        and a.region_facts == b.region_facts
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_cut_continues_with_the_very_next_batch(shards: Path, workers: int) -> None:
    uncut = first(dataset(shards, workers=0), 12)  # over two epoch ends
    for cut in (1, 5, 7):
        rest = first(dataset(shards, workers=workers), 12 - cut, start=cut)
        assert all(same(a, b) for a, b in zip(uncut[cut:], rest, strict=True))


def test_an_epoch_has_each_sample_once_and_the_next_is_ordered_otherwise() -> None:
    order = iter(BatchOrder(20, 4, seed=0))
    epochs = [[index for _ in range(5) for _, index in next(order)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [i for _, i in next(iter(BatchOrder(20, 4, seed=1)))] != epochs[0][:4]


def test_too_few_samples_for_a_batch_is_an_error_before_training() -> None:
    with pytest.raises(MedpclipError, match="batch_size"):
        BatchOrder(3, 4, seed=0)


def test_prompts_facts_and_padding_agree(shards: Path) -> None:
    for batch in first(dataset(shards, workers=0, regions_per_image=5), 5):
        assert batch.images.shape == (4, 64, 64, 3) and batch.images.dtype == torch.uint8
        given = batch.prompts["box_valid"] | batch.prompts["mask_valid"] | (batch.prompts["point_labels"] >= 0).any(-1)
        assert given.sum(1).tolist() == [len(facts) for facts in batch.region_facts]


def test_balanced_draws_take_each_category_before_any_twice(shards: Path) -> None:
    data = dataset(shards, regions_per_image=3)
    for index in range(len(data)):
        sample = data.folders[0].sample(index)
        regions = data._draw_regions(sample.regions, np.random.default_rng(0))
        categories = [r.category for r in regions]
        assert len(set(categories)) == min(3, len({r.category for r in sample.regions}))


def test_without_augmentation_the_image_is_the_padded_original(shards: Path) -> None:
    still = Augmentation(zoom=(1.0, 1.0), shift=0.0, brightness=0.0, contrast=0.0)
    data = dataset(shards, augmentation=still)
    from medpclip.data.loading.geometry import Window

    image = data.folders[0].image(0)
    expected = Window.whole(image.shape[1], image.shape[0]).image(image, 64, (1, 2, 3))
    assert (data[(0, 0)]["image"] == expected).all()


def test_no_shards_is_an_error() -> None:
    with pytest.raises(MedpclipError, match=r"data\.shards"):
        RegionDataset(DataConfig([]), 64, 16, (0, 0, 0), 0)


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
