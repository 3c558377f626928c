"""One process works on a run, seen by its lease, and no answer is lost while another one holds the file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from morfi.errors import InputError, MorfiError
from morfi.provenance import attempt_record
from morfi.store import Store, lease
from morfi.store.records import AttemptEnd, AttemptRecord, CompletionRow, RunRecord
from morfi.types import Question

QUESTIONS = [Question(f"q{i}", "P17", f"s{i}", f"Which country is s{i} in?", ("France",)) for i in range(9)]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = RunRecord("run-a", "eval", NOW, "f", {}, "m", "a", None, None, None, "d", "d", "p", True, 0, 9)
END = AttemptEnd(NOW, "done", 1.0, 1.0, 1, 1, 1)

# Begins an attempt at the run, says so, and lives until it is killed.
CHILD = """
import sys, time
from pathlib import Path
from morfi.provenance import attempt_record
from morfi.store import Store
store = Store(Path(sys.argv[1]), lock_timeout_s=20)
print(store.begin_attempt("run-a", attempt_record("morfi eval", {}, "cpu")), flush=True)
time.sleep(600)
"""
READER = """
import sys, duckdb
held = duckdb.connect(sys.argv[1], read_only=True)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "morfi.duckdb", lock_timeout_s=0.3)
    store.begin_run(RUN, {"test": QUESTIONS})
    return store


@contextmanager
def child(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def elsewhere(pid: int = 17) -> AttemptRecord:
    return replace(attempt_record("morfi eval", {}, "cpu"), host="node17", pid=pid)


def here() -> AttemptRecord:
    return attempt_record("morfi eval", {}, "cpu")


def answers(first: int, n: int, attempt: int = 1) -> list[CompletionRow]:
    return [
        CompletionRow("run-a", f"q{i}", 0, "p", "t", "t", "stop", True, 1, 1, 1, attempt)
        for i in range(first, first + n)
    ]


def status(store: Store) -> str:
    return store.runs(1)[0].status


def change(store: Store, what: str) -> None:
    connection = duckdb.connect(str(store.path))
    connection.execute(f"UPDATE lease SET {what}")
    connection.close()


def test_a_killed_process_frees_its_run_at_once_before_its_parent_has_waited(store: Store) -> None:
    with child(CHILD, store.path) as process:
        assert status(store) == "running"
        with pytest.raises(InputError, match=f"run-a is being worked on by PID {process.pid} on .* since 20"):
            store.check_free("run-a")
        process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while status(store) == "running" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.returncode is None  # a zombie
        assert status(store) == "interrupted"
        assert store.begin_attempt("run-a", here()) == 2


def test_a_second_process_is_refused_wherever_it_starts(store: Store) -> None:
    with child(CHILD, store.path) as process:
        for start in (
            lambda: store.check_free("run-a"),
            lambda: store.begin_run(RUN, {"test": QUESTIONS}),
            lambda: store.begin_attempt("run-a", here()),
        ):
            with pytest.raises(InputError, match=f"by PID {process.pid} on .*wait until it ends") as refused:
                start()
            assert "\n" not in str(refused.value)
        store.begin_run(replace(RUN, run_id="run-b"), {"test": QUESTIONS})
        assert store.begin_attempt("run-b", here()) == 1


def test_a_pid_that_another_program_got_is_no_sign_of_life(store: Store) -> None:
    store.begin_attempt("run-a", here())
    assert status(store) == "running"
    process = lease.process_name(os.getpid())
    assert process is not None
    place, pid, began = process.rsplit("/", 2)
    change(store, f"process = '{place}/{pid}/{int(began) - 1}'")
    assert status(store) == "interrupted"
    change(store, f"process = '{place}/1/1', pid = 1")
    assert status(store) == "interrupted"
    store.check_free("run-a")


def test_a_lease_of_another_host_runs_out(store: Store) -> None:
    store.begin_attempt("run-a", elsewhere())
    assert status(store) == "running"
    with pytest.raises(InputError, match=r"PID 17 on node17 .* the run is free in (300|29\d) s"):
        store.check_free("run-a")
    ago = f"renewed_at - INTERVAL {lease.LEASE_S + 1} SECOND"
    change(store, f"renewed_at = {ago}, expires_at = renewed_at - INTERVAL 1 SECOND")
    assert status(store) == "interrupted"
    assert store.query("SELECT status FROM runs").to_pylist() == [{"status": "interrupted"}]
    store.check_free("run-a")


def test_a_lease_from_a_clock_far_ahead_locks_nobody_out_for_long() -> None:
    def one(ahead_s: float) -> lease.Lease:
        renewed = NOW + timedelta(seconds=ahead_s)
        lasts = timedelta(seconds=lease.LEASE_S)
        return lease.Lease("run-a", 1, "node17", 17, None, renewed, renewed, renewed + lasts)

    assert one(0).is_alive(NOW)
    assert one(lease.LEASE_S * 0.9).is_alive(NOW)
    assert one(-lease.LEASE_S * 0.9).is_alive(NOW)
    assert not one(lease.LEASE_S * 1.1).is_alive(NOW)
    assert not one(-lease.LEASE_S * 1.1).is_alive(NOW)


def test_who_lost_its_run_writes_nothing_more_and_says_who_has_it(store: Store) -> None:
    slept = Store(store.path, lock_timeout_s=1)
    assert slept.begin_attempt("run-a", here()) == 1
    slept.write_completions(answers(0, 2))
    change(store, "expires_at = renewed_at - INTERVAL 1 SECOND")
    assert store.begin_attempt("run-a", elsewhere()) == 2
    with pytest.raises(MorfiError, match="run-a was taken over by PID 17 on node17, because"):
        slept.write_completions(answers(2, 2))
    slept.end_attempt("run-a", 1, replace(END, status="failed"))
    assert status(store) == "running"
    store.write_completions(answers(2, 7, attempt=2))
    store.end_attempt("run-a", 2, END)
    assert status(store) == "done"
    assert store.query("SELECT count(*) AS n FROM lease").to_pylist() == [{"n": 0}]
    assert store.query(
        "SELECT attempt, count(*) AS n FROM completion GROUP BY ALL ORDER BY 1"
    ).to_pylist() == [
        {"attempt": 1, "n": 2},
        {"attempt": 2, "n": 7},
    ]


def test_a_lease_is_renewed_by_every_write_and_by_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def until() -> datetime:
        (row,) = store.query("SELECT expires_at FROM lease").to_pylist()
        return row["expires_at"]  # type: ignore[no-any-return]

    store.begin_attempt("run-a", here())
    change(store, "expires_at = renewed_at")
    store.write_completions(answers(0, 1))
    written = until()
    assert written > datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=200)
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    with store.going_on(None):
        deadline = time.monotonic() + 20
        while until() == written and time.monotonic() < deadline:
            time.sleep(0.05)
    assert until() > written


