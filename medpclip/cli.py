"""The `medpclip` command: parses, and hands over to the component that owns each verb.

Each component's `command.py` adds its own sub-commands and imports what it needs only when it runs, so `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from medpclip import __version__
from medpclip.errors import MedpclipError

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ever, and "train plot" and "eval compare", verbs of two words beside ones that take a file; overrides
        (KEY=VALUE) may stand among the options or after them."""
        words = list(sys.argv[1:] if args is None else args)
        if words[:2] == ["eval", "compare"]:
            from medpclip.evaluation.compare import parse_and_run

            return argparse.Namespace(run=lambda _: parse_and_run(words[2:]))
        if words[:2] == ["train", "plot"]:
            words[:2] = ["train plot"]
        found, rest = super().parse_known_args(words, namespace)
        # --data takes all the words up to the next option.
        late = [
            word for word in getattr(found, "data", None) or [] if _OVERRIDE.match(word) and not os.path.exists(word)
        ]
        if late:
            found.data = [word for word in found.data if word not in late]
            rest += late
        if rest and hasattr(found, "overrides") and all(_OVERRIDE.match(word) for word in rest):
            found.overrides += rest
        elif rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    import medpclip.data.command as data
    import medpclip.evaluation.command as evaluation
    import medpclip.export.command as export
    import medpclip.train.command as train

    parser = _Parser(
        prog="medpclip", description="Region-aware medical CLIP: build shards, pretrain, evaluate, export."
    )
    parser.add_argument("--version", action="version", version=f"medpclip {__version__}")
    verbs = parser.add_subparsers(title="commands", dest="verb", required=True, metavar="COMMAND")
    for component in (data, train, evaluation, export):
        component.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors that the user can mend are one line on stderr and status 2."""
    args = build_parser().parse_args(argv)
    # Before torch loads OpenMP: threads that spin while they wait slow a shared machine down by a factor, and win nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return args.run(args) or 0
    except MedpclipError as error:
        print(f"medpclip: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medpclip: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # medpclip ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
