"""The evidence: trains what a table of docs/results.md needs, measures it, and writes the table.

    python benchmarks/evidence/run.py main --data DIR --jobs 2
    python benchmarks/evidence/run.py main --data DIR --steps 200 --seeds 0 --only region_tokens crop
    python benchmarks/evidence/run.py main --list

What is there already is not made again, so a command that was cut off goes on where it was. --list says what there is to
do and how long it may take. DIR holds a folder for each source.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from costs import Cost, count_costs
from jobs import TRAINED, Job, Runner, make_jobs, stop_with_children
from plan import BEST, TABLES, Table, way_of
from shards import ROOT, build_shards, manifest_hashes

from medpclip.errors import MedpclipError

PAGE = ROOT / "docs" / "results.md"


def main(words: Sequence[str] | None = None) -> int:
    """Make one table, or list what it needs."""
    args = _parser().parse_args(words)
    try:
        return _make(args)
    except MedpclipError as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with a folder for each source")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "evidence", metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, a core each")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="these rows alone")
    parser.add_argument("--budget", default="greyed", metavar="RUN", help="at equal compute: whose FLOPs all get")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--list", action="store_true", help="what there is to do, and stop")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="where the table goes")
    return parser


def _make(args: argparse.Namespace) -> int:
    table, out = _table(args.table, args.only), args.out.resolve()
    costs = count_costs(TABLES[table.name].runs)  # of all: --budget may name one that --only leaves out
    if args.budget not in costs and table.equal_compute:
        raise MedpclipError(f"--budget {args.budget}: no run of table {table.name}; there are {', '.join(costs)}")
    jobs = make_jobs(table, out, args.seeds, args.steps, costs, args.budget)
    runner = Runner(out, args.device, costs)
    if args.list:
        _list(jobs, costs, runner, args.jobs)
        return 0
    for seed in args.seeds:
        build_shards(args.data and args.data.resolve(), out, seed)
    task = ROOT / table.task
    stop_with_children()
    runner.do(jobs, task, table.splits, args.jobs)
    from picture import draw_ways
    from reading import trained_runs
    from tables import Provenance, render, write_between_markers

    provenance = Provenance(_command(args), args.seeds, {seed: _manifests(out, seed) for seed in args.seeds})
    runs = trained_runs(jobs, costs, task, table.splits)
    text = render(table, runs, provenance)
    if table.against == BEST:
        picture = args.page.parent / "images" / f"results-{table.name}.svg"
        draw_ways(runs, picture)
        text = text.replace("\n\n", f"\n\n![{table.title}](images/{picture.name})\n\n", 1)
    (out / "tables").mkdir(exist_ok=True)
    (out / "tables" / f"{table.name}.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    write_between_markers(args.page, table.name, text)
    return 0


def _table(name: str, only: Sequence[str] | None) -> Table:
    """The table, with some of its rows alone and what they start from; a way stands for its runs without a source, too."""
    table = TABLES[name]
    if only is None:
        return table
    known = {run.name: run for run in table.runs}
    if unknown := [name for name in only if name not in known]:
        raise MedpclipError(f"--only {unknown[0]}: no run of table {table.name}; there are {', '.join(known)}")
    needed = {*only, *(known[name].after for name in only)}
    return replace(table, runs=tuple(run for run in table.runs if {run.name, way_of(run)} & needed))


def _list(jobs: Sequence[Job], costs: dict[str, Cost], runner: Runner, at_once: int) -> None:
    total = 0.0
    for job in jobs:
        there, cost = (job.folder / TRAINED).is_file(), costs[job.run.name]
        seconds = runner.seconds(job)
        total += seconds
        print(
            f"{job.name}: {job.steps} steps, {cost.parameters / 1e6:.3f} M parameters ({cost.without_words / 1e6:.3f} M "
            f"without word table), {cost.flops / 1e9:.0f} GFLOP a step, {'trained, ' if there else ''}about {seconds:.0f} s"
        )
    sizes = [cost.parameters for cost in costs.values()]
    print(f"parameters: within {100 * (max(sizes) / min(sizes) - 1):.1f} %")
    print(f"{len(jobs)} runs, about {total / at_once / 60:.0f} minutes with --jobs {at_once}")


def _command(args: argparse.Namespace) -> str:
    """The command that makes the table again."""
    words = [args.table, "--data DIR", f"--steps {args.steps}", f"--seeds {' '.join(map(str, args.seeds))}"]
    if TABLES[args.table].equal_compute:
        words.append(f"--budget {args.budget}")
    if args.only:
        words.append(f"--only {' '.join(args.only)}")
    return f"python benchmarks/evidence/run.py {' '.join(words)}"


def _manifests(out: Path, seed: int) -> str:
    return hashlib.sha256(json.dumps(manifest_hashes(out, seed), sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
