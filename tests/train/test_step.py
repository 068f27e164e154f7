"""One step: gradients over ranks and micro-batches are those of a single process that sees everything."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from whole_losses import whole_loss

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import Batch, DataConfig, RegionDataset, make_loader
from medpclip.data.loading.prompting import PromptSampling
from medpclip.data.loading.texts import POSITIVE, TextSampling, targets
from medpclip.data.loading.windows import CutWindows
from medpclip.data.phantom import write_phantoms
from medpclip.distributed import World, join
from medpclip.models import FusionConfig, ModelConfig, RegionCLIP
from medpclip.models.load import build_model
from medpclip.train import step as module
from medpclip.train.config import LossConfig, TrainConfig
from medpclip.train.engines.local import LocalEngine
from medpclip.train.step import StepInputs, prepare, run_step

IMAGES = 8
LOSSES = ("infonce", "infonce-mean", "infonce-plain", "sigmoid")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "phantom"
    write_phantoms(folder, images=24, seed=1, workers=1)
    return folder


def make_config(shards: Path, trunk: Path, loss: str, whole: float = 0.0, **changes: Any) -> TrainConfig:
    kind, _, positives = loss.partition("-")
    return TrainConfig(
        out=Path("unused"),
        data=DataConfig([shards], workers=0, prompts=PromptSampling(whole=whole)),
        model=ModelConfig(
            str(trunk), logit_bias=-5.0 if kind == "sigmoid" else None, fusion=FusionConfig(prompt_dim=16)
        ),
        loss=LossConfig(kind, positives or "sum", image_weight=0.7),  # type: ignore[arg-type]
        batch_size=IMAGES,
        **changes,
    )


def make_model(config: TrainConfig, dtype: torch.dtype) -> RegionCLIP:
    """A model whose fusion is off its start, so that every gradient says something."""
    torch.manual_seed(3)
    model = build_model(config.model)
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype)


def whole_batch(config: TrainConfig, model: RegionCLIP) -> Batch:
    """Images that differ in how many regions they have (some none) and how these are pointed at."""
    data = RegionDataset(config.data, 64, model.mask_grid, model.preprocess.fill, 0, model.fusion.window)
    batch = next(make_loader(data, IMAGES))
    for b in range(IMAGES):
        if b in (4, 5):  # a rank of two has fewer then; one of four has none
            batch.region_facts[b] = []
        kind = ("points", "boxes", "masks", "masks")[b // 2]
        batch.prompts["point_labels"][b] = torch.where(
            torch.tensor(kind == "points"), batch.prompts["point_labels"][b], -1
        )
        if kind == "points":
            batch.prompts["point_labels"][b, :, 0] = 1
        for name in ("box", "mask"):
            batch.prompts[f"{name}_valid"][b] &= kind.startswith(name)
    return batch


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    rows = slice(start, stop)
    prompts = {name: tensor[rows] for name, tensor in batch.prompts.items()}
    windows = batch.windows and CutWindows(batch.windows.pixels[rows], batch.windows.rects[rows])
    return Batch(
        batch.images[rows],
        batch.colours[rows],
        prompts,
        batch.image_facts[rows],
        batch.region_facts[rows],
        batch.keys[rows],
        windows,
        batch.whole if batch.whole is None else batch.whole[rows],
    )


def cut(batch: Batch, world: World, micros: int) -> list[Batch]:
    """A rank's micro-batches, as `BatchOrder` deals them out."""
    size = IMAGES // (world.size * micros)
    starts = [(micro * world.size + world.rank) * size for micro in range(micros)]
    return [part_of(batch, start, start + size) for start in starts]


LEXICON = Lexicon.load()
CASES = [("infonce", torch.float64), ("infonce-mean", torch.float64), ("infonce-plain", torch.float64),
         ("infonce-plain", torch.float64), ("sigmoid", torch.float64),
         ("infonce", torch.float32), ("sigmoid", torch.float32)]  # fmt: skip


def gradients(config: TrainConfig, world: World, micros: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Any]:
    model = make_model(config, dtype)
    batch = whole_batch(config, model)
    engine = LocalEngine(model, config, world, torch.device("cpu"))
    inputs = prepare(cut(batch, world, micros), LEXICON, model, config, 7, world)
    losses = run_step(engine, inputs, config.loss, world)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, losses


