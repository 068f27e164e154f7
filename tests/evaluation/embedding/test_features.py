"""Embeddings don't depend on how they are computed, and are computed once."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import run_ranks

import medpclip.models
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.prompting import RegionPrompt
from medpclip.data.schema import Region, Sample
from medpclip.data.shards import ShardWriter
from medpclip.distributed import World
from medpclip.errors import MedpclipError
from medpclip.evaluation.corpus import Item, read_corpus
from medpclip.evaluation.embedding import features as features_module
from medpclip.evaluation.embedding.features import Features, Request
from medpclip.evaluation.embedding.store import Store
from medpclip.evaluation.results.result import ModelFacts
from medpclip.evaluation.subject import Subject
from medpclip.evaluation.task import ImageTask, Task
from medpclip.models.fusions import TRAINING_FREE, FusionConfig
from medpclip.models.load import build_model
from medpclip.models.preprocess import Preprocess
from medpclip.models.prompts import Prompts
from medpclip.models.region_clip import ModelConfig, RegionCLIP

assert medpclip.models
OURS = ("prompted", "prompted_crop")
"""Comparators of the model itself."""


def write_shards(folder: Path, images: int = 9) -> Path:
    rng = np.random.default_rng(3)
    with ShardWriter(folder, samples_per_shard=4) as writer:
        for i in range(images):
            width, height = (70, 50) if i % 2 else (40, 90)
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(stream, "PNG")
            regions = [Region(0, "a", [5.0, 6.0, 20.0, 15.0])]
            sample = Sample(f"k{i}", "s", "test", f"g{i}", "CT", width, height, regions=regions)
            writer.add(sample, stream.getvalue(), "png")
        writer.finish()
    return folder


def build(trunk: Path, seed: int = 1, **fusion: object) -> RegionCLIP:
    torch.manual_seed(seed)
    model = build_model(ModelConfig(trunk=str(trunk), fusion=FusionConfig(**fusion)))  # type: ignore[arg-type]
    for parameter in model.fusion.parameters():  # away from the start, where prompts change nothing
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def subject_of(model: RegionCLIP, sha: str = "0" * 64) -> Subject:
    return Subject.of_model(model, ModelFacts("here", sha, 1), prompted=True)


def items_of(shards: Path) -> list[Item]:
    return read_corpus(Task("t", str(shards), image=[ImageTask("modality", ["{name}"])])).items


def requests_of(items: list[Item], comparators: tuple[str, ...], grid: int) -> list[Request]:
    """Boxes, clicks and masks, of other numbers for each image, and the images themselves."""
    rng = np.random.default_rng(0)
    out = []
    for number, item in enumerate(items):
        window = Window.whole(item.sample.width, item.sample.height)
        prompts = [RegionPrompt(box=window.unit_box([5.0 + i, 6.0, 20.0, 15.0])) for i in range(number % 4 + 1)]
        prompts.append(RegionPrompt(points=rng.random((2, 2), np.float32), labels=np.array([1, 0])))
        mask = np.zeros((grid, grid), np.float32)
        mask[3:7, 2 : 5 + number % 3] = rng.random((4, 3 + number % 3))
        prompts.append(RegionPrompt(mask=mask))
        prompts.append(RegionPrompt())
        out += [Request(item, prompt, name) for prompt in prompts for name in comparators]
        out += [Request(item, None), Request(item, None, corruption=("blur", 3))]
    return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def model(micro_trunk: Path) -> RegionCLIP:
    return build(micro_trunk)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "_IMAGES", 2)


def test_neither_batch_size_nor_workers_nor_order_nor_company_changes_embeddings(
    model: RegionCLIP, shards: Path
) -> None:
    subject, items = subject_of(model), items_of(shards)
    comparators = (*OURS, *TRAINING_FREE)
    requests = requests_of(items, comparators, model.mask_grid)
    plain = Features(subject, shown=False)
    assert set(plain.comparators) == set(comparators)
    a = plain.embed(requests)
    assert a.dtype == np.float32 and a.shape == (len(requests), model.output_dim)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, rtol=1e-5)
    order = np.random.default_rng(1).permutation(len(requests))
    other = Features(subject, batch_size=1, prompts_per_pass=2, workers=3, shown=False)
    np.testing.assert_allclose(other.embed([requests[i] for i in order]), a[order], atol=1e-5)
    some = order[:7]
    np.testing.assert_allclose(Features(subject, shown=False).embed([requests[i] for i in some]), a[some], atol=1e-5)


def test_the_order_of_requests_and_threads_change_no_bit(model: RegionCLIP, shards: Path) -> None:
    requests = requests_of(items_of(shards), ("prompted", "crop"), model.mask_grid)
    a = Features(subject_of(model), shown=False).embed(requests)
    b = Features(subject_of(model), workers=2, shown=False).embed(requests[::-1])
    assert np.array_equal(a, b[::-1])


def test_they_are_what_the_model_says_itself(model: RegionCLIP, shards: Path) -> None:
    item = items_of(shards)[0]
    preprocess: Preprocess = model.preprocess
    pixels = preprocess.to_pixels(torch.from_numpy(preprocess.pad_resize(item.image()).copy())[None])
    box = np.array([0.1, 0.2, 0.5, 0.6], np.float32)
    prompts = Prompts.empty(1, 1, 1, model.mask_grid)
    prompts.boxes[0, 0], prompts.box_valid[0, 0] = torch.from_numpy(box), True
    with torch.no_grad():
        image, region = model.encode_regions(pixels, prompts)
    asked = [Request(item, RegionPrompt(box=box), name) for name in ("prompted", "unprompted")]
    found = Features(subject_of(model), shown=False).embed(asked)
    np.testing.assert_allclose(found, torch.cat([region[0], image]).numpy(), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize("fusion", [{"kind": "region_tokens", "glimpse": 2}, {"kind": "crop"}, {"kind": "conditioned"}])
def test_whatever_fusion_a_model_was_trained_with_answers(micro_trunk: Path, shards: Path, fusion: dict) -> None:
    model = build(micro_trunk, **fusion)
    requests = requests_of(items_of(shards)[:4], OURS, model.mask_grid)
    a = Features(subject_of(model), shown=False).embed(requests)
    b = Features(subject_of(model), batch_size=1, prompts_per_pass=1, shown=False).embed(requests)
    np.testing.assert_allclose(a, b, atol=1e-5)
    if fusion["kind"] == "crop":
        asked = [replace(r, comparator="crop") if r.comparator == "prompted" else r for r in requests]
        crops = Features(subject_of(model), shown=False).embed(asked)
        np.testing.assert_allclose(a, crops, atol=1e-6)


def forbid(monkeypatch: pytest.MonkeyPatch, features: Features) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(features, "_compute", fail)


@pytest.mark.usefixtures("small_chunks")
def test_what_was_computed_is_kept_by_content(
    model: RegionCLIP, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, requests = subject_of(model), requests_of(items_of(shards), ("prompted", "roi_align"), model.mask_grid)
    first = Features(subject, Store(tmp_path / "cache"), shown=False)
    a, texts = first.embed(requests), first.texts(["a cell", "a disc"])
    again = Features(subject, Store(tmp_path / "cache"), shown=False)
    forbid(monkeypatch, again)
    assert np.array_equal(again.embed(requests[5:]), a[5:]) and np.array_equal(again.texts(["a disc"]), texts[1:])
    assert again.speed == {} and {"regions per second: prompted", "regions per second: roi_align"} <= first.speed.keys()
    for other in (
        Features(subject_of(model, "1" * 64), Store(tmp_path / "cache"), shown=False),  # other weights
        Features(subject, Store(tmp_path / "cache"), shown=False, seed=1),  # other corruptions
    ):
        forbid(monkeypatch, other)
        with pytest.raises(AssertionError, match="again"):
            other.embed(requests)
    with pytest.raises(AssertionError, match="again"):
        again.embed([Request(requests[0].item, RegionPrompt(box=np.array([0, 0, 1, 1], np.float32)), "prompted")])


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_evaluation_goes_on_with_the_same_bits(model: RegionCLIP, shards: Path, tmp_path: Path) -> None:
    subject, requests = subject_of(model), requests_of(items_of(shards), ("prompted",), model.mask_grid)
    forwards: list[int] = []
    whole = Features(subject, shown=False, alive=lambda: forwards.append(1)).embed(requests)
    calls: list[int] = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Features(subject, Store(tmp_path), shown=False, workers=2, alive=interrupt).embed(requests)
    kept = len(list(tmp_path.glob("*.npy")))
    assert 0 < kept < 5 and not list(tmp_path.glob(".*"))  # of nine chunks, five forwards were done
    beats: list[int] = []
    resumed = Features(subject, Store(tmp_path), shown=False, alive=lambda: beats.append(1))
    assert np.array_equal(resumed.embed(requests), whole)
    assert len(list(tmp_path.glob("*.npy"))) == 9 and 5 <= len(forwards) - len(beats) + 1 <= 6


RANKS = """
import sys, json
import numpy as np
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_features as t
from medpclip.distributed import join
from medpclip.evaluation.embedding import features as module
from medpclip.evaluation.embedding.features import Features
from medpclip.evaluation.embedding.store import Store

