"""Event files, as TensorBoard reads them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpclip.errors import MedpclipError


class EventFiles:
    """Writes scalars "KIND/NAME" into an event file of its own; readers put a run's files together.

    A file begins with a session start at its first step, by which TensorBoard drops what earlier files say of that step and
    later ones: the run was resumed, or cut off before its first checkpoint. TensorBoard's own writers put the host's name
    into the file's name, so this one doesn't use them.

    Args:
        folder: of the event files; it is made.
        step: the checkpoint's; 0 for a new run.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise MedpclipError(
                "key 'tracking.tensorboard' needs tensorboard; install medpclip[train] or set it to false"
            ) from None
        self._event, self._summary = Event, Summary
        # Readers take the files in the order of their names.
        self.path = folder / f"events.out.tfevents.{time.time_ns():020d}"
        try:
            folder.mkdir(exist_ok=True)
            self._records = RecordWriter(open(self.path, "xb"))  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise self._unwritable(error) from None
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        summary = self._summary(
            value=[self._summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in values.items()]
        )
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # every record was flushed
            self._records.close()

    def _write(self, event: Any) -> None:
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> MedpclipError:
        return MedpclipError(f"{self.path}: can't be written ({error.strerror}); make room, then --resume")