def as_rank(shards: str, trunk: str, folder: str) -> None:
    """Compare this rank's averaged gradients with the single process's; print the worst differences."""
    world = join("cpu")
    for case, (loss, dtype) in enumerate(CASES):
        limit = 1e-10 if dtype == torch.float64 else 1e-5
        whole = load_file(f"{folder}/{case}.safetensors")
        ours, losses = gradients(make_config(Path(shards), Path(trunk), loss, whole=0.5), world, 1 + case % 2, dtype)
        assert ours.keys() == whole.keys() - {"loss"}
        assert abs(losses.loss - whole["loss"].item()) < 10 * limit
        for name, gradient in ours.items():
            worst = (gradient - whole[name]).norm().item() / max(whole[name].norm().item(), 1e-3)
            assert worst <= limit, (loss, dtype, name, worst)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_have_the_gradients_of_one_process(world: int, shards: Path, micro_trunk: Path, tmp_path: Path) -> None:
    """All losses, ranks with other numbers of regions and kinds of prompt, one of four with none; one micro-batch or two."""
    for case, (loss, dtype) in enumerate(CASES):
        whole, losses = gradients(make_config(shards, micro_trunk, loss, whole=0.5), World(), 1, dtype)
        whole = {name: gradient.contiguous() for name, gradient in whole.items()}
        save_file(whole | {"loss": torch.tensor(losses.loss, dtype=torch.float64)}, tmp_path / f"{case}.safetensors")
    run_ranks(Path(__file__), world, str(shards), str(micro_trunk), str(tmp_path))


def with_dropout(model: RegionCLIP) -> RegionCLIP:
    for block in (*model.clip.visual.transformer.resblocks, *model.clip.transformer.resblocks):
        block.mlp.append(nn.Dropout(0.3))
    return model


def one_backward(engine: LocalEngine, inputs: StepInputs, config: TrainConfig) -> Tensor:
    """The same micro-batches with the same random numbers, all graphs kept, one loss, one backward."""
    images, wholes, regions, texts = [], [], [], []
    for micro, seed in zip(inputs.micros, inputs.seed, strict=True):
        image, region, text, scalars = module._forward(engine, engine.model.preprocess, micro, seed)
        images.append(image)
        wholes.append(region.flatten(0, 1)[micro.wholes])
        regions.append(region.flatten(0, 1)[micro.regions])
        texts.append(text)
    text = inputs.shares.in_order(torch.cat(texts))
    kind = "sigmoid" if config.loss.kind == "sigmoid" else config.loss.positives
    count = inputs.image_texts
    image_loss = whole_loss(
        kind, torch.cat(images + wholes), text[:count], inputs.image_targets, scalars[0], scalars[1]
    )
    region_loss = whole_loss(kind, torch.cat(regions), text[count:], inputs.region_targets, scalars[2], scalars[3])
    loss = config.loss.image_weight * image_loss + config.loss.region_weight * region_loss
    loss.backward()
    return loss


@pytest.mark.parametrize("loss", LOSSES)
def test_the_feature_cache_is_one_backward_through_all_graphs(loss: str, shards: Path, micro_trunk: Path) -> None:
    """With dropout and patch dropping on, in float64."""
    config = make_config(shards, micro_trunk, loss, whole=0.5, patch_drop=0.5)
    found = []
    for way in ("cache", "graphs"):
        model = with_dropout(make_model(config, torch.float64))
        engine = LocalEngine(model, config, World(), torch.device("cpu"))
        inputs = prepare(cut(whole_batch(config, model), World(), 4), LEXICON, model, config, 7, World())
        assert inputs.micros[0].keep is not None and inputs.micros[0].keep.shape == (2, 8)
        value = (
            run_step(engine, inputs, config.loss, World()).loss
            if way == "cache"
            else one_backward(engine, inputs, config).item()
        )
        found.append((value, {name: p.grad for name, p in model.named_parameters()}))
    (ours, cached), (theirs, graphs) = found
    assert ours == pytest.approx(theirs, abs=1e-10)
    for name, gradient in graphs.items():
        assert gradient is not None, name
        assert (cached[name] - gradient).abs().max() <= 1e-10, name