def test_answers_are_kept_while_a_reader_holds_the_file_and_the_end_waits_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morfi.store.file._FIRST_WORD_S", 0.3)
    said: list[str] = []
    number = store.begin_attempt("run-a", here())
    with store.going_on(said.append):
        store.write_completions(answers(0, 2))
        with child(READER, store.path) as reader:
            for first in (2, 4):
                store.write_completions(answers(first, 2))
            assert store.finished("run-a") == {("q0", 0), ("q1", 0)}
            (word,) = said
            assert f"locked by PID {reader.pid} (" in word
            assert "what is answered is kept until it lets go" in word
            threading.Timer(1.0, reader.kill).start()
            store.end_attempt("run-a", number, END)
    assert any("waiting until it lets go" in word for word in said[1:])
    assert len(store.finished("run-a")) == 6
    store.write_completions(answers(6, 3))
    assert status(store) == "done"


def test_answers_that_were_kept_go_with_the_next_ones(store: Store) -> None:
    store.begin_attempt("run-a", here())
    with store.going_on(None):
        with child(READER, store.path):
            store.write_completions(answers(0, 2))
        store.write_completions(answers(2, 2))
        assert len(store.finished("run-a")) == 4


def test_nobody_waits_outside_a_run_or_after_an_error(store: Store) -> None:
    number = store.begin_attempt("run-a", here())
    with child(READER, store.path) as reader:
        with pytest.raises(InputError, match=f"locked by PID {reader.pid}"):
            store.write_completions(answers(0, 1))
        with store.going_on(None), pytest.raises(InputError, match="locked by PID"):
            store.end_attempt("run-a", number, END, wait=False)
    assert store.finished("run-a") == set()
