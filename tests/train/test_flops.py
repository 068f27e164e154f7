"""Counted from the architecture = counted operation by operation by torch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.fusions import FUSION_KINDS
from medpclip.models.load import build_model
from medpclip.models.prompts import Windows
from medpclip.train.flops import count_flops

VISION = {"image_size": 160, "patch_size": 16, "width": 256, "layers": 4, "head_width": 32}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 192, "heads": 6, "layers": 3}
TIMM = {
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_model_pretrained": False,
    "image_size": 160,
    "timm_pool": "token",
    "timm_proj": "linear",
}
SIGLIP = {
    "timm_model_name": "vit_base_patch16_siglip_224",
    "timm_model_pretrained": False,
    "image_size": 160,
    "timm_pool": "map",
    "timm_proj": "none",
}
BERT = {
    "hf_config": {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 128,
        "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512, "max_position_embeddings": 48,
    },
    "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 48,
}  # fmt: skip
IMAGES, REGIONS, TEXTS = 2, 3, 5


def build(tmp_path: Path, kind: str, fusion: str = "region_tokens", **settings: Any) -> RegionCLIP:
    vision: dict[str, Any] = VISION
    text: dict[str, Any] = TEXT
    if kind == "timm":
        vision = TIMM
    if kind == "siglip":
        vision = SIGLIP
    if kind == "bert":
        vision = TIMM
        tokenizer = tmp_path / "tokenizer"
        tokenizer.mkdir()
        (tokenizer / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
        (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        (tokenizer / "config.json").write_text(json.dumps(BERT["hf_config"]))
        text = BERT | {"hf_model_name": str(tokenizer), "hf_tokenizer_name": str(tokenizer)}
    dim = 768 if kind == "siglip" else 128
    path = tmp_path / "small-16.json"
    path.write_text(json.dumps({"embed_dim": dim, "vision_cfg": vision, "text_cfg": text}))
    if fusion == "conditioned":
        settings = {"depths": [1, 3]} | settings
    fusion_config = FusionConfig(kind=fusion, prompt_dim=64, **settings)  # type: ignore[arg-type]
    with torch.device("cpu" if kind == "bert" else "meta"):  # transformers look at what the attention mask holds
        return build_model(ModelConfig(trunk=str(path), fusion=fusion_config))


def counted(model: RegionCLIP, backward: bool = True, keep: Tensor | None = None, device: str = "meta") -> int:
    """By torch; on device meta nothing is computed."""
    context = model.tokenizer(["a"]).shape[1]
    model = model.to(device)
    size, grid = model.preprocess.image_size, model.mask_grid
    prompts = Prompts(
        points=torch.zeros(IMAGES, REGIONS, 1, 2),
        point_labels=torch.ones(IMAGES, REGIONS, 1, dtype=torch.int64),
        boxes=torch.zeros(IMAGES, REGIONS, 4),
        box_valid=torch.ones(IMAGES, REGIONS, dtype=torch.bool),
        masks=torch.zeros(IMAGES, REGIONS, grid, grid),
        mask_valid=torch.ones(IMAGES, REGIONS, dtype=torch.bool),
    ).to(device)
    text = torch.zeros(TEXTS, context, dtype=torch.int64, device=device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        pixels = torch.zeros(IMAGES, 3, size, size, device=device)
        windows = None
        if model.fusion.window is not None:
            side = model.fusion.window.size
            squares = torch.zeros(IMAGES, REGIONS, 3, side, side, device=device)
            windows = Windows(squares, torch.zeros(IMAGES, REGIONS, 4, device=device))
        out = model(pixels, prompts, text, keep, windows)
        if backward:
            assert out.region is not None and out.text is not None
            (out.image.sum() + out.region.sum() + out.text.sum()).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", ["clip", "timm", "siglip", "bert"])
def test_as_torch_counts(tmp_path: Path, kind: str, backward: bool) -> None:
    model = build(tmp_path, kind)
    device = "cpu" if kind == "bert" else "meta"
    ours = count_flops(model, backward=backward).step(IMAGES, IMAGES * REGIONS, TEXTS)
    assert ours == pytest.approx(counted(model, backward, device=device), rel=0.02)


def test_dropped_patches_cost_nothing_beyond_their_embedding(tmp_path: Path) -> None:
    model = build(tmp_path, "clip")
    keep = torch.arange(40, device="meta").expand(IMAGES, -1)
    ours = count_flops(model, patches=40).step(IMAGES, IMAGES * REGIONS, TEXTS)
    assert ours == pytest.approx(counted(model, keep=keep), rel=0.02)
    assert ours < 0.6 * count_flops(model).step(IMAGES, IMAGES * REGIONS, TEXTS)


@pytest.mark.parametrize(
    ("fusion", "kind"), [*((fusion, "clip") for fusion in FUSION_KINDS), ("mask_pooling", "siglip"), ("crop", "siglip")]
)
def test_every_way_to_point(tmp_path: Path, fusion: str, kind: str) -> None:
    model = build(tmp_path, kind, fusion)
    keep = torch.arange(40, device="meta").expand(IMAGES, -1)
    for backward in (False, True):
        ours = count_flops(model, 40, backward).step(IMAGES, IMAGES * REGIONS, TEXTS)
        assert ours == pytest.approx(counted(model, backward, keep), rel=0.02)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"glimpse": 4}, "clip"),
        ({"glimpse": 4, "parts": ["start"]}, "clip"),
        ({"glimpse": 4, "depths": [0, 2]}, "clip"),
        ({"parts": ["logits"]}, "clip"),
        ({"parts": ["start", "values"], "depths": [1]}, "clip"),
        ({"glimpse": 4, "parts": ["keys"]}, "siglip"),
    ],
)
def test_glimpses_and_parts_of_region_tokens(tmp_path: Path, settings: dict[str, Any], kind: str) -> None:
    model, plain = build(tmp_path, kind, **settings), build(tmp_path, kind)
    for backward in (False, True):
        ours = count_flops(model, backward=backward)
        found = ours.step(IMAGES, IMAGES * REGIONS, TEXTS)
        assert found == pytest.approx(counted(model, backward), rel=0.02)
        # A glimpse makes up most of what a region costs, and without some parts it costs no more.
        assert (ours.region > 2 * count_flops(plain, backward=backward).region) == ("glimpse" in settings)


@pytest.mark.parametrize("fusion", ["alpha_channel", "placed_crop", "crop"])
def test_a_frozen_trunk_passes_gradients_to_what_is_added_to_patches_alone(tmp_path: Path, fusion: str) -> None:
    model = build(tmp_path, "clip", fusion)
    model.visual.requires_grad_(False)
    forward, ours = count_flops(model, backward=False), count_flops(model)
    assert ours.image == forward.image
    assert ours.step(IMAGES, IMAGES * REGIONS, TEXTS) == pytest.approx(counted(model), rel=0.02)
    assert (ours.region > 1.8 * forward.region) == (fusion != "crop")


def test_a_frozen_text_tower_has_no_backward(tmp_path: Path) -> None:
    model = build(tmp_path, "clip")
    for name, parameter in model.clip.named_parameters():
        parameter.requires_grad_(name.startswith("visual"))
    ours = count_flops(model)
    assert ours.text == count_flops(model, backward=False).text
    assert ours.step(IMAGES, IMAGES * REGIONS, TEXTS) == pytest.approx(counted(model), rel=0.02)


def test_a_frozen_trunk_passes_gradients_back_to_its_prompts_alone(tmp_path: Path) -> None:
    model = build(tmp_path, "clip")
    model.visual.requires_grad_(False)
    forward, ours = count_flops(model, backward=False), count_flops(model)
    assert ours.image == forward.image
    assert ours.region == pytest.approx(2 * forward.region, rel=0.05)


def test_what_is_computed_twice_counts_once(tmp_path: Path) -> None:
    model = build(tmp_path, "clip")
    plain = count_flops(model)
    model.set_activation_checkpointing(True)
    assert count_flops(model) == plain
    assert counted(model) > 1.2 * plain.step(IMAGES, IMAGES * REGIONS, TEXTS)


def test_an_anchor_is_a_forward_more(tmp_path: Path) -> None:
    model = build(tmp_path, "clip")
    plain, anchored = count_flops(model), count_flops(model, anchor=True)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.to("meta").encode_image(torch.zeros(1, 3, 160, 160, device="meta"))
    assert anchored.image - plain.image == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_known_figures() -> None:
    """ViT-B/16 at 224 pixels: 17.6 GFLOPs x 2 per image (Dosovitskiy et al. 2021 and timm count 17.6 G multiply-adds)."""
    with torch.device("meta"):
        model = build_model(ModelConfig(trunk="ViT-B-16"))
    flops = count_flops(model, backward=False, anchor=True)
    assert flops.image / 2 == pytest.approx(2 * 17.6e9, rel=0.04)
    assert count_flops(model).region < 0.015 * count_flops(model).image
