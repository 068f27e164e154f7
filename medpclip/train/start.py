"""Before the first step: what ranks have to agree on, and what they are given."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import torch

from medpclip.config import to_mapping
from medpclip.distributed import World
from medpclip.errors import MedpclipError
from medpclip.models import RegionCLIP
from medpclip.models.load import read_meta
from medpclip.train.checkpoint import code_hash, data_hashes
from medpclip.train.config import TrainConfig
from medpclip.train.engines import Engine
from medpclip.train.engines.local import LocalEngine
from medpclip.train.step import Anchor


def partition(config: TrainConfig, world: World) -> tuple[int, int]:
    """(micro_batch_size, micro-batches of each rank in a step).

    Raises:
        MedpclipError: the step's images can't be shared out evenly.
    """
    micro = config.micro_batch_size or config.batch_size // world.size
    micros = config.batch_size // (micro * world.size) if micro else 0
    if not micros or micros * micro * world.size != config.batch_size:
        raise MedpclipError(
            f"key 'batch_size' is {config.batch_size}, which {world.size} rank{'s' * (world.size > 1)} can't share in "
            f"micro-batches of {config.micro_batch_size or 'equal size'}; make it a multiple of "
            f"{(config.micro_batch_size or 1) * world.size}"
        )
    return micro, micros


def fingerprint(model: RegionCLIP) -> str:
    """SHA-256 over the names and values of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_alike(world: World, config: TrainConfig, initial: str) -> None:
    """Ranks that began differently would train as many models, and nobody would notice.

    Raises:
        MedpclipError: a rank has another configuration, other shards, code or first weights than rank 0; on all ranks.
    """
    if world.size == 1:
        return
    settings = json.dumps(to_mapping(config) | {"device": None}, sort_keys=True)
    own = {"configuration": settings, "shards": data_hashes(config), "medpclip": code_hash(), "first weights": initial}
    everyone = world.gather({key: hashlib.sha256(repr(value).encode()).hexdigest() for key, value in own.items()})
    for rank, theirs in enumerate(everyone):
        for key, value in theirs.items():
            if value != everyone[0][key]:
                raise MedpclipError(f"rank {rank} has another {key} than rank 0; start all ranks with the same")


def check_anchor(checkpoint: Path, config: TrainConfig, initial: str) -> None:
    """Raises:
    MedpclipError: what the run is anchored to isn't what it was.
    """
    if config.loss.anchor_weight and read_meta(checkpoint).get("initial") != initial:
        raise MedpclipError(
            f"model.pretrained {config.model.pretrained!r} holds other weights than those this run began with and is "
            "anchored to; put them back, or choose another 'out'"
        )


def make_engine(model: RegionCLIP, config: TrainConfig, world: World, device: torch.device) -> Engine:
    """The engine that `config` asks for."""
    if config.engine.kind == "deepspeed":
        from medpclip.train.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(model, config, world, device)
    return LocalEngine(model, config, world, device)


def make_anchor(model: RegionCLIP, device: torch.device) -> Anchor:
    """What a copy of the model as it is now says of whole images."""
    initial = copy.deepcopy(model.clip.visual).requires_grad_(False).eval().to(device)

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(initial(pixels), dim=-1)

    return embed
