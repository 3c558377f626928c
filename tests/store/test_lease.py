"""One process works on a run, seen by its lease, and no answer is lost while another one holds the file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
from child_process import child, line_of
from run_record import run_record

from morfi.errors import InputError, MorfiError
from morfi.questions.question import Question
from morfi.runs.life import Life
from morfi.runs.provenance import attempt_record
from morfi.store import Store, lease
from morfi.store.records import AttemptEnd, AttemptRecord, CompletionRow, JudgedAnswer

QUESTIONS = [Question(f"q{i}", "P17", f"s{i}", f"Which country is s{i} in?", ("France",)) for i in range(9)]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = run_record(n_planned=9)
END = AttemptEnd(NOW, "done", 1.0, 1.0, 1, 1, 1)

# Begins an attempt at the run, says so, and lives until it is killed.
CHILD = """
import sys, time
from pathlib import Path
from morfi.runs.provenance import attempt_record
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
def started(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line."""
    with child(code, path) as process:
        assert line_of(process)
        yield process


def elsewhere(pid: int = 17) -> AttemptRecord:
    return replace(attempt_record("morfi eval", {}, "cpu"), host="node17", pid=pid)


def here() -> AttemptRecord:
    return attempt_record("morfi eval", {}, "cpu")


def answers(first: int, n: int, attempt: int = 1) -> list[CompletionRow]:
    return [
        CompletionRow(
            "run-a", f"q{i}", 0, "p", JudgedAnswer("t", "t", "stop", True, True, True, 1, 1, 1, attempt)
        )
        for i in range(first, first + n)
    ]


def status(store: Store) -> str:
    return store.runs(1)[0].status


def change(store: Store, what: str) -> None:
    connection = duckdb.connect(str(store.path))
    connection.execute(f"UPDATE lease SET {what}")
    connection.close()


def test_a_killed_process_frees_its_run_at_once_before_its_parent_has_waited(store: Store) -> None:
    with started(CHILD, store.path) as process:
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
    with started(CHILD, store.path) as process:
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
    with store.going_on(list[str]().append):
        deadline = time.monotonic() + 20
        while until() == written and time.monotonic() < deadline:
            time.sleep(0.05)
    assert until() > written


@pytest.mark.long
def test_answers_are_kept_while_a_reader_holds_the_file_and_the_end_waits_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morfi.store.file._FIRST_WORD_S", 0.3)
    said: list[str] = []

    def hear(word: str) -> None:
        said.append(word)
        if "waiting until it lets go" in word:
            reader.kill()

    number = store.begin_attempt("run-a", here())
    with store.going_on(hear):
        store.write_completions(answers(0, 2))
        with started(READER, store.path) as reader:
            for first in (2, 4):
                store.write_completions(answers(first, 2))
            assert store.finished("run-a") == {("q0", 0), ("q1", 0)}
            (word,) = said
            assert f"locked by PID {reader.pid} (" in word
            assert "what is answered is kept until it lets go" in word
            store.end_attempt("run-a", number, END)
    assert any("waiting until it lets go" in word for word in said[1:])
    assert len(store.finished("run-a")) == 6
    store.write_completions(answers(6, 3))
    assert status(store) == "done"


def test_answers_that_were_kept_go_with_the_next_ones(store: Store) -> None:
    store.begin_attempt("run-a", here())
    with store.going_on(list[str]().append):
        with started(READER, store.path):
            store.write_completions(answers(0, 2))
        store.write_completions(answers(2, 2))
        assert len(store.finished("run-a")) == 4


def test_nobody_waits_outside_a_run_or_after_an_error(store: Store) -> None:
    number = store.begin_attempt("run-a", here())
    with started(READER, store.path) as reader:
        with pytest.raises(InputError, match=f"locked by PID {reader.pid}"):
            store.write_completions(answers(0, 1))
        with store.going_on(list[str]().append), pytest.raises(InputError, match="locked by PID"):
            store.end_attempt("run-a", number, END, wait=False)
    assert store.finished("run-a") == set()


def test_a_process_that_is_seen_to_run_keeps_its_run_whatever_the_clock_says(store: Store) -> None:
    with started(CHILD, store.path) as process:
        process.send_signal(signal.SIGSTOP)
        ago = f"renewed_at - INTERVAL {lease.LEASE_S * 2} SECOND"
        change(store, f"renewed_at = {ago}, expires_at = renewed_at - INTERVAL {lease.LEASE_S} SECOND")
        assert status(store) == "running"
        with pytest.raises(
            InputError, match=r"sign of life \d+ s ago\); wait until it ends, or stop it"
        ) as refused:
            store.begin_attempt("run-a", here())
        assert "is free in" not in str(refused.value)
        process.kill()
        process.wait()
        assert store.begin_attempt("run-a", here()) == 2


@pytest.mark.parametrize(
    ("read", "sent", "seen"),
    [
        (FileNotFoundError, ProcessLookupError, False),
        (ProcessLookupError, ProcessLookupError, False),
        (FileNotFoundError, PermissionError, None),
        (FileNotFoundError, None, None),
        (PermissionError, ProcessLookupError, None),
    ],
)
def test_a_process_that_may_not_be_seen_is_not_taken_for_gone(
    monkeypatch: pytest.MonkeyPatch, read: type[OSError], sent: type[OSError] | None, seen: bool | None
) -> None:
    """As where /proc is mounted with hidepid."""
    name = lease.process_name(os.getpid())
    assert lease.is_running(name) is True
    plain = Path.read_text

    def read_text(path: Path, *args: str) -> str:
        if path.name == "stat":
            raise read
        return plain(path, *args)

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), 0)
        if sent is not None:
            raise sent

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "kill", kill)
    assert lease.is_running(name) is seen


def test_the_lease_is_renewed_after_an_error_that_is_said_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, failures, said, renewed = lease.keep, [1, 2, 3], list[str](), threading.Event()

    def failing(connection: duckdb.DuckDBPyConnection, run_id: str, number: int) -> None:
        if failures:
            failures.pop()
            raise duckdb.InternalException("out of luck")
        keep(connection, run_id, number)
        renewed.set()

    store.begin_attempt("run-a", here())
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    monkeypatch.setattr(lease, "keep", failing)
    with store.going_on(said.append):
        assert renewed.wait(20)
    (word,) = said
    assert "the lease was not renewed, which is tried again" in word
    assert "out of luck" in word


# Answers while a reader holds the store, and is ended by signals as `morfi` is.
KEEPING = """
import sys, time
from pathlib import Path
from morfi.runs.life import Life
from morfi.terminal import ended_by_signals
from morfi.store import Store
from morfi.store.records import CompletionRow, JudgedAnswer

class Progress:
    def phase(self, text): print(text, flush=True)

def answers(first, n):
    numbers = range(first, first + n)
    answer = JudgedAnswer("t", "t", "stop", True, True, True, 1, 1, 1, 1)
    return [CompletionRow("run-a", f"q{i}", 0, "p", answer) for i in numbers]

store = Store(Path(sys.argv[1]), lock_timeout_s=0.3)
life = Life(store.run("run-a"), store, Progress(), "morfi eval")
with ended_by_signals(), life.attempt(started=0.0, device="cpu"):
    print("begun", flush=True)
    sys.stdin.readline()
    store.write_completions(answers(0, 2))
    store.write_completions(answers(2, 3))
    time.sleep(600)
"""


def ended_while_held(store: Store, process: subprocess.Popen[str]) -> list[str]:
    """The lines of `process` until it waits for the reader to let go of what it keeps."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go on\n")
    process.stdin.flush()
    said = [process.stdout.readline()]
    process.send_signal(signal.SIGTERM)
    return [*said, process.stdout.readline()]


