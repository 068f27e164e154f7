"""`medpclip eval`: measure a model on a task file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medpclip.evaluation.result import ModelFacts
    from medpclip.evaluation.task import Task
    from medpclip.models.region_clip import RegionCLIP


def add_parser(verbs: Any) -> None:
    """Add `eval` to the command line's verbs (the subparsers of argparse)."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "eval",
        help="measure a model: image level, and regions by box, point and mask beside other ways to embed them",
        description="Measure a model on a task file. Writes result.json, predictions.jsonl and report.html.",
        usage="medpclip eval TASK.yaml [KEY=VALUE ...] --model MODEL --out DIR [--data DIR ...] [--ema] [--device DEVICE]",
    )
    parser.add_argument("task", type=Path, metavar="TASK.yaml", help="what to measure")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="change the task, as region.prompts=[box] (before the options)",
    )
    parser.add_argument("--model", required=True, help="a run, a checkpoint, or an open_clip name (random weights)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--data", nargs="+", action="extend", metavar="DIR", help="folders of shards, instead of the task's"
    )
    parser.add_argument("--ema", action="store_true", help="measure the moving average of the weights")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; by default a GPU where there is one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `medpclip eval`."""
    _check_packages()
    import time
    from datetime import datetime, timezone

    import medpclip.models  # noqa: F401  (torch starts here, in the order the package needs)
    from medpclip.evaluation.corpus import read_corpus
    from medpclip.evaluation.predictions import prediction_lines
    from medpclip.evaluation.report import render_report, run_log
    from medpclip.evaluation.result import build_result
    from medpclip.evaluation.tables import tables
    from medpclip.evaluation.task import load_task
    from medpclip.evaluation.zero_shot import run_task
    from medpclip.files import dump_json, write_atomically
    from medpclip.models.device import pick_device

    started, clock = datetime.now(timezone.utc), time.perf_counter()
    _make_folder(args.out)
    task = load_task(args.task, args.overrides)
    if args.data:
        task.data = args.data
    device = str(pick_device(args.device))
    corpus = read_corpus(task)
    model, facts, checkpoint = _model(args.model, task, device, args.ema)
    evaluation = run_task(model, task, corpus, device)
    result = build_result(task, facts, corpus, evaluation)
    seconds = round(time.perf_counter() - clock, 1)
    result["timing"] = {"started": started.isoformat(timespec="seconds"), "seconds": seconds, "device": str(device)}
    page = render_report(result, evaluation, task, run_log(checkpoint, facts.step))
    write_atomically(args.out / "predictions.jsonl", prediction_lines(evaluation))
    write_atomically(args.out / "report.html", page.encode())
    write_atomically(args.out / "result.json", dump_json(result))
    for warning in result["warnings"]:
        print(f"WARNING: {warning}\n")
    for table in tables(result):
        print(table.text(), end="\n\n")
    for note in evaluation.left_out:
        print(f"left out: {note}")
    print(f"result: {args.out / 'result.json'}\nreport: {args.out / 'report.html'}")
    return 0


def _check_packages() -> None:
    from importlib.util import find_spec

    from medpclip.errors import MedpclipError

    missing = [name for name in ("sklearn", "matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise MedpclipError(f"eval needs {', '.join(missing)}; install the extra: pip install 'medpclip[eval]'")


def _make_folder(path: Path) -> None:
    from medpclip.errors import MedpclipError

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedpclipError(
            f"--out {path}: can't be made ({error.strerror}); give a folder that can be written"
        ) from None


def _model(name: str, task: Task, device: str, ema: bool) -> tuple[RegionCLIP, ModelFacts, Path | None]:
    """The model, what is said of it, and the checkpoint's folder, where it comes from one."""
    import torch

    from medpclip.evaluation.exposure import read_trained_on
    from medpclip.evaluation.result import ModelFacts, weights_sha256
    from medpclip.models.load import EMA, META, WEIGHTS, find_checkpoint, load_model, read_meta

    torch.manual_seed(task.seed)  # a bare architecture has random weights: the same ones every time
    # Found once: a training that still runs may write a newer checkpoint meanwhile.
    folder = find_checkpoint(Path(name)) if Path(name).exists() else None
    model = load_model(folder or name, ema)
    meta = read_meta(folder) if folder is not None else {}
    trained_on = read_trained_on(meta, f"{folder}/{META}")
    shown = name if folder is None else _shown(folder) + " (moving average)" * ema
    file = None if folder is None else folder / (EMA if ema else WEIGHTS)
    facts = ModelFacts(shown, weights_sha256(file, model.state_dict()), meta.get("step"), trained_on)
    return model.to(device), facts, folder


def _shown(checkpoint: Path) -> str:
    """A checkpoint as shareable files name it: its run's folder and its own, without the path to them."""
    from medpclip.models.load import CHECKPOINTS

    folder = checkpoint.resolve()
    run = folder.parent.parent.name if folder.parent.name == CHECKPOINTS else ""
    return f"{run}/{folder.name}" if run else folder.name
