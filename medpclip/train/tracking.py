"""What a run writes down: log.jsonl always, Weights & Biases on request."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpclip.errors import MedpclipError
from medpclip.files import write_atomically
from medpclip.train.config import TrackingConfig

LOG = "log.jsonl"


class Tracker:
    """Appends a line per logged step; after a resume, the log goes back to the checkpoint's step first.

    Weights & Biases can't take back what it was sent (its rewinding is in beta, and needs its servers), and drops lines
    of earlier steps without a word. So a resumed run begins a new run there, "NAME from step STEP", in the group of the
    first one: each holds what was logged at the time, and the resumed one is the valid one from its step on. It is sent
    no path of this machine beyond a file's own name, no host name, command line or code.

    Args:
        folder: the run's.
        config: whether and how Weights & Biases is used.
        run_config: the whole resolved configuration, for the record.
        step: the step at which the run begins or goes on.
    """

    def __init__(self, folder: Path, config: TrackingConfig, run_config: Mapping[str, Any], step: int) -> None:
        self.path = folder / LOG
        _cut_back(self.path, step)
        self._wandb = _start_wandb(folder, config, run_config, step) if config.wandb != "off" else None
        self._stream = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line: the step, what kind of line, and finite numbers (others as null)."""
        line = {"step": step, "kind": kind} | {k: v if _finite(v) else None for k, v in values.items()}
        try:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        except OSError as error:
            raise MedpclipError(f"{self.path}: can't be written ({error.strerror}); make room, then --resume") from None
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # each line was flushed by `log`, which says so if it can't be
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


def _start_wandb(folder: Path, config: TrackingConfig, run_config: Mapping[str, Any], step: int) -> Any:
    try:
        import wandb
    except ImportError:
        raise MedpclipError("key 'tracking.wandb' needs wandb; install medpclip[train] or set it to off") from None
    group = folder / "wandb_group"  # one per run folder, kept in it, so that a resumed run finds its siblings
    if not group.is_file():
        write_atomically(group, secrets.token_hex(4).encode())
    name = config.name or folder.absolute().name
    try:
        return wandb.init(
            project=config.project,
            name=f"{name} from step {step}" if step else name,
            group=f"{name}-{group.read_text()}",
            dir=folder,
            mode="online" if config.wandb == "online" else "offline",
            config=_without_paths(run_config) | {"resumed_at_step": step},
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, x_disable_machine_info=True, x_disable_meta=True
            ),
        )
    except (wandb.Error, ValueError) as error:  # no login, no connection, a name it doesn't take
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MedpclipError(
            f"key 'tracking.wandb': can't start ({reason}); mend it (wandb login), or set it to offline or off"
        ) from None


def _without_paths(value: Any) -> Any:
    """Configuration in which paths from a root or a home are cut to their last name."""
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "..")) else value


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
