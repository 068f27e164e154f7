"""The rate's course, the parameter groups, and what freezing leaves."""

import itertools
import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn
from transformers import BertConfig

from medpclip.errors import MedpclipError
from medpclip.models import FusionConfig, ModelConfig
from medpclip.models.load import build_model
from medpclip.train.config import OptimizerConfig
from medpclip.train.optimizer import freeze_parts, learning_rate, make_optimizer, parameter_groups, set_learning_rate


def micro(trunk: Path) -> nn.Module:
    return build_model(ModelConfig(str(trunk), fusion=FusionConfig(prompt_dim=16)))


class TwoTowers(nn.Module):
    """The names of a RegionCLIP of a timm ViT and BERT, as BiomedCLIP's are."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8
        )
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        self.clip = open_clip.CustomTextCLIP(
            16,
            {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
            {
                "hf_model_name": str(folder),
                "hf_model_pretrained": False,
                "hf_pooler_type": "cls_last_hidden_state_pooler",
            },
        )
        self.fusion = nn.Linear(2, 2)
        self.region_logit_scale = nn.Parameter(torch.zeros(1))


def by_name(model: nn.Module, groups: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    of = {id(p): group for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    assert len(of) == sum(len(group["params"]) for group in groups)  # type: ignore[arg-type]
    return {name: of[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_warm_up_then_half_a_cosine() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, final_lr=0.1)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[109] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_what_decays_and_at_which_rate(micro_trunk: Path) -> None:
    model = micro(micro_trunk)
    optimizer = make_optimizer(model, OptimizerConfig(lr=0.5, fusion_lr_scale=4.0, gain_lr_scale=5.0, weight_decay=0.2))
    set_learning_rate(optimizer, 0.25)
    groups = by_name(model, optimizer.param_groups)
    assert len(groups) == len(list(model.parameters()))
    for name, decay, rate in [
        ("clip.visual.conv1.weight", 0.2, 0.25),
        ("clip.token_embedding.weight", 0.2, 0.25),
        ("clip.visual.ln_post.weight", 0.0, 0.25),
        ("clip.visual.positional_embedding", 0.0, 0.25),
        ("clip.logit_scale", 0.0, 0.25),
        ("region_logit_scale", 0.0, 0.25),
        ("fusion.start.weight", 0.2, 1.0),
        ("fusion.layers.0.logit_gain", 0.0, 5.0),
        ("fusion.encoder.point_type", 0.0, 1.0),
    ]:
        assert (groups[name]["weight_decay"], groups[name]["lr"]) == (decay, rate), name


def test_layer_decay_of_open_clips_towers(micro_trunk: Path) -> None:
    """Three blocks over images, one over texts."""
    model = micro(micro_trunk)
    scales = by_name(model, parameter_groups(model, OptimizerConfig(layer_decay=0.5, fusion_lr_scale=8.0)))
    for name, scale in [
        ("clip.visual.proj", 1),
        ("clip.visual.ln_post.bias", 1),
        ("clip.visual.transformer.resblocks.2.mlp.c_fc.weight", 0.5),
        ("clip.visual.transformer.resblocks.0.attn.in_proj_weight", 0.125),
        ("clip.visual.conv1.weight", 0.0625),
        ("clip.visual.class_embedding", 0.0625),
        ("clip.visual.positional_embedding", 0.0625),
        ("clip.visual.ln_pre.weight", 0.0625),
        ("clip.text_projection", 1),
        ("clip.ln_final.weight", 1),
        ("clip.transformer.resblocks.0.ln_1.weight", 0.5),
        ("clip.token_embedding.weight", 0.25),
        ("clip.positional_embedding", 0.25),
        ("clip.logit_scale", 1),
        ("region_logit_scale", 1),
        ("fusion.start.weight", 8),
    ]:
        assert scales[name]["scale"] == scale, name


def test_layer_decay_of_timm_and_bert(tmp_path: Path) -> None:
    """Six blocks over images, three over texts."""
    model = TwoTowers(tmp_path)
    groups = by_name(model, parameter_groups(model, OptimizerConfig(layer_decay=0.5, weight_decay=0.2)))
    for name, scale, decay in [
        ("clip.visual.head.proj.weight", 1, 0.2),
        ("clip.visual.trunk.norm.weight", 1, 0),
        ("clip.visual.trunk.blocks.5.attn.qkv.weight", 0.5, 0.2),
        ("clip.visual.trunk.blocks.0.mlp.fc1.bias", 1 / 64, 0),
        ("clip.visual.trunk.patch_embed.proj.weight", 1 / 128, 0.2),
        ("clip.visual.trunk.cls_token", 1 / 128, 0),
        ("clip.visual.trunk.pos_embed", 1 / 128, 0),
        ("clip.text.proj.0.weight", 1, 0.2),
        ("clip.text.transformer.encoder.layer.2.output.dense.weight", 0.5, 0.2),
        ("clip.text.transformer.encoder.layer.0.output.LayerNorm.weight", 0.125, 0),
        ("clip.text.transformer.embeddings.word_embeddings.weight", 1 / 16, 0.2),
        ("clip.text.transformer.embeddings.position_embeddings.weight", 1 / 16, 0),
        ("clip.text.transformer.embeddings.LayerNorm.bias", 1 / 16, 0),
    ]:
        assert (groups[name]["scale"], groups[name]["weight_decay"]) == (scale, decay), name


@pytest.mark.parametrize("freeze", [["image"], ["text"], ["fusion"], ["image", "text"]])
def test_frozen_parts_stay_as_they_are(micro_trunk: Path, tmp_path: Path, freeze: list[str]) -> None:
    def part(name: str) -> str:
        start = {"clip.visual": "image", "fusion.": "fusion"}
        found = [value for key, value in start.items() if name.startswith(key)]
        return found[0] if found else "" if "logit_" in name else "text"

    for model in (micro(micro_trunk), TwoTowers(tmp_path)):
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        optimizer = make_optimizer(model, OptimizerConfig(lr=0.1), freeze)  # type: ignore[arg-type]
        sum(p.sum() for p in model.parameters() if p.requires_grad).backward()  # type: ignore[union-attr]
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) == (part(name) in freeze), name
        for name, module in model.named_modules():
            whole = name in ("", "clip")  # neither is a part
            assert module.training == (whole or part(f"{name}.") not in freeze), name


def test_a_frozen_bert_draws_no_dropout(tmp_path: Path) -> None:
    model, tokens = TwoTowers(tmp_path).train(), torch.ones(2, 4, dtype=torch.int64)
    assert not torch.equal(model.clip.encode_text(tokens), model.clip.encode_text(tokens))
    freeze_parts(model, ["text"])
    assert torch.equal(model.clip.encode_text(tokens), model.clip.encode_text(tokens))


def test_nothing_to_train(micro_trunk: Path) -> None:
    with pytest.raises(MedpclipError, match="leaves nothing to train but temperatures; leave one part out"):
        make_optimizer(micro(micro_trunk), OptimizerConfig(), ["image", "text", "fusion"])


def test_the_order_of_groups_is_the_models(micro_trunk: Path) -> None:
    config = OptimizerConfig(layer_decay=0.7)
    first, second = micro(micro_trunk), micro(micro_trunk)
    names = [
        [[name for name, p in model.named_parameters() if any(p is q for q in group["params"])] for group in groups]
        for model, groups in ((m, parameter_groups(m, config)) for m in (first, second))
    ]
    assert names[0] == names[1] and len(names[0]) > 6