@pytest.mark.long
def test_what_is_kept_is_stored_after_a_signal_as_soon_as_the_file_is_free(store: Store) -> None:
    with started(KEEPING, store.path) as process:
        with started(READER, store.path):
            *_, word = ended_while_held(store, process)
            assert re.fullmatch(r"waiting until [25] results are stored, .*again gives them up\n", word)
            time.sleep(0.5)
            assert process.poll() is None
        out, _ = process.communicate(timeout=30)
    assert "stopped; " in out
    assert "lost" not in out
    assert len(store.finished("run-a")) == int(word.split()[2])
    assert store.query("SELECT status, message FROM attempt_end").to_pylist() == [
        {"status": "interrupted", "message": "SIGTERM"}
    ]


@pytest.mark.long
def test_a_second_signal_gives_up_what_is_kept_and_says_how_much(store: Store) -> None:
    with started(KEEPING, store.path) as process, started(READER, store.path):
        *_, word = ended_while_held(store, process)
        n = word.split()[2]
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert f"{n} results are lost, and will be made again" in out
        assert "the end of this attempt could not be stored: Ctrl-C" in out
    assert store.finished("run-a") == set()
    assert status(store) == "interrupted"


def test_what_begins_an_attempt_waits_for_the_file_with_a_word(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morfi.store.file._FIRST_WORD_S", 0.3)

    class Heard(list[str]):
        def phase(self, word: str) -> None:
            self.append(word)
            if "waiting until it lets go" in word:
                reader.kill()

        def start(self, n_total: int, n_done: int, unit: str) -> None: ...

        def advance(self, n: int) -> None: ...

    said = Heard()
    other = replace(RUN, run_id="run-b")
    with started(READER, store.path) as reader:
        life = Life(other, store, said, "morfi eval", questions={"test": QUESTIONS})
        with life.attempt(started=0.0, device="cpu") as attempt:
            assert attempt.number == 1
    assert any("waiting until it lets go" in word for word in said)
    assert store.run("run-b").run_id == "run-b"
