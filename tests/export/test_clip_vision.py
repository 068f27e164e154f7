"""The exported vision tower, loaded by the installed transformers and held against open_clip's own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from medpclip.errors import MedpclipError
from medpclip.export import clip_vision, verify
from medpclip.export.clip_vision import export_clip_vision
from medpclip.models.preprocess import Preprocess

transformers = pytest.importorskip("transformers", reason="needs the extra 'export'")

PREPROCESS = Preprocess(32, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def make_clip(quick_gelu: bool = False, **vision: Any) -> open_clip.CLIP:
    """A tiny CLIP, its tower's parameters far enough from their start that each of them matters."""
    torch.manual_seed(0)
    tower = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 16, "layers": 3, **vision}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(
        embed_dim=24, vision_cfg=tower, text_cfg=text, quick_gelu=quick_gelu, nonscalar_logit_scale=True
    )
    with torch.no_grad():
        for parameter in clip.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


def outputs_of(folder: Path, pixels: torch.Tensor) -> Any:
    model = transformers.CLIPVisionModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        return model(pixel_values=pixels, output_hidden_states=True)


@pytest.mark.parametrize(
    ("quick_gelu", "vision"),
    [(False, {}), (True, {}), (False, {"ls_init_value": 0.5}), (False, {"act_kwargs": {"approximate": "tanh"}})],
    ids=["gelu", "quick_gelu", "layer_scale", "gelu_tanh"],
)
def test_every_hidden_state_and_the_embedding_are_the_sources(
    quick_gelu: bool, vision: dict[str, Any], tmp_path: Path
) -> None:
    clip = make_clip(quick_gelu, **vision).eval()
    report = export_clip_vision(clip, PREPROCESS, tmp_path / "tower")
    pixels = torch.randn(2, 3, 32, 32)
    output = outputs_of(tmp_path / "tower", pixels)
    with torch.no_grad():
        source = clip.visual.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
        embedding = clip.visual(pixels)
    assert len(output.hidden_states) == 4
    for ours, theirs in zip(source["image_intermediates"], output.hidden_states[1:], strict=True):
        torch.testing.assert_close(theirs[:, 1:], ours, atol=2e-5, rtol=0)
    torch.testing.assert_close(output.pooler_output @ clip.visual.proj, embedding, atol=2e-5, rtol=0)
    assert report.differences is not None
    assert 0 < report.differences.hidden < 2e-5 and 0 < report.differences.last < 2e-5
    assert report.differences.pooled < 2e-5 and report.differences.scale > 1


def test_the_source_is_neither_changed_nor_moved(tmp_path: Path) -> None:
    clip = make_clip().bfloat16().train()
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    export_clip_vision(clip, PREPROCESS, tmp_path / "tower")
    assert clip.training and all(module.training for module in clip.modules())
    assert all(
        torch.equal(before[key], value) and value.dtype == before[key].dtype for key, value in clip.state_dict().items()
    )


def test_files_and_keys(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "tower"
    export_clip_vision(make_clip(quick_gelu=True), PREPROCESS, out, name="tiny")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "export.json",
        "model.safetensors",
        "preprocessor_config.json",
        "README.md",
    }
    assert [path.name for path in out.parent.iterdir()] == ["tower"]
    weights = load_file(out / "model.safetensors")
    assert len(weights) == 3 + 2 + 2 + 3 * 16  # embeddings, two norms, and a block's six linear layers and two norms
    assert all(key.startswith("vision_model.") and tensor.dtype == torch.float32 for key, tensor in weights.items())
    config = json.loads((out / "config.json").read_text())
    assert (config["hidden_act"], config["hidden_size"], config["num_attention_heads"]) == ("quick_gelu", 64, 4)
    assert (config["image_size"], config["patch_size"], config["intermediate_size"]) == (32, 8, 256)
    assert type(transformers.AutoModel.from_pretrained(out, local_files_only=True)).__name__ == "CLIPVisionModel"
    report = json.loads((out / "export.json").read_text())
    assert report["model"] == "tiny" and report["padding"]["colour"] == [122, 116, 104]
    assert report["differences"]["hidden"] < 2e-5
    assert report["versions"]["transformers"] == transformers.__version__


def test_the_source_hash_follows_the_weights(tmp_path: Path) -> None:
    clip = make_clip()

    def source_hash(name: str) -> str:
        export_clip_vision(clip, PREPROCESS, tmp_path / name)
        return json.loads((tmp_path / name / "export.json").read_text())["source_sha256"]

    first, again = source_hash("a"), source_hash("b")
    with torch.no_grad():
        clip.visual.proj[0, 0] += 1e-3
    assert first == again != source_hash("c")


def test_the_processor_makes_our_pixels(tmp_path: Path) -> None:
    export_clip_vision(make_clip(), PREPROCESS, tmp_path / "tower")
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "tower", local_files_only=True)
    levels = 255 * torch.tensor(PREPROCESS.std)[:, None, None]
    rng = np.random.default_rng(1)
    for height, width in ((32, 32), (64, 64), (45, 90), (71, 40), (10, 13)):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        image = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        padded = verify.expand2square(image, PREPROCESS.fill)
        theirs = processor(padded, return_tensors="pt")["pixel_values"][0]
        ours = PREPROCESS.to_pixels(torch.from_numpy(PREPROCESS.pad_resize(image).copy())[None])[0]
        assert ((ours - theirs) * levels).abs().max() <= 1.01  # grey levels: 8-bit resizing rounds differently
    unpadded = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    assert unpadded.shape == theirs.shape and (unpadded - theirs).abs().max() > 0.5  # hence "pad first"


