from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_a_training_killed_anywhere_ends_in_the_same_checkpoints(
    tiny_models: dict[str, Path], tmp_path: Path, isolated_cache: Path
) -> None:
    child = Path(__file__).with_name("train_child.py")
    done = subprocess.run(
        [sys.executable, str(child), str(tiny_models["llama"]), str(tmp_path / "runs"), "7", "[0, 7, 7]"],
        env=os.environ | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, *killed = json.loads(done.stdout)
    assert whole["kills"] == 0
    assert len(whole["sha256s"]) >= 4  # two epochs of two trainings, and where dev accuracy was best
    assert sum(each["kills"] for each in killed) >= 10
    for each in killed:
        assert each["sha256s"] == whole["sha256s"]
        assert each["left"] == []
