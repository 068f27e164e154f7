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
        usage="medpclip eval TASK.yaml [KEY=VALUE ...] --model MODEL --out DIR [--data DIR ...] [--device DEVICE]",
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
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ...; by default cuda where there is one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `medpclip eval`."""
    _check_packages()
    import time
    from datetime import datetime, timezone

    import medpclip.models  # noqa: F401  (torch starts here, in the order the package needs)
    from medpclip.data.shards import dump_json, write_atomically
    from medpclip.evaluation.corpus import read_corpus
    from medpclip.evaluation.predictions import prediction_lines
    from medpclip.evaluation.report import render_report, run_log
    from medpclip.evaluation.result import build_result
    from medpclip.evaluation.tables import tables
    from medpclip.evaluation.task import load_task
    from medpclip.evaluation.zero_shot import run_task

    started, clock = datetime.now(timezone.utc), time.perf_counter()
    _make_folder(args.out)
    task = load_task(args.task, args.overrides)
    if args.data:
        task.data = args.data
    device = _device(args.device)
    corpus = read_corpus(task)
    model, facts = _model(args.model, task, device)
    evaluation = run_task(model, task, corpus, device)
    result = build_result(task, facts, corpus, evaluation)
    seconds = round(time.perf_counter() - clock, 1)
    result["timing"] = {"started": started.isoformat(timespec="seconds"), "seconds": seconds, "device": str(device)}
    page = render_report(result, evaluation, task, run_log(Path(args.model)))
    write_atomically(args.out / "predictions.jsonl", prediction_lines(evaluation))
    write_atomically(args.out / "report.html", page.encode())
    write_atomically(args.out / "result.json", dump_json(result))
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


def _device(name: str | None) -> str:
    import torch

    from medpclip.errors import MedpclipError

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MedpclipError(f"--device {name!r} can't be used ({reason}); leave it out to choose by itself") from None
    return name


def _model(name: str, task: Task, device: str) -> tuple[RegionCLIP, ModelFacts]:
    import torch

    from medpclip.evaluation.result import ModelFacts, weights_sha256
    from medpclip.models.load import find_checkpoint, load_model, read_meta

    torch.manual_seed(task.seed)  # a bare architecture has random weights: the same ones every time
    model = load_model(name)
    folder = find_checkpoint(Path(name)) if Path(name).exists() else None
    step = read_meta(folder).get("step") if folder is not None else None
    return model.to(device), ModelFacts(name, weights_sha256(folder, model.state_dict()), step)
