"""What holds for every family of image towers: nothing changes without prompts, and prompts do what they should."""

import copy
from collections.abc import Callable

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.fusions.regions import extents
from medpclip.models.prompts import Windows
from medpclip.models.trunk import adapt, check_plain

TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
PLAIN = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 3, "head_width": 16}
FAMILIES = ("plain", "biomedclip", "siglip")
CLS = ("plain", "biomedclip")
TEXTS = torch.tensor([[1, 5, 9, 2, 0, 0, 0, 0], [1, 7, 8, 9, 30, 2, 0, 0]])


def timm_tower(pool: str, proj: str, **options: object) -> nn.Module:
    """open_clip's wrapper around a timm ViT of the smallest kind."""
    from open_clip.timm_model import TimmModel
    from timm.models.vision_transformer import VisionTransformer

    tower = TimmModel("test_vit", 32, image_size=64, pool=pool, proj=proj)
    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    tower.trunk = VisionTransformer(**sizes | options)
    if proj == "linear":
        tower.head.proj = nn.Linear(32, 32, bias=False)
    return tower


def pubmedbert() -> nn.Module:
    """BiomedCLIP's text tower, as open_clip builds it."""
    pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder
    from transformers import BertConfig

    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=64, max_position_embeddings=8)
    return HFTextEncoder("", 32, config, pooler_type="cls_last_hidden_state_pooler", proj_type="mlp")


