"""What a run writes down while it trains: one tracker in front of all places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from medpclip.train.tracking.jsonl import LOG, JsonLines, read_log

if TYPE_CHECKING:  # plots read logs, and need no torch
    from medpclip.train.config import TrackingConfig

__all__ = ["LOG", "Tracker", "read_log"]


class Tracker:
    """Writes each line to log.jsonl, and to TensorBoard and Weights & Biases on request.

    After a resume, log.jsonl and the event files go back to the checkpoint's step; the run at Weights & Biases goes on.
    None of them is told a host name, a path of this machine beyond a file's own name, a command line or code.

    Args:
        folder: the run's, which exists.
        config: which places there are besides log.jsonl.
        run_config: the resolved configuration as it may be shared (`public_config`), for the record.
        step: the step at which the run begins or goes on.
        writes: False on all ranks but the first: nothing is written then.
    """

    def __init__(
        self, folder: Path, config: TrackingConfig, run_config: Mapping[str, Any], step: int, writes: bool = True
    ) -> None:
        self._places: list[Place] = []
        if not writes:
            return
        try:
            self._places.append(JsonLines(folder / LOG, step))
            if config.tensorboard:
                from medpclip.train.tracking.event_files import EventFiles

                self._places.append(EventFiles(folder / "tensorboard", step))
            if config.wandb != "off":
                from medpclip.train.tracking.weights_and_biases import WeightsAndBiases

                self._places.append(WeightsAndBiases(folder, config, run_config))
        except BaseException:
            self.close()
            raise

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line of numbers: the steps done so far, and what kind of line ("train", "eval").

        Raises:
            MedpclipError: it can't be written.
        """
        for place in self._places:
            place.log(step, kind, values)

    def close(self) -> None:
        """Finish all places; more than once is harmless."""
        while self._places:
            self._places.pop().close()


class Place(Protocol):
    """Where lines go."""

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
