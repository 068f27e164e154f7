"""`medpclip eval compare A B`: what has become worse, for people and for continuous integration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medpclip.evaluation.report.tables import Table
    from medpclip.evaluation.results.changes import Change, Comparison

FORMAT = 1
FILE = "compare.json"
_SHOWN = 40  # changes in the terminal


def parse_and_run(argv: Sequence[str]) -> int:
    """Run `medpclip eval compare` with the words after "compare".

    Returns:
        0 where nothing is worse; 1 where a figure is, or is missing; 2 where A and B were not measured alike.

    Raises:
        MedpclipError: input that can't be used; the command ends with status 2 for it.
    """
    args = build_parser().parse_args(list(argv))
    from medpclip.evaluation.results.changes import compare, read_results

    a, b = read_results(args.a), read_results(args.b)
    which = tuple(args.metric), tuple(args.comparator)
    found = compare(a, b, args.tolerance / 100, args.level, args.strict, args.anyway, *which)
    refused = bool(found.unlike) and not args.anyway
    failed = bool(found.regressions) or (bool(found.missing) and not args.anyway)
    _say(found, args)
    if args.out is not None:
        _write(args.out, found, args, [side.result["model"] for side in (*a.values(), *b.values())])
    return 2 if refused else int(failed)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the words after `medpclip eval compare`."""
    parser = argparse.ArgumentParser(
        prog="medpclip eval compare",
        description="Compare two results case by case. The interval is of B minus A, from resampling the groups for both "
        "alike. Exit status: 0 nothing is worse; 1 a figure is worse by more than the tolerance, with an interval that "
        "excludes 0 and on enough groups (6 at 95%), or B has it no more; 2 A and B were not measured alike, or can't be "
        "read. Of many figures that don't truly differ, about one in forty falls outside a 95% interval on the bad side by "
        "chance: name what counts with --metric and --comparator.",
    )
    parser.add_argument("a", type=Path, metavar="A", help="the result that B is held against: an --out folder of eval")
    parser.add_argument("b", type=Path, metavar="B", help="the new result")
    parser.add_argument(
        "--tolerance",
        type=_points,
        default=0.0,
        metavar="POINTS",
        help="how much may be lost, in points of percent (0)",
    )
    parser.add_argument("--level", type=_level, default=0.95, help="coverage of the intervals (0.95)")
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="compare this metric only; may be given again"
    )
    parser.add_argument(
        "--comparator",
        action="append",
        default=[],
        metavar="NAME",
        help="compare this way to embed only, as prompted, unprompted, linear_probe; may be given again",
    )
    parser.add_argument(
        "--strict", action="store_true", help="count a loss too whose interval holds 0, or on few groups"
    )
    parser.add_argument(
        "--anyway", action="store_true", help="compare what was not measured alike: other data, classes, templates, ..."
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"also write {FILE}")
    return parser


def changes_table(changes: Sequence[Change], several: bool = False) -> Table:
    """A row for each change, in the given order; figures in percent, differences in points.

    Args:
        changes: what to show.
        several: name the tasks.
    """
    from medpclip.evaluation.report.tables import Table, heading, signed_figure

    rows = []
    for change in changes:
        gain = signed_figure({"value": change.difference, "interval": change.interval})
        name = heading(change.comparator)
        labels = [change.section, change.name, change.prompt, name, change.metric]
        figures = [f"{100 * change.a:.1f}", f"{100 * change.b:.1f}", gain, str(change.cases), str(change.groups)]
        rows.append([*([change.task] if several else []), *labels, *figures, "WORSE" if change.regressed else ""])
    headings = [*(["task"] if several else []), "section", "name", "prompt", "comparator", "metric"]
    return Table(
        "B minus A, the worst first",
        [*headings, "A", "B", "B - A", "n", "groups that differ", "verdict"],
        rows,
        len(headings),
        [set() for _ in rows],
    )


def _say(found: Comparison, args: argparse.Namespace) -> None:
    from medpclip.evaluation.results.changes import ROUNDING

    for line in found.unlike:
        print(f"not alike: {line}")
    if found.unlike and not args.anyway:
        print("A and B were not measured alike; measure them so, or compare with --anyway")
        return
    for line in found.notes:
        print(f"note: {line}")
    moved = [change for change in found.changes if abs(change.difference) > ROUNDING]
    if moved:
        print(changes_table(moved[:_SHOWN], len({change.task for change in found.changes}) > 1).text())
    if len(moved) > _SHOWN:
        print(
            f"and {len(moved) - _SHOWN} more, which lost less or gained"
            + ("" if args.out else f"; --out writes all to {FILE}")
        )
    for line in found.missing:
        print(f"in A only: {line}")
    for line in found.new:
        print(f"in B only: {line}")
    for line in _few(found, args):
        print(f"note: {line}")
    rule = "any" if args.strict else f"a {args.level:.0%} interval that excludes 0 and a"
    print(
        f"{len(found.changes)} figures compared, {len(moved)} differ, {len(found.regressions)} are worse "
        f"({rule} loss of more than {args.tolerance:g} points)"
    )


def _few(found: Comparison, args: argparse.Namespace) -> list[str]:
    """A line on losses that would count if they were on more groups."""
    from medpclip.evaluation.results.changes import least_groups

    least = least_groups(args.level)
    losses = [c for c in found.changes if not c.regressed and c.is_worse(args.tolerance / 100, True)]
    few = [c for c in losses if c.groups < least and c.interval is not None and not c.interval[0] <= 0 <= c.interval[1]]
    if not few:
        return []
    return [
        f"{len(few)} losses don't count, since fewer than {least} groups differ, which chance may do; --strict counts all"
    ]


def _write(out: Path, found: Comparison, args: argparse.Namespace, models: list[dict[str, Any]]) -> None:
    from medpclip.errors import MedpclipError
    from medpclip.files import dump_json, write_atomically

    content = {
        "format": FORMAT,
        "models": [model for i, model in enumerate(models) if model not in models[:i]],
        "tolerance_points": args.tolerance,
        "level": args.level,
        "strict": args.strict,
        "metrics": args.metric,
        "comparators": args.comparator,
        "regressions": len(found.regressions),
        "not_alike": found.unlike,
        "notes": found.notes,
        "changes": [asdict(change) for change in found.changes],
        "in_a_only": found.missing,
        "in_b_only": found.new,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / FILE, dump_json(content))
    except OSError as error:
        raise MedpclipError(f"--out {out}: can't be written ({error.strerror}); give another folder") from None


def _points(text: str) -> float:
    if not 0 <= (value := _number(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 100")
    return value


def _level(text: str) -> float:
    if not 0 < (value := _number(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
