"""Progress: readable on a terminal and in a log file."""

import pytest

from medpclip import progress
from medpclip.progress import Progress


def test_a_log_file_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 9.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("cells", 50, done=10) as bar:
        for _ in range(5):
            bar.advance(4)
    assert capsys.readouterr().err.splitlines() == [
        "cells: 22/50 images, 1.1/s, 26 s left",
        "cells: 30/50 images, 0.9/s, 22 s left",
    ]


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("cells", 4) as bar:
        bar.advance(4)
    assert "cells: 100%" in capsys.readouterr().err
    with Progress("cells", 4, shown=False) as bar:
        bar.advance(4)
    assert capsys.readouterr().err == ""
