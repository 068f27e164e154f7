"""Running a function on several real ranks: fresh interpreters that talk by gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What a launcher sets for a rank."""
    ranks = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    given = {name: str(value) for name, value in ranks.items()}
    given |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return os.environ | given | {"PYTHONPATH": str(Path(__file__).parent)}


def start_ranks(command: list[str], world: int) -> list[subprocess.Popen]:
    """`command` as rank 0 ... world - 1, output in pipes, standard error with standard output."""
    port = free_port()
    return [
        subprocess.Popen(
            command,
            env=rank_environment(rank, world, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(world)
    ]


def run_ranks(script: Path, world: int, *arguments: str, timeout: float = 300) -> list[str]:
    """Run a Python script as all ranks; their outputs. A rank that fails fails the test, with what it said."""
    processes = start_ranks([sys.executable, str(script), *map(str, arguments)], world)
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank} ended with {process.returncode}:\n{output}"
    return outputs