def test_prompts_of_whole_images_are_contrasted_with_the_images_texts(shards: Path, micro_trunk: Path) -> None:
    config = make_config(shards, micro_trunk, "infonce", whole=0.5)
    model = make_model(config, torch.float32)
    batch = whole_batch(config, model)
    assert batch.whole is not None
    asked = batch.whole.nonzero().flatten().tolist()
    assert 0 < len(asked) < IMAGES
    inputs = prepare(cut(batch, World(), 2), LEXICON, model, config, 7, World())
    width, half = config.data.regions_per_image, IMAGES // 2
    for number, micro in enumerate(inputs.micros):
        own = [image - number * half for image in asked if image // half == number]
        assert micro.wholes.tolist() == [image * width + width - 1 for image in own]
        assert not set(micro.wholes.tolist()) & set(micro.regions.tolist())
    assert torch.equal(inputs.image_targets[IMAGES:], inputs.image_targets[asked])


@pytest.mark.parametrize("glimpse", [0, 2])
def test_micro_batches_have_the_gradients_of_one_forward(glimpse: int, shards: Path, micro_trunk: Path) -> None:
    config = make_config(shards, micro_trunk, "infonce")
    config.model.fusion.glimpse = glimpse  # the regions' windows are cut like all else
    whole, _ = gradients(config, World(), 1, torch.float64)
    for micros in (2, 4):
        parts, _ = gradients(config, World(), micros, torch.float64)
        # A glimpse's positions are interpolated in float32.
        limit = 1e-8 if glimpse else 1e-10
        assert max((parts[name] - whole[name]).abs().max().item() for name in whole) <= limit


def test_the_contrast_is_in_float32_under_autocast(shards: Path, micro_trunk: Path) -> None:
    config = make_config(shards, micro_trunk, "infonce", precision="bf16")
    model = make_model(config, torch.float32)
    engine = LocalEngine(model, config, World(), torch.device("cpu"))
    inputs = prepare([whole_batch(config, model)], LEXICON, model, config, 0, World())
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        real = module.info_nce
        patch.setattr(module, "info_nce", lambda sides, *rest: seen.append(sides) or real(sides, *rest))
        patch.setattr(model.__class__, "forward", _watched(model.__class__.forward, seen))
        run_step(engine, inputs, config.loss, World())
    inside, sides = seen[0], seen[1]
    assert inside == torch.bfloat16
    assert all(side.items.dtype == torch.float32 for side in sides)


def _watched(forward: Any, seen: list[Any]) -> Any:
    def call(self: Any, *args: Any) -> Any:
        out = forward(self, *args)
        seen.append(out.image.dtype)
        return out

    return call


def test_the_model_sees_the_drawn_colours(shards: Path, micro_trunk: Path) -> None:
    config = make_config(shards, micro_trunk, "infonce")
    model = make_model(config, torch.float32)
    batch = whole_batch(config, model)
    engine = LocalEngine(model, config, World(), torch.device("cpu"))
    shown: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    run_step(engine, prepare([batch], LEXICON, model, config, 0, World()), config.loss, World())
    assert torch.equal(shown[0], model.preprocess.to_pixels(batch.images, batch.colours))
    assert not torch.equal(shown[0], model.preprocess.to_pixels(batch.images))


@pytest.mark.parametrize("glimpse", [0, 2])
def test_the_anchor_pulls_towards_the_initial_embedding(glimpse: int, shards: Path, micro_trunk: Path) -> None:
    """Its loss and gradient against autograd, over two micro-batches. It sees whole images, windows or not."""
    config = make_config(shards, micro_trunk, "infonce")
    config.model.fusion.glimpse = glimpse
    config.loss = LossConfig(image_weight=0.0, region_weight=0.0, anchor_weight=0.8)
    model = make_model(config, torch.float64)
    initial = torch.nn.functional.normalize(torch.randn(IMAGES, 32, dtype=torch.float64), dim=-1)
    engine = LocalEngine(model, config, World(), torch.device("cpu"))
    inputs = prepare(cut(whole_batch(config, model), World(), 2), LEXICON, model, config, 7, World())
    assert all((micro.windows is not None) == (glimpse > 0) for micro in inputs.micros)
    parts, seen = iter(initial.split(4)), []

    def anchor(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return next(parts)

    losses = run_step(engine, inputs, config.loss, World(), anchor)
    pixels = [model.preprocess.to_pixels(micro.images, micro.colours) for micro in inputs.micros]
    assert torch.equal(torch.cat(seen), torch.cat(pixels))
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    images = [
        module._forward(engine, model.preprocess, *pair)[0] for pair in zip(inputs.micros, inputs.seed, strict=True)
    ]
    expected = (1 - (torch.cat(images) * initial).sum(-1)).mean()
    assert losses.anchor == pytest.approx(expected.item()) and losses.loss == pytest.approx(0.8 * expected.item())
    (0.8 * expected).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(ours[name], p.grad, atol=1e-12), name
    # What an anchor holds is the embedding without prompts, which a fusion has no part in.
    assert all((g == 0).all() for name, g in ours.items() if name.startswith("fusion."))


def test_texts_and_patches_do_not_depend_on_who_has_the_image(shards: Path, micro_trunk: Path) -> None:
    config = make_config(shards, micro_trunk, "infonce", patch_drop=0.5)
    model = make_model(config, torch.float32)
    batch = whole_batch(config, model)
    one, four = (prepare(cut(batch, World(), micros), LEXICON, model, config, 7, World()) for micros in (1, 4))
    assert one.texts == four.texts and one.keys == four.keys
    assert torch.equal(one.image_targets, four.image_targets)
    keep = torch.cat([micro.keep for micro in four.micros if micro.keep is not None])
    assert one.micros[0].keep is not None and torch.equal(one.micros[0].keep, keep)
    other = prepare(cut(batch, World(), 1), LEXICON, model, config, 8, World())
    assert other.micros[0].keep is not None and not torch.equal(keep, other.micros[0].keep)


def test_plain_gives_every_image_and_region_the_one_text_drawn_for_it(shards: Path, micro_trunk: Path) -> None:
    """The losses are open_clip's on square matrices, where equal texts are negatives of each other's items."""
    config = make_config(shards, micro_trunk, "infonce-plain")
    # Few wordings, so that regions share some.
    config.data.texts = TextSampling(synonyms=0, descriptions=0, attributes=0, region_templates=["{name}", "a {name}"])
    model = make_model(config, torch.float64)
    batch = whole_batch(config, model)
    engine = LocalEngine(model, config, World(), torch.device("cpu"))
    inputs = prepare(cut(batch, World(), 2), LEXICON, model, config, 7, World())
    texts = {"image": inputs.texts[: inputs.image_texts], "region": inputs.texts[inputs.image_texts :]}
    facts = {"image": batch.image_facts, "region": [known for row in batch.region_facts for known in row]}
    drawn = {"image": inputs.image_targets, "region": inputs.region_targets}
    for name, own in drawn.items():
        assert own.shape == (len(facts[name]), len(texts[name]))
        assert ((own == 1).sum(1) == 1).all() and (own == 1).any(0).all() and not (own == 0).any()
        assert (targets(facts[name], texts[name], LEXICON)[own.numpy() == 1] == POSITIVE).all()
    assert len(texts["region"]) < len(facts["region"]) > 8
    terms = [known["term"] for known in facts["region"]]
    wordings = {term: {j for t, j in zip(terms, own.argmax(1).tolist(), strict=True) if t == term} for term in terms}
    assert max(map(len, wordings.values())) > 1  # a term is worded anew for each region

    losses = run_step(engine, inputs, config.loss, World())
    with torch.no_grad():
        out = [
            module._forward(engine, model.preprocess, *pair) for pair in zip(inputs.micros, inputs.seed, strict=True)
        ]
        text = inputs.shares.in_order(torch.cat([o[2] for o in out]))
        images = torch.cat([o[0] for o in out])
        regions = torch.cat([o[1].flatten(0, 1)[m.regions] for o, m in zip(out, inputs.micros, strict=True)])
        scalars = out[0][3]
        by_image = text[: inputs.image_texts][inputs.image_targets.argmax(1)]
        by_region = text[inputs.image_texts :][inputs.region_targets.argmax(1)]
        assert losses.image == pytest.approx(ClipLoss()(images, by_image, scalars[0].exp()).item(), rel=1e-10)
        assert losses.region == pytest.approx(ClipLoss()(regions, by_region, scalars[2].exp()).item(), rel=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_loss_nothing_of_it_is_trained(loss: str, shards: Path, micro_trunk: Path) -> None:
    """Weights of 0: what remains is the other loss alone, its gradient untouched; also in a batch without regions."""
    whole = {}
    for weights in ((0.7, 1.0), (0.7, 0.0), (0.0, 1.0)):
        config = make_config(shards, micro_trunk, loss)
        config.loss.image_weight, config.loss.region_weight = weights
        whole[weights], losses = gradients(config, World(), 2, torch.float64)
        assert losses.loss == pytest.approx(weights[0] * losses.image + weights[1] * losses.region)
        assert all(torch.isfinite(gradient).all() for gradient in whole[weights].values())
    both, images, regions = whole.values()
    for name, gradient in both.items():
        assert torch.allclose(images[name] + regions[name], gradient, atol=1e-12), name
        if name.startswith(("fusion.", "region_logit")):
            assert (images[name] == 0).all(), name
    assert (regions["clip.logit_scale"] == 0).all() and any((g != 0).any() for n, g in regions.items() if "fusion" in n)
    assert images["clip.logit_scale"] != 0 and (images["clip.visual.conv1.weight"] != 0).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_without_any_region(loss: str, shards: Path, micro_trunk: Path) -> None:
    config = make_config(shards, micro_trunk, loss)
    model = make_model(config, torch.float64)
    batch = whole_batch(config, model)
    batch.region_facts = [[] for _ in batch.keys]
    engine = LocalEngine(model, config, World(), torch.device("cpu"))
    inputs = prepare(cut(batch, World(), 2), LEXICON, model, config, 7, World())
    losses = run_step(engine, inputs, config.loss, World())
    assert losses.region == 0 and losses.loss == pytest.approx(0.7 * losses.image)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


if __name__ == "__main__":
    as_rank(*sys.argv[1:])
