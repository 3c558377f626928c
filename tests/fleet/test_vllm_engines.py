"""vLLM in actors of Ray, one of them killed, beside vLLM in this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from losing_engines import Killing

from morfi.engine.protocol import StartEngine
from morfi.evaluation.sweep import run_sweep
from morfi.evaluation.sweep_plan import SweepConfig
from morfi.fleet.ray_engines import running_ray
from morfi.latents.activations import load_activations
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.serve.engine import start_engine
from morfi.store import Store

pytest.importorskip("ray")
SWEPT = """
SELECT s.position, s.ckpt_sha256, c.* EXCLUDE (run_id, attempt)
FROM sweep_checkpoint s JOIN completion c ON c.run_id = s.eval_run_id WHERE s.run_id = '{}' ORDER BY ALL
"""


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray for all tests of this file."""
    with running_ray(2):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("starts_vllm", "ray_here")
def test_checkpoints_are_asked_and_captured_as_by_one_engine(
    own_experiment: Any, tmp_path: Path, log: Any
) -> None:
    experiment, train_run = own_experiment
    several = Killing(start_engine, 2)
    shutil.copyfile(experiment.store.path, tmp_path / "several.duckdb")
    asked: dict[Store, StartEngine] = {experiment.store: start_engine}
    asked[Store(tmp_path / "several.duckdb")] = several
    rows, captured = [], []
    for store, start in asked.items():
        config = CaptureConfig(train_run, (0, 1))
        found = run_capture(config, store, start, tmp_path / "out", log, new=False, command="")
        captured.append(load_activations(store, found.run_id, 1).residuals)
        swept = run_sweep(SweepConfig(train_run, batch=5), store, start, log, new=False, command="")
        rows.append(store.query(SWEPT.format(swept.run_id)).to_pylist())
    assert several.n_killed
    assert rows[0] == rows[1]
    for one, other in zip(*captured, strict=True):
        torch.testing.assert_close(torch.as_tensor(one.values), torch.as_tensor(other.values))
