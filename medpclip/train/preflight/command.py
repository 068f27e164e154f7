"""All checks, one after the other, and the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medpclip.config import load
from medpclip.distributed import World, join
from medpclip.distributed.world import leave
from medpclip.errors import MedpclipError
from medpclip.files import dump_json, write_atomically
from medpclip.models.device import pick_device
from medpclip.models.load import build_model
from medpclip.train.config import TrainConfig
from medpclip.train.preflight import costs
from medpclip.train.preflight.disk import check_disk, checkpoint_bytes
from medpclip.train.preflight.findings import Finding, has_problem
from medpclip.train.preflight.network import check_exchange, check_network
from medpclip.train.preflight.nodes import check_nodes, local_facts
from medpclip.train.preflight.shards import check_shards
from medpclip.train.preflight.trial import check_trial, count_parameters, run_trial

_PATIENCE = 600.0  # seconds for any one exchange between ranks


def main(words: Sequence[str] | None = None) -> int:
    """Check one run; exit status 0 if it can start, 2 if something would break."""
    parser = argparse.ArgumentParser(
        prog="launch/preflight",
        description="Check what a run needs, take a few steps, and say what it will cost. Start it as the run itself: "
        "alone, or on all ranks by srun or torchrun. Exit status 2 if the run would break.",
    )
    parser.add_argument("config", type=Path, help="run configuration (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override a key, dotted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write findings and figures as JSON")
    given = parser.parse_args(words)
    try:
        config = load(TrainConfig, given.config, given.overrides)
        device = pick_device(config.device)
        world = join(device, _PATIENCE)
        if device.type == "cuda" and world.size > 1:
            device = torch.device("cuda", world.local_rank)
            torch.cuda.set_device(device)
        report = preflight(config, world, device)
        if world.is_first:
            _show(report)
            if given.json is not None:
                write_atomically(given.json, dump_json(report))
        return 2 if report["broken"] else 0
    except MedpclipError as error:
        print(f"preflight: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"preflight: error: --json {given.json}: can't be written ({error.strerror}); choose another",
            file=sys.stderr,
        )
        return 2
    finally:
        leave()


def preflight(config: TrainConfig, world: World, device: torch.device) -> dict[str, Any]:
    """Run all checks; all ranks together.

    Returns:
        On all ranks alike: "broken"; "findings", a list; "costs", name -> text, and "figures", numbers (bytes, seconds,
        hours), both empty if something would break before there was anything to measure.
    """
    facts = world.gather(local_facts(world, device))
    found = check_nodes(facts, config)
    talk, network = check_network(world, device)
    of_shards, corpus = check_shards(config, world)
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    sizes = count_parameters(model, config)
    of_disk, disk = check_disk(config, world, checkpoint_bytes(config, *sizes))
    found += [*talk, *of_shards, *of_disk]
    table: dict[str, str] = {}
    figures: dict[str, Any] = {}
    if corpus is None or disk is None or has_problem(found):
        found.append(Finding("dry batch", "warning", "not tried", "mend the problems, then run this again"))
    else:
        try:
            trial = run_trial(model, config, world, device, sizes)
        except MedpclipError as error:
            what, _, remedy = str(error).rpartition("; ")
            found.append(Finding("dry batch", "problem", what or remedy, remedy))
        else:
            found += check_trial(trial, facts, device)
            found += check_exchange(network, 4 * trial.trained, world.size, trial.step_seconds)
            cost = costs.estimate(config, world, trial, disk)
            table = dict(costs.rows(config, corpus, trial, disk, cost, device.type))
            figures = {"trial": asdict(trial), "disk": asdict(disk), "corpus": asdict(corpus), "costs": asdict(cost)}
            figures["network"] = None if network is None else asdict(network)
    return {
        "broken": has_problem(found),
        "findings": [asdict(finding) for finding in found],
        "costs": table,
        "figures": figures,
    }


def _show(report: dict[str, Any]) -> None:
    for finding in report["findings"]:
        print(f"{finding['check']:<10} {finding['level']:<8} {finding['what']}")
        if finding["remedy"]:
            print(f"{'':<19} -> {finding['remedy']}")
    if report["costs"]:
        print("\nThe run will cost")
        for name, value in report["costs"].items():
            print(f"  {name:<24} {value}")
    print("\nSomething would break." if report["broken"] else "\nThe run can start.")
