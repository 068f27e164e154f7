"""`medpclip train`."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

from medpclip.train.plot import add_plot_parser

EPILOG = """examples:
  medpclip train launch/quickstart.yaml
  medpclip train launch/quickstart.yaml optimizer.lr=1e-3 steps=200 out=runs/trial
  medpclip train launch/quickstart.yaml --print-config
  medpclip train launch/quickstart.yaml --resume
  torchrun --nproc_per_node=8 -m medpclip train launch/vit-b-16.yaml --resume
  deepspeed --no_local_rank --module medpclip train launch/vit-b-16.yaml --resume
  medpclip train plot runs/quickstart/train

Ranks are found in the environment, so the same command runs under torchrun, srun and the deepspeed launcher (which
needs --no_local_rank: it would add an option of its own)."""


def add_parser(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "train",
        help="pretrain a region-aware CLIP",
        description="Train what a YAML file describes; write config.yaml, log.jsonl and checkpoints/ to its 'out'.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="run configuration (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override a key, dotted: optimizer.lr=1e-3")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in 'out', if there is one"
    )
    parser.add_argument(
        "--resume-anyway",
        action="store_true",
        help="the same on another device, with other versions or ranks, where it would be another run",
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole resolved configuration and stop")
    parser.set_defaults(run=_run)
    add_plot_parser(verbs)


def _run(args: argparse.Namespace) -> int:
    from medpclip.config import dump_yaml, load
    from medpclip.train.config import TrainConfig

    config = load(TrainConfig, args.config, args.overrides)
    if args.print_config:
        print(dump_yaml(config), end="")
        return 0
    from medpclip.train.loop import train

    stopped = train(config, args.resume or args.resume_anyway, args.resume_anyway)
    if stopped is not None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # launchers end the other ranks when the first one is gone
        return 128 + stopped  # as a shell reports it: the run is not at its end
    if os.environ.get("RANK", "0") == "0":  # `train` has set it, whatever launched the ranks
        print(f"trained: {config.out}")
    return 0