module._IMAGES = 2
world = join("cpu")
shards, trunk, out = sys.argv[1:]
subject = t.subject_of(t.build(Path(trunk)))
requests = t.requests_of(t.items_of(Path(shards)), ("prompted", "crop"), subject.model.mask_grid)
features = Features(subject, Store(Path(out) / "cache"), world=world, workers=1)
def compute(chunk, bar):
    raise t.MedpclipError(f"rank {{world.rank}} can't read")
failing = Features(subject, Store(Path(out) / "other"), world=world)
if world.rank == 1:
    failing._compute = compute
try:
    failing.embed(requests)
except t.MedpclipError as error:
    print("refused:", error)
np.save(Path(out) / f"rank{{world.rank}}.npy", features.embed(requests), allow_pickle=False)
np.save(Path(out) / f"text{{world.rank}}.npy", features.texts(["a", "b"]), allow_pickle=False)
print("computed", json.dumps(sorted(features.speed)))
"""


@pytest.mark.usefixtures("small_chunks")
def test_ranks_share_the_work_and_get_the_same_bits(
    model: RegionCLIP, shards: Path, micro_trunk: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(RANKS.format(tests=str(Path(__file__).parent)))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have it
    try:
        features = Features(subject_of(model), shown=False)
        requests = requests_of(items_of(shards), ("prompted", "crop"), model.mask_grid)
        whole, texts = features.embed(requests), features.texts(["a", "b"])
    finally:
        torch.set_num_threads(before)
    outputs = run_ranks(script, 2, str(shards), str(micro_trunk), str(tmp_path))
    assert all("computed [" in output and "crop" in output for output in outputs)
    for rank in range(2):
        assert np.array_equal(np.load(tmp_path / f"rank{rank}.npy"), whole)
        assert np.array_equal(np.load(tmp_path / f"text{rank}.npy"), texts)
    assert all("refused: rank 1 can't read" in output for output in outputs)


def test_what_cannot_be_answered_is_nan_or_refused(model: RegionCLIP, shards: Path) -> None:
    item = items_of(shards)[0]
    untrained = Subject.of_model(model, ModelFacts("clip", "0" * 64, None), prompted=False)
    features = Features(untrained, shown=False)
    assert not set(OURS) & set(features.comparators)
    box = RegionPrompt(box=np.array([0, 0, 1, 1], np.float32))
    rows = features.embed([Request(item, box, "prompted"), Request(item, box, "crop"), Request(item, None)])
    assert np.isnan(rows[0]).all() and np.isfinite(rows[1:]).all()
    assert features.embed([]).shape == (0, model.output_dim)
    with pytest.raises(MedpclipError, match="leave out --no-cache"):
        Features(untrained, world=World(0, 2))


def test_weights_that_are_not_finite_are_refused_and_nothing_is_kept(
    micro_trunk: Path, shards: Path, tmp_path: Path
) -> None:
    model = build(micro_trunk)
    with torch.no_grad():
        next(model.visual.parameters()).fill_(float("nan"))
    features = Features(subject_of(model), Store(tmp_path / "cache"), shown=False)
    with pytest.raises(MedpclipError, match=r"^here: gives images that aren't finite numbers") as caught:
        features.embed([Request(items_of(shards)[0], None)], "images")
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.npy"))


def test_prompts_that_say_nothing_have_finite_answers_by_every_comparator(model: RegionCLIP, shards: Path) -> None:
    features = Features(subject_of(model), shown=False)
    empty = RegionPrompt(mask=np.zeros((model.mask_grid, model.mask_grid), np.float32))
    item = items_of(shards)[0]
    asked = [Request(item, prompt, name) for prompt in (RegionPrompt(), empty) for name in features.comparators]
    assert np.isfinite(features.embed(asked)).all()


def test_other_code_has_another_identity(model: RegionCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(model)
    before = subject.cache_name()
    assert subject.cache_name() == before
    monkeypatch.setattr("medpclip.evaluation.subject.code_sha256", lambda *parts: "other")
    assert subject.cache_name() != before


def test_a_broken_picture_is_one_line_with_threads_too(model: RegionCLIP, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "broken") as writer:
        writer.add(Sample("k", "s", "test", "g", "CT", 40, 40), b"\x89PNG no picture", "png")
        writer.finish()
    request = Request(items_of(tmp_path / "broken")[0], None)
    for workers in (0, 2):
        with pytest.raises(MedpclipError, match=r"test-000000\.tar: k: unreadable image .*; run 'medpclip data check"):
            Features(subject_of(model), workers=workers, shown=False).embed([request])


def test_the_mode_and_the_settings_of_torch_are_restored(micro_trunk: Path, shards: Path) -> None:
    model = build(micro_trunk).train()
    model.fusion.eval()
    torch.backends.cudnn.allow_tf32 = True
    state = torch.random.get_rng_state()
    Features(subject_of(model), shown=False).embed([Request(items_of(shards)[0], None)])
    assert model.training and model.visual.training and not model.fusion.training
    assert torch.is_grad_enabled() and torch.backends.cudnn.allow_tf32
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_texts_are_the_models_own_once_for_each_wording(model: RegionCLIP) -> None:
    features = Features(subject_of(model), shown=False)
    words = ["a disc", "a cell", "a disc"]
    found = features.texts(words)
    with torch.no_grad():
        own = model.encode_text(model.tokenizer(words)).numpy()
    np.testing.assert_allclose(found, own, atol=1e-6)
    assert np.array_equal(found[0], found[2])
