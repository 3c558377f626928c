"""An experiment that is killed in every stage holds in the end what an undisturbed one holds."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_experiment import changed, write_experiment

from morfi.store import Store

CHILD = Path(__file__).parent / "run_child.py"
# Many batches in each stage, to be killed in.
BATCHES = changed(
    "split.batch=4", "train.epochs=1,2", "sweep.batch=4", "sae.train.tokens=20000", "steer.batch=8"
)
KILLED_IN = ["split"] * 3 + ["mix"] * 2 + ["train"] * 3 + ["sweep"] * 3 + ["capture"] * 3
KILLED_IN += ["sae train"] * 2 + ["find"] * 2 + ["steer"] * 2
# What each kind of run holds, without ids, times and folders.
TABLES: Mapping[str, str] = {
    "completion": "* EXCLUDE (run_id, attempt)",
    "asked": "* EXCLUDE (run_id)",
    "mixture": "* EXCLUDE (run_id)",
    "training_epoch": "level, seed, epoch, loss, n_steps, n_dev, n_dev_correct",
    "checkpoint": "level, seed, epoch_setting, epoch, adapter_sha256",
    "sweep_checkpoint": "position, level, seed, epoch_setting, epoch, ckpt_sha256",
    "captured_checkpoint": "position, level, seed, epoch_setting, epoch, ckpt_sha256, files",
    "trend_condition": "* EXCLUDE (run_id)",
    "trend_summary": "* EXCLUDE (run_id)",
    "false_discoveries": "* EXCLUDE (run_id)",
    "latent_trend": "* EXCLUDE (run_id)",
    "steer_direction": "* EXCLUDE (run_id)",
    "steered_answer": "* EXCLUDE (run_id, attempt)",
}


def held(folder: Path) -> dict[str, Any]:
    """The rows of every table, by kind and checkpoint of their runs, and the files that runs have made."""
    store = Store(folder / "morfi.duckdb")
    found: dict[str, Any] = {"runs": rows(store, "SELECT kind, ckpt_sha256, n_planned FROM run")}
    for table, columns in TABLES.items():
        own = f"SELECT run_id AS id, {columns} FROM {table}"
        query = "SELECT run.kind AS command, run.ckpt_sha256 AS of, held.* EXCLUDE (id)"
        found[table] = rows(store, f"{query} FROM ({own}) held JOIN run ON run_id = id")
    for root in ("checkpoints", "activations", "cache/checkpoints"):
        files = (folder / root).rglob("*.safetensors")
        found[root] = sorted((one.name, hashlib.sha256(one.read_bytes()).hexdigest()) for one in files)
    return found


def rows(store: Store, query: str) -> list[str]:
    """The rows of a query in an order that does not depend on when they were written."""
    found = store.query(query).to_pylist()
    return sorted(json.dumps(one, default=str, sort_keys=True) for one in found)


def started(folder: Path, data: Path, pause_s: float) -> subprocess.Popen[str]:
    environment = os.environ | {"MORFI_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", CHILD, str(pause_s), data, "run", "my.toml", *BATCHES, "--json"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def killed_in(stage: str, process: subprocess.Popen[str], after_s: float) -> None:
    """Kills the process `after_s` after it began the stage."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.rstrip().endswith(f": {stage}") and "stage" in line:
            break
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_an_experiment_killed_in_every_stage_ends_as_an_undisturbed_one(
    tmp_path: Path, tiny_model: Path, data_file: Path
) -> None:
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    for folder in (whole, disturbed):
        folder.mkdir()
        write_experiment(folder / "my.toml", tiny_model, data_file)
    draw = random.Random(0)
    for stage in KILLED_IN:
        killed_in(stage, started(disturbed, data_file, 0.1), draw.uniform(0, 1.5))
    n_attempts = len(Store(disturbed / "morfi.duckdb").query("SELECT * FROM attempt").to_pylist())
    for folder, pause_s in ((whole, 0.0), (disturbed, 0.0)):
        ended = started(folder, data_file, pause_s)
        _, said = ended.communicate(timeout=300)
        assert ended.returncode == 0, said
    assert n_attempts > len(rows(Store(whole / "morfi.duckdb"), "SELECT * FROM attempt")) / 2
    ours, theirs = held(disturbed), held(whole)
    assert {name for name in ours if ours[name] != theirs[name]} == set()
    assert all(theirs[name] for name in theirs)
