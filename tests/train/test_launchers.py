"""One entry, whoever starts the ranks: torchrun on one node and on two, and the deepspeed launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import free_port

from medpclip.config import dump_yaml
from medpclip.data.loading.loader import DataConfig
from medpclip.data.phantom import write_phantoms
from medpclip.models import FusionConfig, ModelConfig
from medpclip.train import loop
from medpclip.train.config import OptimizerConfig, TrackingConfig, TrainConfig

BIN = Path(sys.executable).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture(scope="module")
def config(micro_trunk: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("launchers")
    write_phantoms(folder / "shards", images=16, seed=1, workers=1)
    config = TrainConfig(
        out=folder / "alone",
        data=DataConfig([folder / "shards"], workers=0),
        model=ModelConfig(str(micro_trunk), fusion=FusionConfig(prompt_dim=16)),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1),
        tracking=TrackingConfig(every_steps=1),
        steps=3,
        batch_size=4,
        device="cpu",
    )
    loop.train(config)
    return config


def run_all(commands: list[list[str]], config: TrainConfig, name: str) -> list[dict[str, Any]]:
    """Start the commands together, each with the run's file; the log."""
    path = config.out.with_name(f"{name}.yaml")
    path.write_text(dump_yaml(config))
    out = config.out.with_name(name)
    # The launchers look for their own tools, and must not find a scheduler's or another launcher's variables.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(
            [*command, "train", str(path), f"out={out}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(commands), outputs
    assert sum(output.count("trained: ") for output in outputs) == 1, outputs
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def launchers() -> dict[str, list[list[str]]]:
    port = str(free_port())
    nodes = [*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
    return {
        "torchrun": [[*TORCHRUN, "--standalone", "--nproc_per_node=2", "-m", "medpclip"]],
        "two-nodes": [[*nodes, f"--node_rank={rank}", "-m", "medpclip"] for rank in range(2)],
        "deepspeed": [
            [
                str(BIN / "deepspeed"),
                "--num_accelerators=2",
                f"--master_port={port}",
                "--no_local_rank",
                "--module",
                "medpclip",
            ]
        ],
    }


@pytest.mark.parametrize("name", ["torchrun", "two-nodes", "deepspeed"])
def test_two_ranks_under_a_launcher_are_the_run_of_one(name: str, config: TrainConfig) -> None:
    if name == "deepspeed":
        pytest.importorskip("deepspeed")
    rows = run_all(launchers()[name], config, name)
    alone = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    assert [row["keys"] for row in rows] == [row["keys"] for row in alone]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone], rel=1e-4)
