"""Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpclip.errors import MedpclipError
from medpclip.files import write_atomically

if TYPE_CHECKING:
    from medpclip.train.config import TrackingConfig

_ID = "wandb_id"


class WeightsAndBiases:
    """Sends scalars "KIND/NAME" to one run there, which a resumed run goes on with.

    Weights & Biases can't take back what it was sent. It needn't: what a resumed run does again is what it did before, to
    the bit, so only its timings can differ. Online, what it has already stays, and isn't sent again. Offline, each start
    writes a folder of its own; `wandb sync` puts those of one run together, in their order, but numbers the lines anew
    where they overlap. So the step is also a metric, "step", and the one that charts count by.

    Args:
        folder: the run's; it keeps the id of the run there.
        config: project, name and whether it's sent or kept for `wandb sync`.
        run_config: the resolved configuration as it may be shared.
    """

    def __init__(self, folder: Path, config: TrackingConfig, run_config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise MedpclipError("key 'tracking.wandb' needs wandb; install medpclip[train] or set it to off") from None
        try:
            self._run = wandb.init(
                project=config.project,
                name=config.name or folder.absolute().name,
                id=_run_id(folder / _ID),
                resume="allow",
                dir=folder,
                mode="online" if config.wandb == "online" else "offline",
                config=dict(run_config),
                settings=wandb.Settings(
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    host="-",
                    x_disable_machine_info=True,
                    x_disable_meta=True,
                    x_save_requirements=False,
                ),
            )
        except (wandb.Error, ValueError) as error:  # no login, no connection, a name it doesn't take
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MedpclipError(
                f"key 'tracking.wandb': can't start ({reason}); mend it (wandb login), or set it to offline or off"
            ) from None
        self._begin: int = self._run.starting_step  # behind the last that it has; 0 offline, where it doesn't know
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        if step >= self._begin:
            self._run.log({f"{kind}/{name}": value for name, value in values.items()} | {"step": step}, step=step)

    def close(self) -> None:
        self._run.finish()


def _run_id(path: Path) -> str:
    try:
        if not path.is_file():
            write_atomically(path, secrets.token_hex(6).encode())
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise MedpclipError(f"{path}: can't be read or written ({error.strerror}); make room, then --resume") from None