def build_clip(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "plain":
        return open_clip.CLIP(32, PLAIN | {"ls_init_value": 0.5}, TEXT, nonscalar_logit_scale=True)
    text = TEXT if family == "biomedclip" else TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    bias = None if family == "biomedclip" else -10
    clip = open_clip.CustomTextCLIP(32, PLAIN, text, init_logit_bias=bias, nonscalar_logit_scale=True)
    if family == "biomedclip":
        clip.visual, clip.text = timm_tower("", "linear", init_values=0.5), pubmedbert()
    else:
        clip.visual = timm_tower("", "none", class_token=False, global_pool="map")
    return clip


def build(family: str, kind: str = "region_tokens") -> RegionCLIP:
    config = FusionConfig(prompt_dim=16, glimpse=2) if kind == "glimpse" else FusionConfig(kind, 16)  # type: ignore[arg-type]
    return RegionCLIP(build_clip(family), ModelConfig(family, fusion=config), None, None)  # type: ignore[arg-type]


def perturbed(model: RegionCLIP) -> RegionCLIP:
    """The same with a fusion that has left its zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def pictures(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def all_kinds(regions: int, seed: int = 0, batch: int = 2, grid: int = 16) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    prompts = Prompts.empty(batch, regions, 2, grid)
    prompts.points = torch.rand(prompts.points.shape, generator=generator)
    prompts.point_labels[:] = torch.tensor([1, 0])
    corner = torch.rand((batch, regions, 2), generator=generator) * 0.5
    prompts.boxes, prompts.box_valid[:] = torch.cat([corner, corner + 0.4], -1), True
    prompts.masks = (torch.rand(prompts.masks.shape, generator=generator) > 0.6).float()
    prompts.mask_valid[:] = True
    return prompts


def windows_of(model: RegionCLIP, prompts: Prompts | None, seed: int = 0) -> Windows | None:
    """What the fusion asks for, around the prompts' boxes: any pixels will do."""
    if model.fusion.window is None or prompts is None:
        return None
    side, generator = model.fusion.window.size, torch.Generator().manual_seed(seed)
    middle = (prompts.boxes[..., :2] + prompts.boxes[..., 2:]) / 2
    rects = torch.cat([middle - 0.3, middle + 0.3], dim=-1)
    return Windows(torch.randn(*prompts.boxes.shape[:2], 3, side, side, generator=generator), rects)


def every(test: Callable[..., None]) -> Callable[..., None]:
    """All families with region tokens, with a glimpse and without, and those with CLS with the conditioned fusion."""
    cases = [(family, kind) for family in FAMILIES for kind in ("region_tokens", "glimpse")]
    cases += [(family, "conditioned") for family in CLS]
    return pytest.mark.parametrize(("family", "kind"), cases)(test)


@every
@pytest.mark.parametrize("training", [False, True])
def test_without_prompts_it_is_open_clips_to_the_bit(family: str, kind: str, training: bool) -> None:
    model = build(family, kind)
    if family == "biomedclip":
        model.clip.text.eval()
    reference = copy.deepcopy(model.clip)
    model.clip.visual.train(training)
    reference.visual.train(training)
    images = pictures()
    assert torch.equal(model.encode_image(images), reference.encode_image(images, normalize=True))
    with torch.no_grad():
        out = model(images, text=TEXTS)
        assert torch.equal(out.image, reference.encode_image(images, normalize=True))
        assert torch.equal(out.text, reference.encode_text(TEXTS, normalize=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode_image(images), reference.encode_image(images, normalize=True))


@every
def test_the_image_embedding_ignores_prompts(family: str, kind: str) -> None:
    model = perturbed(build(family, kind)).eval()
    with torch.no_grad():
        plain = model.encode_image(pictures())
        one, other = all_kinds(4, seed=1), all_kinds(4, seed=2)
        image_a, region_a = model.encode_regions(pictures(), one, windows=windows_of(model, one))
        image_b, region_b = model.encode_regions(pictures(), other, windows=windows_of(model, other, seed=1))
    assert (image_a - plain).abs().max() <= 1e-5
    assert torch.equal(image_a, image_b)
    assert (region_a - region_b).abs().max() > 1e-2


@every
@pytest.mark.parametrize("training", [False, True])
def test_at_step_0_a_region_is_the_whole_image(family: str, kind: str, training: bool) -> None:
    model, prompts = build(family, kind).train(training), all_kinds(4)
    image, region = model.encode_regions(pictures(), prompts, windows=windows_of(model, prompts))
    assert (region - image[:, None]).abs().max() <= (1e-5 if kind == "conditioned" else 2e-6)


@every
def test_companions_do_not_matter(family: str, kind: str) -> None:
    model = perturbed(build(family, kind)).eval()
    prompts = all_kinds(5)
    windows = windows_of(model, prompts)
    with torch.no_grad():
        together = model.encode_regions(pictures(), prompts, windows=windows)[1]
        for r in range(5):
            own = slice(r, r + 1)
            window = None if windows is None else Windows(windows.pixels[:, own], windows.rects[:, own])
            alone = model.encode_regions(pictures(), prompts.regions_slice(own), windows=window)[1][:, 0]
            assert (alone - together[:, r]).abs().max() <= 1e-5


@every
def test_after_one_nudge_every_parameter_of_the_fusion_learns(family: str, kind: str) -> None:
    model = build(family, kind)
    target = torch.randn(32, generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    prompts = all_kinds(3)
    for _ in range(2):
        optimizer.zero_grad()
        out = model(pictures(), prompts, TEXTS, windows=windows_of(model, prompts))
        loss = (out.region @ target).square().sum() + (out.image @ target).sum() + (out.text @ target).sum()
        (loss + model.logit_parameters().square().sum()).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:  # transformers builds a pooler that open_clip doesn't use, whose config it was given
            assert name.startswith("clip.text.transformer.pooler."), name
        elif name.startswith("fusion."):
            assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


@every
def test_keeping_all_patches_is_keeping_them_all(family: str, kind: str) -> None:
    model = perturbed(build(family, kind))
    everything = torch.arange(16).expand(2, -1)
    for prompts in (None, all_kinds(3)):
        windows = windows_of(model, prompts)
        kept = model(pictures(), prompts, keep=everything, windows=windows)
        plain = model(pictures(), prompts, windows=windows)
        assert torch.equal(kept.image, plain.image)
        if prompts is not None:
            assert torch.equal(kept.region, plain.region)


@every
def test_dropped_patches_are_as_if_they_were_not_there(family: str, kind: str) -> None:
    """Neither their pixels nor a prompt's coverage of them matter any more."""
    model = perturbed(build(family, kind)).eval()
    keep = torch.tensor([[0, 3, 4, 5, 10, 15], [1, 2, 6, 8, 9, 14]])
    images, other, prompts = pictures(), pictures(), all_kinds(3)
    gone = torch.ones(2, 16, dtype=torch.bool).scatter(1, keep, False).view(2, 1, 4, 4)
    other += 9.0 * gone.repeat_interleave(16, 2).repeat_interleave(16, 3)
    windows = windows_of(model, prompts)
    with torch.no_grad():
        a, b = (model(pixels, prompts, keep=keep, windows=windows) for pixels in (images, other))
        full = model(images, prompts, windows=windows)
        assert torch.equal(a.image, b.image) and torch.equal(a.region, b.region)
        assert (a.image - full.image).abs().max() > 1e-3
        assert (model(images, keep=keep).image - a.image).abs().max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_is_masking(family: str) -> None:
    """The unprompted pass, against the tower's own blocks with masks; the prompted one is in test_region_tokens."""
    model = build(family).double().eval()
    trunk, images = model.trunk, pictures().double()
    keep = torch.tensor([[0, 3, 4, 5, 10, 15], [1, 2, 6, 8, 9, 14]])
    with torch.no_grad():
        found = model.encode_image(images, normalize=False, keep=keep)
        tokens = trunk.embed(images)
        for b in range(2):
            hidden = torch.full((16,), -torch.inf, dtype=torch.float64).scatter(0, keep[b], 0.0)
            mask = F.pad(hidden, (trunk.prefix, 0)).expand(16 + trunk.prefix, -1)
            x = tokens[b : b + 1]
            for block in trunk.blocks:
                x = block.module(x, attn_mask=mask)
            if trunk.pool is None:
                expected = trunk.head(x[:, 0])
            else:
                expected = trunk.head(model.visual.trunk.attn_pool(trunk.norm(x), attn_mask=hidden[None]))
            assert (found[b] - expected[0]).abs().max() <= 1e-9 * expected.abs().max()


def test_regions_of_an_attention_pool_are_copies_of_its_query() -> None:
    """Against the materialised way: one region, head and patch at a time."""
    model = perturbed(build("siglip")).double().eval()
    images, prompts = pictures().double(), all_kinds(3)
    prompts = Prompts(*(t.double() if t.is_floating_point() else t for t in vars(prompts).values()))
    pool, layer = model.visual.trunk.attn_pool, model.fusion.layers[0]
    with torch.no_grad():
        found = model.encode_regions(images, prompts, normalize=False)[1]
        start = model.fusion.start(model.fusion.encoder(prompts).pooled) + model.fusion.place(extents(prompts))
        cover = model.fusion.coverage(prompts)
        x = model.visual.trunk.forward_features(images)
        for b in range(2):
            keys, values = pool.kv(x[b]).chunk(2, dim=-1)
            for r in range(3):
                query = pool.q(pool.latent[0, 0] + start[b, r])
                mixed = []
                for h in range(2):
                    part = slice(16 * h, 16 * h + 16)
                    m = cover[b, r].T
                    logits = (keys[:, part] + m @ layer.key_gain[h]) @ query[part] / 4 + m @ layer.logit_gain[h]
                    mixed.append(logits.softmax(0) @ (values[:, part] + m @ layer.value_gain[h]))
                pooled = pool.proj(torch.cat(mixed))
                pooled = pooled + pool.mlp(pool.norm(pooled))
                assert (found[b, r] - pooled).abs().max() <= 1e-9 * pooled.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_keep_their_places(family: str) -> None:
    model = build(family).eval()
    images = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        before = model.encode_patches(images)
        images[:, :, 16:32, 48:64] = 5.0  # patch row 1, column 3
        change = (model.encode_patches(images) - before).norm(dim=-1)[0]
    assert before.shape == (1, 16, 32) and model.grid == (4, 4) and model.mask_grid == 16 and model.output_dim == 32
    assert change.argmax() == 1 * 4 + 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_square_is_embedded_as_a_small_picture(family: str) -> None:
    """The size of the whole image: as `embed` does it. Smaller: with positions from all over the grid."""
    visual = build_clip(family).visual
    trunk, images = adapt(visual), pictures()
    positions = visual.positional_embedding[1:] if family == "plain" else visual.trunk.pos_embed[0, trunk.prefix :]
    with torch.no_grad():
        whole = trunk.embed(images)[:, trunk.prefix :]
        assert trunk.patch == 16 and (trunk.embed_patches(images) - whole).abs().max() <= 1e-5
        positions[:] = positions.mean(0)  # the same everywhere: then a patch's place doesn't matter
        corner = trunk.embed(images)[:, trunk.prefix :].unflatten(1, (4, 4))[:, 1:3, 1:3].flatten(1, 2)
        assert (trunk.embed_patches(images[:, :, 16:48, 16:48]) - corner).abs().max() <= 1e-5
        positions += torch.linspace(-3, 3, 4).repeat_interleave(4)[:, None] * torch.arange(32)  # by rows
        shifts = trunk.embed_patches(torch.zeros(1, 3, 32, 32))[0].unflatten(0, (2, 2))
        assert (shifts[:, 0] - shifts[:, 1]).abs().max() <= 1e-5 and (shifts[0] - shifts[1]).abs().max() > 1e-3


@every
def test_activation_checkpointing_leaves_gradients_as_they_are(family: str, kind: str) -> None:
    model = perturbed(build(family, kind)).train()  # with the dropout of PubMedBERT
    calls = _count_calls(model)
    gradients, counts = [], []
    for on in (False, True, False):
        model.set_activation_checkpointing(on)
        model.zero_grad()
        calls.clear()
        torch.manual_seed(7)
        for prompts, keep in ((None, None), (all_kinds(3), torch.tensor([[0, 3, 4], [1, 2, 6]]))):
            out = model(pictures(), prompts, TEXTS, keep, windows_of(model, prompts))
            region = 0 if out.region is None else out.region[..., 0].sum()
            (out.image.square() @ torch.arange(32.0) + out.text[:, 1] + region).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        counts.append(dict(calls))
    assert counts[0] == counts[2] and all(counts[1][name] == 2 * counts[0][name] for name in counts[0])
    for other in gradients[1:]:
        assert gradients[0].keys() == other.keys()
        assert all(torch.equal(gradients[0][name], other[name]) for name in other)


def _count_calls(model: RegionCLIP) -> dict[str, int]:
    """How often each block's second norm was called, in both towers: twice per pass if the block runs twice."""
    counts: dict[str, int] = {}

    def counter(name: str) -> Callable[..., None]:
        def count(*_: object) -> None:
            counts[name] = counts.get(name, 0) + 1

        return count

    for name, module in model.named_modules():
        if name.endswith((".ln_2", ".norm2", ".attention.output.LayerNorm")):
            module.register_forward_pre_hook(counter(name))
    return counts


def test_logit_parameters() -> None:
    model = build("siglip")
    with torch.no_grad():
        model.region_logit_scale.fill_(2.0)
    found = model.logit_parameters()
    assert found.tolist() == [model.clip.logit_scale.item(), -10.0, 2.0, -10.0]
    found.sum().backward()
    for parameter in (model.clip.logit_scale, model.clip.logit_bias, model.region_logit_scale, model.region_logit_bias):
        assert parameter.grad.item() == 1.0
    assert build("plain").logit_parameters()[1::2].tolist() == [0.0, 0.0]


def test_an_attention_pool_takes_no_conditioned_fusion() -> None:
    with pytest.raises(MedpclipError, match="pools by attention; choose 'region_tokens'"):
        build("siglip", "conditioned")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"qk_norm": True}, "qk_norm"),
        ({"drop_path_rate": 0.1}, "timm_drop_path"),
        ({"proj_drop_rate": 0.1}, "timm_drop"),
        ({"patch_drop_rate": 0.1}, "patch_dropout"),
        ({"reg_tokens": 1}, "register tokens"),
        ({"class_token": False, "global_pool": "avg"}, "pools by 'avg'"),
        ({"global_pool": "map"}, "beside a CLS token"),
        ({"img_size": 32}, "takes 32x32 pixels where open_clip says 64x64"),
        ({"scale_attn_norm": True}, "scale_attn_norm"),
    ],
)
def test_other_timm_towers_are_refused_by_name(options: dict[str, object], named: str) -> None:
    clip = build_clip("plain")
    clip.visual = timm_tower("", "linear", **options)
    with pytest.raises(MedpclipError, match=named) as error:
        RegionCLIP(clip, ModelConfig("mine"), None, None)  # type: ignore[arg-type]
    assert "\n" not in str(error.value) and "'mine'" in str(error.value)


def test_another_timm_model_is_refused_and_plain_means_open_clips_own() -> None:
    from open_clip.timm_model import TimmModel

    clip = build_clip("biomedclip")
    with pytest.raises(MedpclipError, match="TimmModel; only open_clip's own VisionTransformer"):
        check_plain(clip.visual, "mine")
    clip.visual = TimmModel("test_resnet", 32, image_size=64)
    with pytest.raises(MedpclipError, match="timm's ResNet"):
        RegionCLIP(clip, ModelConfig("mine"), None, None)  # type: ignore[arg-type]
