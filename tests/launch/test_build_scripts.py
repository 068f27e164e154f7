"""The job scripts that build shards, run by bash as Slurm would."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

LAUNCH = Path(__file__).parents[2] / "launch"
RECIPE = """
name: cells
title: Cells of a test
modality: microscopy
licence: MIT
citation: nobody
reader: classification
options: {images: images}
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "cells.yaml").write_text(RECIPE)
    (tmp_path / "source" / "images").mkdir(parents=True)
    for i in range(130):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / "source" / "images" / f"{i}.png")
    return tmp_path


def run(work: Path, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = os.environ | {"PATH": path, "MEDPCLIP_SALT": "a secret that only tests know"} | environment
    return subprocess.run(["bash", LAUNCH / script, *words], cwd=work, env=given, capture_output=True, text=True)


def test_an_array_and_its_merge(work: Path) -> None:
    array = {"SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_STEP": "5"}
    for number, part in (("15", "2 of 2"), ("10", "1 of 2")):
        done = run(work, "build_shards.sbatch", "cells.yaml", "source", "out", SLURM_ARRAY_TASK_ID=number, **array)
        assert done.returncode == 0, done.stderr
        assert f"part {part} is converted" in done.stdout
    merged = run(work, "merge_shards.sbatch", "cells.yaml", "out")
    assert merged.returncode == 0, merged.stderr
    assert "cells: images: 130 found = 130 written + 0 quarantined" in merged.stdout
    assert "out: good" in merged.stdout


def test_one_part_of_an_array_again(work: Path) -> None:
    """Of an array of one job, the job's number alone doesn't say how many parts there are."""
    alone = {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_ID": "3"}
    done = run(work, "build_shards.sbatch", "cells.yaml", "source", "out", MEDPCLIP_PARTS="4", **alone)
    assert "part 3 of 4 is converted" in done.stdout, done.stderr


@pytest.mark.parametrize("script", ["build_shards.sbatch", "merge_shards.sbatch"])
def test_too_few_words(work: Path, script: str) -> None:
    done = run(work, script, "cells.yaml")
    assert done.returncode == 2 and f"usage: sbatch launch/{script} RECIPE" in done.stderr
