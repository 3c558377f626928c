"""Kills, interrupts and full disks keep whole batches."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import duckdb
import pytest
from answered_run import QUESTIONS, completions
from child_process import child, line_of
from run_record import run_record

from morfi.store import Store

# What the child processes share: a store, and endless whole batches of 64 rows that begin at the n-th.
CHILD = """
import sys
from pathlib import Path
from morfi.store import Store
from morfi.store.records import CompletionRow, JudgedAnswer
store = Store(Path(sys.argv[1]))
answer = JudgedAnswer("t", "t", "stop", True, True, True, 1, 1, 1, 1)
def batch(n):
    return [CompletionRow("run-a", f"q{n * 64 + i}", 0, "p" * 300, answer)
            for i in range(64)]
"""


def test_an_interrupt_while_the_file_is_opened_is_an_interrupt_and_lets_the_file_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Interrupted:
        def execute(self, _: str) -> None:
            raise RuntimeError("Query interrupted")  # what DuckDB makes of Ctrl-C

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(duckdb, "connect", lambda *_, **__: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        store.runs()
    assert closed == [True]


def test_an_interrupt_while_a_statement_runs_is_an_interrupt(store: Store) -> None:
    code = """
import signal, sys
from pathlib import Path
from morfi.store import Store

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have left it ignored
store = Store(Path(sys.argv[1]))
print(store.summary("last").n_done, flush=True)
try:
    store.query("SELECT sum(a.range * b.range) FROM range(10000000) a, range(1000000) b")
except KeyboardInterrupt:
    print("interrupted", store.summary("last").n_done, flush=True)
"""
    with child(code, store.path) as process:
        assert line_of(process) == "2"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert line_of(process) == "interrupted 2"


@pytest.mark.long
def test_a_full_disk_is_one_line_and_keeps_the_batches_before(store: Store) -> None:
    code = f"""{CHILD}
import os, resource
from morfi.errors import MorfiError
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
for n in range(1000):
    try:
        store.write_completions([r.__class__(*[os.urandom(2000).hex() if f == "prompt" else getattr(r, f)
            for f in r.__slots__]) for r in batch(n)])
    except MorfiError as error:
        print(n, error.exit_code, error)
        break
"""
    before = store.finished("run-a")
    with child(code, store.path) as process:
        n, _, message = line_of(process).partition(" ")
        process.wait(timeout=30)
    assert re.search(r"^1 .*morfi\.duckdb: the disk is full; what was written before is kept", message)
    assert int(n) > 0
    assert store.finished("run-a") == before | {(f"q{i}", 0) for i in range(int(n) * 64)}
    store.write_completions(completions(10**6, 1))
    assert ("q1000000", 0) in store.finished("run-a")


def test_a_disk_full_from_the_start_leaves_no_file(tmp_path: Path) -> None:
    code = f"""{CHILD}
import resource
from morfi.errors import MorfiError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    store.prepare()
except MorfiError as error:
    print(error.exit_code, error)
"""
    with child(code, tmp_path / "morfi.duckdb") as process:
        assert re.search(r"^1 .*/morfi\.duckdb: the disk is full", line_of(process))
        process.wait(timeout=30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_kill_at_any_moment_keeps_whole_batches_and_doubles_none(store: Store) -> None:
    code = f"""{CHILD}
for n in range(int(sys.argv[2]), 100000):
    store.write_completions(batch(n))
    print(n, flush=True)
"""
    patient = Store(store.path, lock_timeout_s=20)
    moments = random.Random(0)
    written = 0
    for _ in range(4):
        with child(code, store.path, written) as writer:
            acknowledged = [int(line_of(writer)) for _ in range(moments.randint(1, 4))][-1]
            time.sleep(moments.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            rest = writer.stdout.read() if writer.stdout else ""
        acknowledged = max([acknowledged, *map(int, re.findall(r"^(\d+)\n", rest, re.MULTILINE))])
        found = patient.query(
            "SELECT CAST(substr(question_id, 2) AS INTEGER) // 64 AS batch, count(*) AS n, "
            "count(DISTINCT question_id) AS distinct_n FROM completion GROUP BY ALL ORDER BY batch"
        ).to_pylist()
        assert {(row["n"], row["distinct_n"]) for row in found} == {(64, 64)}
        batches = [row["batch"] for row in found]
        assert batches == [*range(len(batches))]
        assert len(batches) in (acknowledged + 1, acknowledged + 2)
        written = max(0, len(batches) - 1)  # the next process writes the last batch again
    patient.prepare()
    assert not store.path.with_name("morfi.duckdb.wal").exists()


@pytest.mark.long
def test_a_kill_while_the_file_is_made_leaves_none_or_a_whole_one(tmp_path: Path) -> None:
    code = f"""{CHILD}
print("ready", flush=True)
for n in range(100000):
    Store(Path(sys.argv[1]) / f"{{n}}.duckdb").prepare()
"""
    moments = random.Random(1)
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        with child(code, folder) as maker:
            assert line_of(maker) == "ready"
            time.sleep(0.3 + moments.uniform(0, 0.2))
            maker.kill()
            maker.wait()
        made = sorted(folder.glob("*.duckdb"), key=lambda path: path.stat().st_mtime)
        for path in made[-2:]:
            assert Store(path).runs(1) == []
        Store(folder / f"{len(made)}.duckdb").begin_run(run_record(), {"test": QUESTIONS})
