"""`medpclip eval`: measure a model on a task file, or on a suite of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medpclip.distributed import World
    from medpclip.evaluation.embedding.store import Store
    from medpclip.evaluation.subject import Subject
    from medpclip.evaluation.task import Task

FEATURES = "features"  # the cache's folder in --out
_PATIENCE = 6 * 3600.0  # seconds that processes wait for the slowest
_MOST_WORKERS = 8


def add_parser(verbs: Any) -> None:
    """Add `eval` to the command line's verbs (the subparsers of argparse)."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "eval",
        help="measure a model: image level, and regions by box, point and mask beside other ways to embed them",
        description="Measure a model on a task file. Writes result.json, figures.csv, predictions.jsonl and report.html; of a "
        "suite, into a folder for each task, and suite.json and figures.csv for all. What was computed is kept, so an evaluation "
        "that was cut off goes on where it was. Started by torchrun or srun, processes share the work.",
        epilog="'medpclip eval compare A B' compares two results.",
        usage="medpclip eval TASK.yaml|SUITE.yaml [KEY=VALUE ...] --model MODEL --out DIR [--data DIR ...] [--ema]\n"
        "                     [--device DEVICE] [--cache DIR | --no-cache] [--workers N] [--batch-size N]",
    )
    parser.add_argument("task", type=Path, metavar="TASK.yaml", help="what to measure; or a suite, a list of tasks")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="change the task, or all tasks of a suite, as region.prompts=[box]",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="a run, a checkpoint, a folder in Hugging Face's format (CLIP, SigLIP) or open_clip's, an exported image tower, "
        "ARCHITECTURE:WEIGHTS (a file, or a tag of open_clip), or an open_clip architecture (random weights)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="folders of shards, instead of the task's; of a suite, the folder in which its tasks' folders lie",
    )
    parser.add_argument("--ema", action="store_true", help="measure the moving average of the weights")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; by default a GPU where there is one")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help=f"folder for embeddings, to share between evaluations (OUT/{FEATURES})",
    )
    cache.add_argument("--no-cache", action="store_true", help="keep embeddings in memory only")
    parser.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="threads that read and decode (by the CPU's cores, at most 8); 0 for none",
    )
    parser.add_argument("--batch-size", type=_count, metavar="N", help="images in a forward, instead of the task's")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `medpclip eval`."""
    _check_packages()
    _check_out(args.out)
    import medpclip.models  # noqa: F401  (torch starts here, in the order the package needs)
    from medpclip.distributed import join
    from medpclip.distributed.world import own_device
    from medpclip.evaluation.embedding.store import Store
    from medpclip.evaluation.subject import load_subject
    from medpclip.evaluation.suite import Asked, is_suite, read_suite
    from medpclip.evaluation.task import load_task
    from medpclip.models.device import pick_device

    if args.batch_size is not None:
        args.overrides.append(f"batch_size={args.batch_size}")
    suite = None
    if is_suite(args.task):
        suite, tasks = read_suite(args.task, args.overrides, args.data)
    else:
        task = load_task(args.task, args.overrides)
        task.data = args.data or task.data
        tasks = [Asked("", task)]
    device = pick_device(args.device)
    world = join(device, _PATIENCE)
    device = own_device(device, world)
    subject = load_subject(args.model, ema=args.ema, seed=tasks[0].task.seed, device=device)
    folder = None if args.no_cache else (args.cache or args.out / FEATURES) / subject.cache_name()
    store = Store(folder)
    for asked in tasks:
        _measure(args, asked.task, args.out / asked.folder, subject, store, world, resume=suite is not None)
    if suite is not None and world.is_first:
        _finish_suite(args.out, suite, [asked.folder for asked in tasks])
    return 0


def _measure(
    args: argparse.Namespace, task: Task, out: Path, subject: Subject, store: Store, world: World, resume: bool
) -> None:
    """Measure a task and write what is said of it; with `resume`, not if that is there already."""
    import time
    from datetime import datetime, timezone

    from medpclip.errors import MedpclipError
    from medpclip.evaluation.corpus import read_corpus
    from medpclip.evaluation.embedding.features import Features
    from medpclip.evaluation.report.report import render_report, run_log
    from medpclip.evaluation.results.frame import figures_csv
    from medpclip.evaluation.results.predictions import prediction_lines
    from medpclip.evaluation.results.result import build_result
    from medpclip.evaluation.run import run_task
    from medpclip.evaluation.scores import Evaluation
    from medpclip.evaluation.suite import FIGURES, PREDICTIONS, REPORT, RESULT, read_finished, stamp
    from medpclip.files import dump_json

    started, clock = datetime.now(timezone.utc), time.perf_counter()
    corpus = read_corpus(task)
    if resume:
        wanted = stamp(build_result(task, subject.facts, corpus, Evaluation([])))
        if world.from_first(world.is_first and read_finished(out, wanted) is not None):
            _say(world, f"{task.name}: measured before, see {out / RESULT}")
            return
    features = Features(
        subject,
        store,
        world=world,
        workers=_workers(args.workers, world),
        batch_size=task.batch_size,
        prompts_per_pass=task.prompts_per_pass,
        seed=task.seed,
    )
    evaluation = run_task(features, task, corpus)
    error: MedpclipError | None = None
    if world.is_first:
        try:
            result = build_result(task, subject.facts, corpus, evaluation)
            result["timing"] = {
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - clock, 1),
                "device": str(subject.device),
                "processes": world.size,
                "speed": {name: round(value, 1) for name, value in evaluation.speed.items()},
            }
            page = render_report(result, evaluation, task, run_log(subject.checkpoint, subject.facts.step))
            # The result comes last: where it is, the others are.
            _write(out / PREDICTIONS, prediction_lines(evaluation))
            _write(out / REPORT, page.encode())
            _write(out / FIGURES, figures_csv([result]))
            _write(out / RESULT, dump_json(result))
            _show(result, out)
        except MedpclipError as found:
            error = found
    world.agree(error)


def _show(result: dict[str, Any], out: Path) -> None:
    from medpclip.evaluation.report.tables import tables
    from medpclip.evaluation.suite import REPORT, RESULT

    for warning in result["warnings"]:
        print(f"WARNING: {warning}\n")
    for table in tables(result):
        print(table.text(), end="\n\n")
    for note in result["left_out"]:
        print(f"left out: {note}")
    print(f"result: {out / RESULT}\nreport: {out / REPORT}", flush=True)


def _finish_suite(out: Path, name: str, folders: list[str]) -> None:
    from medpclip.evaluation.results.frame import figures_csv
    from medpclip.evaluation.suite import FIGURES, FILE, read_result, suite_summary, suite_table
    from medpclip.files import dump_json

    summary = suite_summary(name, out, folders)
    _write(out / FIGURES, figures_csv([read_result(out / folder) for folder in folders]))
    _write(out / FILE, dump_json(summary))
    print(f"\n{suite_table(summary).text()}\n\nsuite: {out / FILE}")


def _say(world: World, text: str) -> None:
    if world.is_first:
        print(text, flush=True)


def _write(path: Path, data: bytes) -> None:
    from medpclip.errors import MedpclipError
    from medpclip.files import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise MedpclipError(f"{path}: can't be written ({error.strerror}); make room, then run it again") from None


def _check_packages() -> None:
    from importlib.util import find_spec

    from medpclip.errors import MedpclipError

    missing = [name for name in ("sklearn", "matplotlib", "jinja2", "pandas") if find_spec(name) is None]
    if missing:
        raise MedpclipError(f"eval needs {', '.join(missing)}; install the extra: pip install 'medpclip[eval]'")


def _check_out(path: Path) -> None:
    """Refuse a folder that can't be written, before hours of work; it is made when there is something to write.

    Raises:
        MedpclipError: it is a file, or lies where nothing may be written.
    """
    from medpclip.errors import MedpclipError

    nearest = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "no folder" if not nearest.is_dir() else "not writable"
        raise MedpclipError(f"--out {path}: can't be made ({nearest} is {reason}); give a folder that can be written")


def _workers(asked: int | None, world: World) -> int:
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // world.local_size))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)