def test_images_given_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    compare = verify._pixel_differences
    monkeypatch.setattr(
        verify,
        "_pixel_differences",
        lambda preprocess, folder, images: seen.extend(i.shape for i in images) or compare(preprocess, folder, images),
    )
    export_clip_vision(make_clip(), PREPROCESS, tmp_path / "tower", images=[np.zeros((40, 77, 3), np.uint8)])
    assert (40, 77, 3) in seen


def test_llava_takes_the_tower(tmp_path: Path) -> None:
    """The tower inside a tiny LLaVA gives the image features that open_clip's last block but one gives."""
    clip = make_clip().eval()
    export_clip_vision(clip, PREPROCESS, tmp_path / "tower")
    tower = transformers.CLIPVisionModel.from_pretrained(tmp_path / "tower", local_files_only=True)
    text = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = transformers.LlavaConfig(
        vision_config=tower.config, text_config=text, image_token_index=49, image_seq_length=16
    )
    llava = transformers.LlavaForConditionalGeneration(config).eval()
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        source = clip.visual.forward_intermediates(pixels, output_fmt="NLC")["image_intermediates"][-2]
        expected = llava.model.multi_modal_projector(source)
        features = llava.get_image_features(pixels)
        tokens = torch.tensor([[1, *[49] * 16, 2]])
        logits = llava(input_ids=tokens, pixel_values=pixels).logits
    features = features if isinstance(features, (list, tuple)) else features.pooler_output  # 4.57 and 5
    torch.testing.assert_close(features[0].reshape(16, -1), expected[0], atol=2e-5, rtol=0)
    assert logits.shape == (1, 18, 50) and logits.isfinite().all()


def plant_wrong_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_vision, "_activation", lambda module, name: "quick_gelu")


def plant_lost_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clip_vision.vision_weights
    monkeypatch.setattr(clip_vision, "vision_weights", lambda visual: dict(list(whole(visual).items())[1:]))


def plant_swapped_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    affine = clip_vision._affine
    swap = {"encoder.layers.1.layer_norm1": "encoder.layers.1.layer_norm2"}
    swap |= {value: key for key, value in swap.items()}
    monkeypatch.setattr(clip_vision, "_affine", lambda name, *rest: affine(swap.get(name, name), *rest))


def plant_wrong_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    right = clip_vision.processor_config
    monkeypatch.setattr(
        clip_vision, "processor_config", lambda preprocess: right(preprocess) | {"image_mean": [0.5] * 3}
    )


def plant_wrong_size(monkeypatch: pytest.MonkeyPatch) -> None:
    right = clip_vision.processor_config
    monkeypatch.setattr(clip_vision, "processor_config", lambda p: right(p) | {"size": {"shortest_edge": 36}})


def plant_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clip_vision.vision_weights
    monkeypatch.setattr(
        clip_vision, "vision_weights", lambda visual: {k: v * torch.nan for k, v in whole(visual).items()}
    )


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_wrong_activation, "hidden differs"),
        (plant_lost_tensor, "doesn't load every tensor"),
        (plant_swapped_tensors, "hidden differs"),
        (plant_wrong_mean, "pixels_square differs"),
        (plant_wrong_size, "pixels_square differs"),
        (plant_nan, "hidden differs from the source by inf"),
    ],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_wrong_export_leaves_nothing(
    plant: Any, message: str, earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tower"
    if earlier:
        out.mkdir()
        (out / "export.json").write_text("earlier")
    plant(monkeypatch)
    with pytest.raises(MedpclipError, match=message):
        export_clip_vision(make_clip(), PREPROCESS, out)
    assert [path.name for path in tmp_path.iterdir()] == (["tower"] if earlier else [])
    assert not earlier or (out / "export.json").read_text() == "earlier"


def without_ln_pre() -> open_clip.CLIP:
    return make_clip(no_ln_pre=True)


def with_relu() -> open_clip.CLIP:
    clip = make_clip()
    clip.visual.transformer.resblocks[1].mlp.gelu = nn.ReLU()
    return clip


def with_mixed_activations() -> open_clip.CLIP:
    clip = make_clip()
    clip.visual.transformer.resblocks[1].mlp.gelu = nn.GELU(approximate="tanh")
    return clip


def with_another_epsilon() -> open_clip.CLIP:
    clip = make_clip()
    clip.visual.ln_post.eps = 1e-3
    return clip


def with_average_pool() -> open_clip.CLIP:
    return make_clip(pool_type="avg")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (without_ln_pre, "no_ln_pre"),
        (with_relu, "activation ReLU"),
        (with_mixed_activations, "mixes activations"),
        (with_another_epsilon, "layer norms of several kinds"),
        (with_average_pool, "pools by 'avg'"),
    ],
)
def test_what_the_format_cannot_express_is_refused_by_name(build: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(MedpclipError, match=message) as caught:
        export_clip_vision(build(), PREPROCESS, tmp_path / "tower", name="odd")
    assert "'odd'" in str(caught.value) and not list(tmp_path.iterdir())


def test_without_transformers_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    report = export_clip_vision(make_clip(), PREPROCESS, tmp_path / "tower")
    assert report.differences is None
    assert json.loads((tmp_path / "tower" / "export.json").read_text())["differences"] is None
    assert (tmp_path / "tower" / "model.safetensors").is_file()
