"""Does `medpclip eval compare` find faults that are planted into a trained model? A table of what it said of each.

    python benchmarks/planted_faults.py RUN --data SHARDS ... --words left right

The model is measured once as it is, then with one fault after the other: noise on one layer of the image tower (of so many
times the weights' own standard deviation), two words swapped in the text tower, as if classes had changed places, other
templates; and once more as it is, by other batches, which must not be taken for a fault.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medpclip.models.load import find_checkpoint, load_model

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Planted:
    """A model's folder, and the overrides of the task by which it is measured."""

    what: str
    model: Path
    changes: tuple[str, ...] = ()


def main() -> int:
    """Print the table; 1 if a fault was missed, or a sound model accused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of `medpclip train`, or a checkpoint's folder")
    parser.add_argument("--data", nargs="+", required=True, help="folders of shards")
    parser.add_argument("--task", default="eval/evidence.yaml")
    parser.add_argument("--layer", default="clip.visual.transformer.resblocks.2.mlp.c_fc.weight")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0], metavar="TIMES")
    parser.add_argument("--words", nargs=2, default=["left", "right"], help="that a class of each has, one token each")
    parser.add_argument("--metrics", nargs="+", default=["balanced_accuracy", "brier"], metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/planted-faults"))
    args = parser.parse_args()
    checkpoint = find_checkpoint(args.run)
    _measure(Planted("", checkpoint), args, args.out / "sound")
    head = ["planted", "exit status", *(f"worse by {metric}, by most" for metric in args.metrics), "headline by box"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    wrong = False
    for number, planted in enumerate(_faults(checkpoint, args)):
        folder = args.out / f"planted-{number}"
        _measure(planted, args, folder)
        status, line = _compare(args, folder)
        print(f"| {planted.what} | {line} |", flush=True)
        wrong |= (status == 0) != (number == 0)
    return int(wrong)


def _faults(checkpoint: Path, args: argparse.Namespace) -> Iterator[Planted]:
    """Nothing but other batches first, then the faults."""
    yield Planted("nothing, batches of 7", checkpoint, ("batch_size=7",))
    weights = load_file(checkpoint / WEIGHTS)
    layer = weights[args.layer]
    noise = torch.randn(layer.shape, generator=torch.Generator().manual_seed(0)) * layer.std()
    for times in args.noise:
        changed = weights | {args.layer: layer + times * noise}
        yield Planted(f"noise on one layer, {times:g} times its deviation", _copy(checkpoint, changed, args.out))
    swapped = weights | _swapped(load_model(checkpoint).tokenizer(args.words), weights, args.words)
    yield Planted(f"{args.words[0]!r} and {args.words[1]!r} swapped", _copy(checkpoint, swapped, args.out))
    yield Planted("other templates", checkpoint, ("region.templates=['no {name}']",))


def _swapped(tokens: Tensor, weights: Mapping[str, Tensor], words: Sequence[str]) -> dict[str, Tensor]:
    """The word table with two words in one another's place; `tokens` are theirs, (2, context) integers."""
    if any((row != 0).sum() != 3 for row in tokens):  # a start, the word, an end
        raise SystemExit(f"planted_faults: --words {' '.join(words)}: not one token each; name others")
    name = "clip.token_embedding.weight"
    first, second = (int(row[1]) for row in tokens)
    table = weights[name].clone()
    table[[first, second]] = table[[second, first]]
    return {name: table}


def _copy(checkpoint: Path, weights: Mapping[str, Tensor], out: Path) -> Path:
    folder = out / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(WEIGHTS, "engine"))
    save_file(dict(weights), folder / WEIGHTS)
    return folder


def _measure(planted: Planted, args: argparse.Namespace, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    overrides = ["image=[]", "retrieval=[]", "comparators=[prompted]", *planted.changes]
    command = ["eval", args.task, *overrides, "--model", str(planted.model), "--out", str(out), "--no-cache"]
    done = _medpclip([*command, "--data", *args.data])
    if done.returncode:
        sys.exit(f"planted_faults: {done.stderr.strip().splitlines()[-1]}")


def _compare(args: argparse.Namespace, folder: Path) -> tuple[int, str]:
    """The exit status, and a line of the table; of what was measured otherwise, by --anyway once that was refused."""
    metrics = [word for metric in args.metrics for word in ("--metric", metric)]
    words = ["eval", "compare", str(args.out / "sound"), str(folder), *metrics, "--out", str(folder)]
    status = _medpclip(words).returncode
    said = str(status)
    if status == 2:
        said = f"2, by --anyway {_medpclip([*words, '--anyway']).returncode}"
    changes = json.loads((folder / "compare.json").read_bytes())["changes"]
    told = []
    for metric in args.metrics:
        own = [change for change in changes if change["metric"] == metric]
        worse = [100 * change["difference"] for change in own if change["regressed"]]
        told.append(f"{len(worse)} of {len(own)}" + (f", {max(worse, key=abs):+.1f}" if worse else ""))
    means = [f"{100 * c['a']:.1f} → {100 * c['b']:.1f}" for c in changes if (c["prompt"], c["name"]) == ("box", "MEAN")]
    values = means[0] if means else "–"  # none of one source
    return status, " | ".join([said, *told, values])


def _medpclip(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "medpclip", *words], capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
