"""Single phantoms: valid, whole, unambiguous, varied; drawn from the split's own ranges."""

import io
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from medpclip.data.phantom.artefacts import ARTEFACTS, MAX_COVERED, draw_artefact
from medpclip.data.phantom.captions import captions
from medpclip.data.phantom.fields import Frame
from medpclip.data.phantom.kinds import CATEGORIES, LOOKS, kinds_of
from medpclip.data.phantom.ranges import HELD_OUT_RANGES, TRAIN_RANGES, draw, draw_acquisition
from medpclip.data.phantom.scene import draw_sample
from medpclip.data.schema import Sample


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Sample, bytes]]:
    return [draw_sample(2, split, index, index) for split in ("train", "test") for index in range(60)]


def test_samples_are_valid_and_match_their_image(drawn: list[tuple[Sample, bytes]]) -> None:
    for sample, data in drawn:
        sample.validate(sample.key)
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (sample.width, sample.height) and not picture.getexif()
        assert min(sample.width, sample.height) >= 128 and max(sample.width, sample.height) <= 224
        assert sample.modality in LOOKS and sample.labels.get("artefact", "none") in ARTEFACTS
        assert sample.annotated_terms == [kind.category for kind in kinds_of(sample.modality)]
        assert Sample.from_json(sample.to_json(), sample.key, "here") == sample


def test_regions_are_tight_apart_and_few_of_a_kind(drawn: list[tuple[Sample, bytes]]) -> None:
    for sample, _ in drawn:
        assert 3 <= len(sample.regions) <= 8
        counts = Counter(region.category for region in sample.regions)
        assert len(counts) >= 2 and max(counts.values()) <= 2 and set(counts) <= set(sample.annotated_terms)
        total = np.zeros((sample.height, sample.width), dtype=int)
        for region in sample.regions:
            mask, (x, y, w, h) = region.mask(), region.bbox
            inside = mask[int(y) : int(y + h), int(x) : int(x + w)]
            assert inside.sum() == mask.sum() > 60
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            ((px, py),) = region.points
            assert mask[int(py), int(px)]
            assert 0.08 < max(w, h) / max(sample.width, sample.height) < 0.38
            total += mask
        assert (total > 1).sum() <= 0.01 * total.astype(bool).sum()


def test_all_categories_artefacts_and_sizes_occur(drawn: list[tuple[Sample, bytes]]) -> None:
    assert {r.category for s, _ in drawn for r in s.regions} == set(CATEGORIES)
    assert {s.labels.get("artefact", "none") for s, _ in drawn} == set(ARTEFACTS)
    assert {s.modality for s, _ in drawn} == set(LOOKS)
    assert len({len(s.regions) for s, _ in drawn}) >= 5


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    again = draw_sample(2, "train", 7, 7)
    assert again == draw_sample(2, "train", 7, 7)
    assert len({draw_sample(*task)[1] for task in ((2, "train", 7, 7), (3, "train", 7, 7), (2, "test", 7, 7))}) == 3
    assert again[0].key != draw_sample(2, "train", 8, 7)[0].key
    assert again[0].group == draw_sample(2, "train", 8, 7)[0].group


def test_captions_name_look_and_categories(drawn: list[tuple[Sample, bytes]]) -> None:
    for sample, _ in drawn:
        (caption,) = sample.captions
        assert sample.modality.lower() in caption.lower()
        for region in sample.regions:
            stem = region.category[:-1]
            assert stem.lower() in caption.lower(), (caption, region.category)
    assert len({s.captions[0].split()[0] for s, _ in drawn}) >= 4


def test_plurals() -> None:
    text = captions(
        np.random.default_rng(0),
        "CT phantom",
        ["zone opacity"] * 2 + ["air pocket", "ulcer patch", "ulcer patch"],
        "none",
    )
    assert "two zone opacities" in text[0] and "two ulcer patches" in text[0] and "an air pocket" in text[0]


def test_held_out_ranges_lie_outside_training() -> None:
    for f in fields(TRAIN_RANGES):
        if f.name == "count":
            continue
        train, held_out = getattr(TRAIN_RANGES, f.name), getattr(HELD_OUT_RANGES, f.name)
        for low, high in held_out:
            assert low < high and all(high <= a or low >= b for a, b in train), f.name


def test_draw_stays_in_its_spans() -> None:
    rng = np.random.default_rng(0)
    values = np.array([draw(rng, ((0.0, 1.0), (5.0, 8.0))) for _ in range(4000)])
    low, high = values[values <= 1.0], values[values >= 5.0]
    assert len(low) + len(high) == 4000 and high.max() <= 8.0
    assert len(low) / 4000 == pytest.approx(0.25, abs=0.04)


def test_test_images_are_noisier_than_training_images(drawn: list[tuple[Sample, bytes]]) -> None:
    train, test = (draw_acquisition(np.random.default_rng(0), r) for r in (TRAIN_RANGES, HELD_OUT_RANGES))
    assert test.noise >= TRAIN_RANGES.noise[-1][1] >= train.noise

    def roughness(split: str) -> float:
        """Mean step between neighbouring pixels inside a nearly even insert."""
        found = []
        for sample, data in drawn:
            for region in sample.regions:
                if sample.split == split and region.category == "left kidney insert":
                    with Image.open(io.BytesIO(data)) as picture:
                        grey = np.asarray(picture.convert("L"), dtype=float)
                    mask = region.mask()
                    found.append(np.abs(np.diff(grey))[mask[:, 1:] & mask[:, :-1]].mean())
        return float(np.median(found))

    assert roughness("test") > roughness("train")


def test_artefacts_leave_three_quarters_of_each_region() -> None:
    frame = Frame(160, 140)
    mask = np.zeros((140, 160), dtype=bool)
    mask[40:80, 50:90] = True
    changed = 0
    for seed in range(40):
        for name in ARTEFACTS:
            before = np.full((140, 160, 1), 0.3, dtype=np.float32)
            after, laid = draw_artefact(np.random.default_rng(seed), frame, name, before, [mask])
            different = np.abs(after - 0.3)[:, :, 0] > 0.12
            assert laid in (name, "none") and (laid != "none") == bool(different.any())
            assert different[mask].mean() <= MAX_COVERED + 0.02
            changed += bool(different[mask].any())
    assert changed > 5


def test_a_place_without_room_drops_the_artefact() -> None:
    everywhere = [np.eye(50, dtype=bool) & (np.arange(50) == i) for i in range(50)]
    canvas = np.full((50, 50, 1), 0.3, dtype=np.float32)
    blocked = [np.zeros((50, 50), dtype=bool) for _ in range(50)]
    for row, mask in enumerate(blocked):
        mask[row, row % 2 :: 7] = True
    masks = everywhere + [
        np.pad(np.ones((1, 1), dtype=bool), ((y, 49 - y), (x, 49 - x))) for y in range(50) for x in range(50)
    ]
    after, laid = draw_artefact(np.random.default_rng(0), Frame(50, 50), "shadow", canvas, masks)
    assert laid == "none" and after is canvas
