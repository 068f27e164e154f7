"""Weights are read whole and given whole, and a message says what doesn't fit."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medpclip.errors import MedpclipError
from medpclip.models.tensors import assign, read_folder, read_tensors


class Planted:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_wrappings_are_taken_off(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}
    torch.save(wrapped, tmp_path / "w.pt")
    assert read_tensors(tmp_path / "w.pt", "").keys() == weights.keys()
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert read_tensors(tmp_path / "w.pt", "").keys() == {"module.a", "b"}


def test_nothing_pickled_is_run(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    torch.save({"a": torch.ones(1), "b": Planted(planted)}, tmp_path / "w.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Planted(planted)))
    for name in ("w.bin", "plain.bin"):
        with pytest.raises(MedpclipError, match=f"{name}: is no torch file of tensors alone; mend it"):
            read_tensors(tmp_path / name, "mend it")
    assert not planted.exists()
    torch.save({"a": torch.ones(1), "b": "text"}, tmp_path / "w.bin")
    with pytest.raises(MedpclipError, match=r"w\.bin: is no mapping of names to tensors; mend it"):
        read_tensors(tmp_path / "w.bin", "mend it")
    with pytest.raises(MedpclipError, match=r"absent\.bin: can't be read .*; mend it"):
        read_tensors(tmp_path / "absent.bin", "mend it")


def test_shards(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "2.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert read_folder(tmp_path, ["model.safetensors"]).keys() == {"a", "b"}
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(
        MedpclipError, match=r"2\.safetensors: no such file, but model\.safetensors\.index\.json lists it"
    ):
        read_folder(tmp_path, ["model.safetensors"])
    index.write_text(json.dumps({"weight_map": {"a": "../1.safetensors"}}))
    with pytest.raises(MedpclipError, match=r"names the shard '\.\./1\.safetensors', which is no file of this folder"):
        read_folder(tmp_path, ["model.safetensors"])
    index.write_text("[]")
    with pytest.raises(MedpclipError, match=r"index\.json: unreadable"):
        read_folder(tmp_path, ["model.safetensors"])


def test_all_or_none() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    given = {"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(3), "extra": torch.zeros(1)}
    with pytest.raises(MedpclipError) as error:
        assign(module, given, "FILE", "mend it")
    assert str(error.value) == (
        "FILE: lacks 2 tensors ('1.bias', '1.weight'); has tensor 'extra', unknown to the model; "
        "tensor '0.bias' is (3,), the model's (2,); mend it"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(
        MedpclipError, match=r"lacks 8 tensors \('0\.bias', '0\.weight', '1\.bias', '1\.weight', \.\.\.\)"
    ):
        assign(nn.Sequential(*(nn.Linear(1, 1) for _ in range(4))), {}, "FILE", "mend it")
    assign(module, {name: torch.ones_like(tensor).double() for name, tensor in before.items()}, "FILE", "mend it")
    assert all(tensor.dtype == torch.float32 and bool((tensor == 1).all()) for tensor in module.state_dict().values())
