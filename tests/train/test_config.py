"""What a run can't be made of is said in one line, before anything starts."""

from typing import Any

import pytest
import yaml

from medpclip import config
from medpclip.errors import MedpclipError
from medpclip.train.config import TrainConfig, public_config

Values = dict[str, Any]


def read(section: str, values: Values) -> TrainConfig:
    run: Values = {"out": "run", "data": {"shards": ["shards"]}}
    return config.from_mapping(TrainConfig, run | {section: values}, "run.yaml")


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("optimizer", {"lr": 0}, "'lr' is 0.0, expected more than 0"),
        ("optimizer", {"lr": -1e-3}, "'lr' is -0.001, expected more than 0"),
        ("optimizer", {"lr": ".nan"}, "'lr' is nan, expected more than 0"),
        ("optimizer", {"lr": ".inf"}, "'lr' is inf, expected more than 0"),
        ("optimizer", {"eps": 0}, "'eps' is 0.0, expected more than 0"),
        ("optimizer", {"fusion_lr_scale": 0}, "'fusion_lr_scale' is 0.0, expected more than 0"),
        ("optimizer", {"betas": [0.9, 1]}, "'betas' is [0.9, 1.0], expected two numbers of at least 0 and less than 1"),
        ("optimizer", {"betas": [-0.1, 0.9]}, "'betas' is [-0.1, 0.9], expected two numbers"),
        ("optimizer", {"clip_grad": 0}, "'clip_grad' is 0.0, expected more than 0, or null for no clipping"),
        ("optimizer", {"clip_grad": -1}, "'clip_grad' is -1.0, expected more than 0"),
        ("optimizer", {"warmup_steps": -1}, "'warmup_steps' is -1, expected at least 0"),
        ("optimizer", {"final_lr": -0.1}, "'final_lr' is -0.1, expected 0 to 1"),
        ("optimizer", {"final_lr": 1.1}, "'final_lr' is 1.1, expected 0 to 1"),
        ("optimizer", {"weight_decay": -0.1}, "'weight_decay' is -0.1, expected at least 0"),
        ("checkpoint", {"every_minutes": 0}, "'every_minutes' is 0.0, expected more than 0, or null"),
        ("checkpoint", {"every_minutes": -1}, "'every_minutes' is -1.0, expected more than 0, or null"),
        ("tracking", {"peak_tflops": 0}, "'peak_tflops' is 0.0, expected more than 0, or null"),
        ("tracking", {"peak_tflops": -1}, "'peak_tflops' is -1.0, expected more than 0, or null"),
        ("loss", {"image_weight": 0, "region_weight": 0}, "at least 0, one of them more than 0"),
        ("loss", {"image_weight": -1}, "at least 0, one of them more than 0"),
        ("loss", {"region_weight": ".nan"}, "at least 0, one of them more than 0"),
        ("loss", {"kind": "sigmoid", "positives": "plain"}, "'positives' plain needs kind infonce, which is sigmoid"),
    ],
)
def test_what_makes_no_run_is_one_line(section: str, values: Values, expected: str) -> None:
    values = yaml.safe_load(yaml.safe_dump(values).replace("'", ""))
    with pytest.raises(MedpclipError) as caught:
        read(section, values)
    message = str(caught.value)
    assert message.startswith(f"run.yaml: key '{section}': ") and expected in message and "\n" not in message


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.98, 0.99], 0.9, ["a", 0.9]])
def test_betas_are_two_numbers(betas: Any) -> None:
    with pytest.raises(MedpclipError, match=r"^run\.yaml: key 'optimizer\.betas.*(expected|missing)") as caught:
        read("optimizer", {"betas": betas})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("optimizer", {"clip_grad": None, "warmup_steps": 0, "final_lr": 1, "weight_decay": 0, "betas": [0, 0.999]}),
        ("checkpoint", {"every_minutes": None}),
        ("tracking", {"peak_tflops": 989}),
        ("loss", {"image_weight": 0}),
        ("loss", {"region_weight": 0}),
        ("loss", {"positives": "plain"}),
    ],
)
def test_the_ends_of_ranges_and_null_are_fine(section: str, values: Values) -> None:
    read_section = config.to_mapping(read(section, values))[section]
    assert {key: read_section[key] for key in values} == values


def test_what_may_be_shared_has_no_paths_and_no_addresses() -> None:
    run = config.from_mapping(
        TrainConfig,
        {
            "out": "/home/jane/runs/trial",
            "data": {
                "shards": ["/scratch/jane/amos", "shards/b"],
                "urls": {"amos": "pipe:ssh jane@node7.hospital.org cat /scratch/jane/amos/{}"},
            },
            "model": {"trunk": "/home/jane/vit.json", "pretrained": "./jane/weights.bin"},
            "engine": {"kind": "deepspeed", "deepspeed_config": "/home/jane/ds.json"},
            "evaluation": {"tasks": ["/home/jane/task.yaml"]},
        },
        "run.yaml",
    )
    public = public_config(run)
    assert "jane" not in repr(public) and "hospital" not in repr(public)
    assert public["out"] == "trial" and public["data"]["shards"] == ["amos", "b"] and public["data"]["urls"] == ["amos"]
    assert public["optimizer"] == config.to_mapping(run)["optimizer"]
