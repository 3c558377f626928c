"""A run that was stopped goes on to the rows of one that was not."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from evaluated import facts, run
from progress_log import Log

from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig
from morfi.store import Store

CHILD = Path(__file__).parent / "eval_child.py"

pytestmark = pytest.mark.usefixtures("isolated_cache")


@pytest.mark.long
@pytest.mark.parametrize(
    ("stop_after", "resume", "error", "status", "message"),
    [
        (0, "auto", KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (1, "by id", KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (6, "last", KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (0, "by id", RuntimeError("the engine died"), "failed", "the engine died"),
        (4, "auto", MemoryError(), "failed", "MemoryError"),
    ],
)
def test_a_stopped_run_resumes_to_the_rows_of_an_uninterrupted_one(
    *,
    config: EvalConfig,
    store: Store,
    serving: Any,
    stop_after: int,
    resume: str,
    error: BaseException,
    status: str,
    message: str,
) -> None:
    whole = facts(store, run(config, store, serving))
    all_batches, serving.batches = serving.batches, []
    serving.stop_after, serving.error = stop_after, error
    log = Log()
    with pytest.raises(type(error)):
        run(config, store, serving, log=log)
    stopped = store.runs(1)[0]
    assert (stopped.status, stopped.n_done, stopped.n_attempts) == (status, 3 * stop_after, 1)
    assert log.phases[-1] == f"stopped; go on with: morfi eval --resume {stopped.run_id} --db {store.path}"
    (end,) = store.query(f"FROM attempt_end WHERE run_id = '{stopped.run_id}'").to_pylist()
    assert (end["status"], end["message"], end["n_requests"]) == (status, message, 3 * stop_after)

    serving.stop_after = None
    log = Log()
    resumed = run(config, store, serving, {"by id": stopped.run_id}.get(resume, resume), log)
    assert resumed == stopped.run_id
    assert serving.batches == all_batches
    assert log.starts == [(20, 3 * stop_after)]
    assert facts(store, resumed) == whole
    summary = store.summary(resumed)
    assert (summary.status, summary.n_attempts, summary.n_requests) == ("done", 2, 20)
    attempts = [row["attempt"] for row in store.samples(resumed).to_pylist()]
    assert (attempts.count(1), attempts.count(2)) == (3 * stop_after, 20 - 3 * stop_after)


@pytest.mark.long
def test_a_failing_attempt_after_an_interrupted_one_still_loses_nothing(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    whole = facts(store, run(config, store, serving))
    for stop_after in (9, 10, 12):  # counted with the seven batches of the whole run
        serving.stop_after = stop_after
        with pytest.raises(RuntimeError):
            run(config, store, serving, "auto" if stop_after > 9 else None)
    serving.stop_after = None
    run_id = run(config, store, serving, "auto")
    assert facts(store, run_id) == whole
    assert store.summary(run_id).n_attempts == 4
    assert len(serving.batches) == 14


@pytest.mark.parametrize("by_id", [True, False])
def test_resuming_a_finished_run_starts_no_engine_and_adds_nothing(
    config: EvalConfig, store: Store, serving: Any, by_id: bool
) -> None:
    run_id = run(config, store, serving)
    before = store.query("SELECT * FROM runs").to_pylist()
    assert run(config, store, serving, run_id if by_id else "auto") == run_id
    assert len(serving.starts) == 1
    assert store.query("SELECT * FROM runs").to_pylist() == before


@pytest.mark.long
def test_resume_auto_begins_a_new_run_where_none_has_the_same_fingerprint(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    first = run(config, store, serving, "auto")
    assert run(dataclasses.replace(config, seed=1), store, serving, "auto") != first
    assert run(config, store, serving, "auto") == first


def test_a_run_with_another_fingerprint_is_not_resumed(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    run_id = run(config, store, serving)
    with pytest.raises(InputError, match=rf"run {run_id} cannot be resumed: .* without --resume"):
        run(dataclasses.replace(config, max_tokens=8), store, serving, run_id)
    assert len(serving.starts) == 1


def child(database: Path, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", str(CHILD), str(pause_s), "eval", "--ckpt", "slow", "--batch", "12"]
    return subprocess.Popen(
        [*command, "--db", str(database), "--resume", "auto", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_five_kills_at_random_moments_and_a_resume_give_the_rows_of_an_uninterrupted_run(
    tmp_path: Path,
) -> None:
    database = tmp_path / "killed.duckdb"
    for _ in range(5):
        process = child(database, 0.1)
        assert process.stderr is not None
        assert "starting vLLM" in process.stderr.readline()
        time.sleep(random.uniform(0, 0.6))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        if store_runs := Store(database).runs(9):
            assert len(store_runs) == 1
            assert store_runs[0].status == "interrupted"
            assert store_runs[0].n_done % 12 == 0
    found = {}
    for path, pause_s in ((database, 0.0), (tmp_path / "whole.duckdb", 0.0)):
        answer, said = child(path, pause_s).communicate(timeout=60)
        assert json.loads(answer)["n"] == 240, said
        found[path] = facts(Store(path), json.loads(answer)["run_id"])
        assert Store(path).query("SELECT count(*) AS n FROM completion").to_pylist() == [{"n": 240}]
    assert found[database] == found[tmp_path / "whole.duckdb"]


@pytest.mark.long
def test_ctrl_c_exits_with_130_keeps_whole_batches_and_says_how_to_go_on(tmp_path: Path) -> None:
    database = tmp_path / "a b.duckdb"
    process = child(database, 0.2)
    assert process.stderr is not None
    assert "starting vLLM" in process.stderr.readline()
    deadline = time.monotonic() + 60  # a busy machine takes long to the first batch
    while not (database.exists() and any(run.n_done for run in Store(database).runs(1))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    answer, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert answer == ""
    (summary,) = Store(database).runs(9)
    assert summary.status == "interrupted"
    assert summary.n_done % 12 == 0
    assert f"go on with: morfi eval --resume {summary.run_id} --db '{database}'" in said
    assert "Traceback" not in said
    answer, said = child(database, 0.0).communicate(timeout=60)
    assert json.loads(answer)["run_id"] == summary.run_id
    assert Store(database).summary(summary.run_id).n_attempts == 2
