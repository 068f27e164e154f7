"""Bytes that a rank hands to torch.distributed in a training step, counted, beside what `step_traffic` predicts.

    torchrun --nproc-per-node=2 benchmarks/communication.py
    torchrun --nproc-per-node=4 benchmarks/communication.py --engine deepspeed --zero 2 --micros 3 --loss sigmoid

A case is the loss, the engine (local, zero0 to zero3) and the number of micro-batches. The training loop's own steps, on
batches that are made up; the third step is counted: DeepSpeed's first ones differ. Each rank prints a line of JSON for each
case: operation -> bytes, of the step and of the prediction.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor

# What hands over tensors, and how much of its arguments this rank gives (see `counted`).
_OPERATIONS: dict[str, tuple[str, Callable[..., int]]] = {
    "all_reduce": ("all_reduce", lambda tensor, *_: tensor.nbytes),
    "reduce": ("reduce", lambda tensor, *_: tensor.nbytes),
    "broadcast": ("broadcast", lambda tensor, *_: tensor.nbytes),
    "all_gather": ("all_gather", lambda _, tensor, *__: tensor.nbytes),
    "all_gather_into_tensor": ("all_gather", lambda _, tensor, *__: tensor.nbytes),
    "all_gather_single": ("all_gather", lambda _, tensor, *__: tensor.nbytes),
    "reduce_scatter_tensor": ("reduce_scatter", lambda _, tensor, *__: tensor.nbytes),
    "reduce_scatter_single": ("reduce_scatter", lambda _, tensor, *__: tensor.nbytes),
    "reduce_scatter": ("reduce_scatter", lambda _, tensors, *__: sum(tensor.nbytes for tensor in tensors)),
    "all_to_all_single": ("all_to_all", lambda _, tensor, *__: tensor.nbytes),
    "batch_isend_irecv": ("send", lambda ops: sum(op.tensor.nbytes for op in ops if op.op is dist.isend)),
}
handed = Counter[str]()
_within = False


def _counted(operation: str, size: Callable[..., int], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        global _within
        if _within:  # one of them may be made of another
            return function(*given, **named)
        tensors = [value for value in (*given, *named.values()) if isinstance(value, Tensor | list | tuple)]
        handed[operation] += size(*tensors)
        _within = True
        try:
            return function(*given, **named)
        finally:
            _within = False

    return call


for _name, (_operation, _size) in _OPERATIONS.items():  # before anything keeps one of them
    if hasattr(dist, _name):
        setattr(dist, _name, _counted(_operation, _size, getattr(dist, _name)))

from synthetic import make_batch, make_config  # noqa: E402

from medpclip.data.loading.loader import Batch  # noqa: E402
from medpclip.distributed import World, join  # noqa: E402
from medpclip.distributed.traffic import StepShape, step_traffic  # noqa: E402
from medpclip.distributed.world import leave  # noqa: E402
from medpclip.models import FusionConfig, ModelConfig  # noqa: E402
from medpclip.models.preprocess import Preprocess  # noqa: E402
from medpclip.train import loop  # noqa: E402
from medpclip.train.config import EngineConfig, LossConfig, TrackingConfig  # noqa: E402


@dataclass(frozen=True)
class Case:
    """What is run: "infonce/zero2/3"."""

    loss: str
    engine: str
    micros: int

    @classmethod
    def read(cls, text: str) -> Case:
        loss, engine, micros = text.split("/")
        return cls(loss, engine, int(micros))

    @property
    def zero(self) -> int:
        return 0 if self.engine == "local" else int(self.engine[-1])


def count_step(case: Case, args: argparse.Namespace, world: World, out: Path) -> dict[str, Any]:
    """Run three steps; what the last one handed over, and what the prediction needs to know of it."""
    bias = -10.0 if case.loss == "sigmoid" else None
    config = make_config(
        ModelConfig(args.trunk, logit_bias=bias, fusion=FusionConfig(prompt_dim=args.prompt_dim)),
        loss=LossConfig(case.loss), engine=EngineConfig("local" if case.engine == "local" else "deepspeed", case.zero),
        precision=args.precision, batch_size=args.batch, micro_batch_size=args.batch // (case.micros * world.size),
        steps=3, device="cpu", tracking=TrackingConfig(peak_tflops=1.0),
    )  # fmt: skip
    config.out = out
    seen: dict[str, Any] = {}
    gather, step, prepare = World.gather, loop._Run._step, loop.prepare

    def watched_gather(world: World, value: Any) -> list[Any]:
        seen["wordings"] = len(zlib.compress(json.dumps(value).encode(), 1))
        return gather(world, value)

    def watched_prepare(*given: Any) -> Any:
        with patch.object(World, "gather", watched_gather):
            inputs = prepare(*given)
        seen["texts"], seen["width"] = inputs.shares.count, given[2].output_dim
        return inputs

    def watched_step(run: Any, *given: Any) -> Any:
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in run.engine.model.parameters()]
        seen["parameters"] = sum(size for size, _ in sizes)
        seen["trained"] = sum(size for size, trained in sizes if trained)
        seen["persistent"] = sum(size for size, _ in sizes if size < 100_000)
        handed.clear()
        result = step(run, *given)
        seen["handed"] = dict(handed)
        return result

    def batches(dataset: Any, size: int, start: int, rank: int, world: int, micros: int) -> Iterator[Batch]:
        while True:
            for micro in range(micros):
                first = (micro * world + rank) * size
                yield make_batch(*dataset, size, args.regions, args.batch // 2, args.terms, first)

    def open_dataset(config: Any, image_size: int, mask_grid: int, *_: Any) -> tuple[Preprocess, int]:
        return Preprocess(image_size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), mask_grid

    changed = {"prepare": watched_prepare, "open_dataset": open_dataset, "make_loader": batches}
    # There is no data to compare, and another case after this one.
    changed |= {"check_alike": lambda *_: None, "save_checkpoint": lambda *_: None, "leave": lambda: None}
    with patch.multiple(loop, **changed), patch.object(loop._Run, "_step", watched_step):
        loop.train(config)
    seen["wordings"] = max(world.gather(seen["wordings"]))
    return seen


def predict(case: Case, args: argparse.Namespace, world: World, seen: dict[str, Any]) -> dict[str, int]:
    """Operation -> bytes, of a step like that."""
    known = {name: value for name, value in seen.items() if name != "handed"}
    width = 2 if args.precision == "pure_bf16" else 4
    shape = StepShape(ranks=world.size, micros=case.micros, loss=case.loss, zero=case.zero, weight_bytes=width, **known)
    out = Counter[str]()
    for exchange in step_traffic(shape):
        out[exchange.operation] += exchange.handed
    return dict(out)


def main() -> None:
    """Print a JSON line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["infonce/local/1"], metavar="LOSS/ENGINE/MICROS")
    parser.add_argument("--trunk", default="medpclip-tiny-16")
    parser.add_argument("--prompt-dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=24, help="images of all ranks together")
    parser.add_argument("--regions", type=int, default=4)
    parser.add_argument("--terms", type=int, default=7)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "pure_bf16"])
    args = parser.parse_args()
    world = join("cpu")
    for name in args.cases:
        case = Case.read(name)
        with TemporaryDirectory() as folder:
            seen = count_step(case, args, world, Path(folder))
        predicted = predict(case, args, world, seen)
        print(json.dumps({"case": name, "ranks": world.size, **seen, "predicted": predicted}), flush=True)
    leave()


if __name__ == "__main__":
    main()
