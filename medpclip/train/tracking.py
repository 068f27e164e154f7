"""What a run writes down: log.jsonl always, Weights & Biases on request."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpclip.data.shards import write_atomically
from medpclip.errors import MedpclipError
from medpclip.train.config import TrackingConfig

LOG = "log.jsonl"


class Tracker:
    """Appends a line per logged step; after a resume, the log goes back to the checkpoint's step first.

    Args:
        folder: the run's.
        config: whether and how Weights & Biases is used.
        run_config: the whole resolved configuration, for the record.
        step: the step at which the run begins or goes on.
    """

    def __init__(self, folder: Path, config: TrackingConfig, run_config: Mapping[str, Any], step: int) -> None:
        self.path = folder / LOG
        _cut_back(self.path, step)
        self._stream = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._wandb = _start_wandb(folder, config, run_config) if config.wandb != "off" else None

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line: the step, what kind of line, and finite numbers (others as null)."""
        line = {"step": step, "kind": kind} | {k: v if _finite(v) else None for k, v in values.items()}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._stream.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The log's lines; a last line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _cut_back(path: Path, step: int) -> None:
    if path.is_file():
        kept = [row for row in read_log(path) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _start_wandb(folder: Path, config: TrackingConfig, run_config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise MedpclipError("key 'tracking.wandb' needs wandb; install medpclip[train] or set it to off") from None
    # One id per run folder, kept in it, so that a resumed run goes on in the same place.
    id_file = folder / "wandb_id"
    if not id_file.is_file():
        write_atomically(id_file, secrets.token_hex(4).encode())
    return wandb.init(
        project=config.project,
        name=config.name or folder.name,
        id=id_file.read_text(),
        resume="allow",
        dir=folder,
        mode="online" if config.wandb == "online" else "offline",
        config=dict(run_config),
    )


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
