from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from run_record import run_record

from morfi.errors import InputError
from morfi.questions.question import Question
from morfi.store import Store, schema
from morfi.store.file import lock_holder
from morfi.store.records import CompletionRow, JudgedAnswer
from morfi.store.schema import Migration

QUESTIONS = [Question(f"q{i}", "P17", f"s{i}", f"Which country is s{i} in?", ("France",)) for i in range(4)]
NEWEST = schema.newest()
NOTES = "CREATE TABLE note (run_id VARCHAR);"
NEXT = Migration(NEWEST + 1, "notes", f"{NOTES} INSERT INTO note SELECT run_id FROM run;")
BROKEN = Migration(NEWEST + 1, "broken", f"{NOTES} DROP VIEW runs; SELECT no_such_column;")

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


def completions(first: int, n: int, text: str = "France") -> list[CompletionRow]:
    answer = JudgedAnswer(text, "France", "stop", True, True, True, 1, 1, 1, 1)
    return [CompletionRow("run-a", f"q{i}", 0, "p", answer) for i in range(first, first + n)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "morfi.duckdb", lock_timeout_s=0.2)
    store.begin_run(run_record(), {"test": QUESTIONS})
    store.write_completions(completions(0, 2))
    return store


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "the child process said nothing for 30 s"
    return process.stdout.readline().strip()


def test_the_tables_of_a_store(store: Store) -> None:
    rows = store.query(
        "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() "
        "WHERE table_name IN (SELECT table_name FROM duckdb_tables()) ORDER BY table_oid, column_index"
    ).to_pylist()
    schema: dict[str, str] = {}
    for row in rows:
        column = f"{row['column_name']} {row['data_type']}{'?' if row['is_nullable'] else ''}"
        schema[row["table_name"]] = ", ".join(filter(None, [schema.get(row["table_name"], ""), column]))
    assert schema == {
        "schema_migration": "version INTEGER, name VARCHAR, applied_at TIMESTAMP",
        "run": "run_id VARCHAR, kind VARCHAR, created_at TIMESTAMP, fingerprint VARCHAR, config JSON, "
        "ckpt VARCHAR, ckpt_sha256 VARCHAR, base VARCHAR?, base_sha256 VARCHAR?, adapter_sha256 VARCHAR?, "
        "data VARCHAR, data_sha256 VARCHAR, prompt VARCHAR, bos BOOLEAN, seed BIGINT, n_planned BIGINT",
        "attempt": "run_id VARCHAR, attempt INTEGER, started_at TIMESTAMP, command VARCHAR, pid BIGINT, host "
        "VARCHAR, morfi_version VARCHAR, git_commit VARCHAR?, versions JSON, device VARCHAR, engine JSON",
        "attempt_end": "run_id VARCHAR, attempt INTEGER, ended_at TIMESTAMP, status VARCHAR, wall_s DOUBLE, "
        "generate_s DOUBLE, n_requests BIGINT, prompt_tokens BIGINT, output_tokens BIGINT, message VARCHAR?",
        "question": "data_sha256 VARCHAR, question_id VARCHAR, relation VARCHAR, subject VARCHAR, "
        "question VARCHAR, answers VARCHAR[]",
        "completion": "run_id VARCHAR, question_id VARCHAR, sample INTEGER, prompt VARCHAR, text VARCHAR, "
        "answer VARCHAR, finish_reason VARCHAR, correct BOOLEAN, prompt_tokens INTEGER, "
        "cached_tokens INTEGER, output_tokens INTEGER, attempt INTEGER, "
        "correct_squad BOOLEAN, correct_answer BOOLEAN",
        "asked": "run_id VARCHAR, question_id VARCHAR, split VARCHAR",
        "mixture": "run_id VARCHAR, level INTEGER, position INTEGER, question_id VARCHAR, category VARCHAR",
        "training_epoch": "run_id VARCHAR, level INTEGER, seed BIGINT, epoch INTEGER, loss DOUBLE, "
        "n_steps INTEGER, n_dev INTEGER, n_dev_correct INTEGER, train_s DOUBLE, dev_s DOUBLE, "
        "attempt INTEGER",
        "checkpoint": "run_id VARCHAR, level INTEGER, seed BIGINT, epoch_setting VARCHAR, epoch INTEGER, "
        "path VARCHAR, adapter_sha256 VARCHAR, manifest JSON, attempt INTEGER",
        "sweep_checkpoint": "run_id VARCHAR, position INTEGER, level INTEGER?, seed BIGINT?, "
        "epoch_setting VARCHAR?, epoch INTEGER?, ckpt_sha256 VARCHAR, eval_run_id VARCHAR, load_s DOUBLE, "
        "attempt INTEGER",
        "captured_checkpoint": "run_id VARCHAR, position INTEGER, level INTEGER?, seed BIGINT?, "
        "epoch_setting VARCHAR?, epoch INTEGER?, ckpt_sha256 VARCHAR, path VARCHAR, files JSON, "
        "load_s DOUBLE, capture_s DOUBLE, attempt INTEGER",
        "trend_condition": "run_id VARCHAR, position INTEGER, level INTEGER, seed BIGINT, "
        "ckpt_sha256 VARCHAR, explained_variance DOUBLE, l0 DOUBLE",
        "trend_summary": "run_id VARCHAR, n_questions BIGINT, n_firing BIGINT, expected_false DOUBLE, "
        "is_descriptive BOOLEAN, sae_sha256 VARCHAR, layer INTEGER",
        "false_discoveries": "run_id VARCHAR, s INTEGER, n_found BIGINT, fdr DOUBLE",
        "latent_trend": "run_id VARCHAR, latent INTEGER, direction TINYINT, rho FLOAT, s INTEGER, "
        "p_exact DOUBLE, slope FLOAT, score FLOAT, stability FLOAT?, mean_abs_rho FLOAT?, "
        "page_z DOUBLE?, page_p DOUBLE?, firing FLOAT, selected BOOLEAN, means FLOAT[]",
        "steer_direction": "run_id VARCHAR, position INTEGER, direction VARCHAR, kind VARCHAR, "
        "latent INTEGER?, layer INTEGER, operation VARCHAR, median_norm DOUBLE, trend TINYINT, s INTEGER?, "
        "firing DOUBLE?, parts JSON",
        "steered_answer": "run_id VARCHAR, served VARCHAR, direction VARCHAR, alpha DOUBLE, "
        "question_id VARCHAR, strength DOUBLE, text VARCHAR, answer VARCHAR, finish_reason VARCHAR, "
        "correct BOOLEAN, prompt_tokens INTEGER, cached_tokens INTEGER, output_tokens INTEGER, "
        "steered_tokens INTEGER, attempt INTEGER, correct_squad BOOLEAN, correct_answer BOOLEAN",
        "baseline": "run_id VARCHAR, split VARCHAR, relation VARCHAR, n BIGINT, answer VARCHAR, "
        "n_accepting BIGINT",
        "lease": "run_id VARCHAR, attempt INTEGER, host VARCHAR, pid BIGINT, process VARCHAR?, "
        "since TIMESTAMP, renewed_at TIMESTAMP, expires_at TIMESTAMP",
    }


def test_migrations_are_numbered_without_a_gap() -> None:
    versions = [migration.version for migration in schema.MIGRATIONS]
    assert versions == [*range(schema.FIRST + 1, schema.FIRST + 1 + len(versions))]


@pytest.mark.parametrize("use", [lambda store: store.prepare(), lambda store: store.runs(1)])
def test_a_file_of_an_earlier_release_is_brought_up_to_date_with_its_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch, use: Callable[[Store], object]
) -> None:
    rows = store.samples("run-a").to_pylist()
    before = store.query("SELECT version, name FROM schema_migration").to_pylist()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, NEXT))
    for _ in range(2):
        use(store)
        assert store.samples("run-a").to_pylist() == rows
        assert store.query("SELECT run_id FROM note").to_pylist() == [{"run_id": "run-a"}]
        applied = store.query("SELECT version, name FROM schema_migration ORDER BY version").to_pylist()
        assert applied == [*before, {"version": NEXT.version, "name": "notes"}]


def test_views_are_made_anew_after_a_migration(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("CREATE OR REPLACE VIEW accuracy AS SELECT 1 AS something_else")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, NEXT))
    assert store.accuracies("run-a")[-1].n == 2


def test_an_empty_database_becomes_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "empty.duckdb")
    duckdb.connect(str(store.path)).close()
    assert store.runs(5) == []
    assert store.query("SELECT max(version) AS v FROM schema_migration").to_pylist() == [{"v": NEWEST}]


def test_tables_of_another_morfi_are_refused_in_one_line(store: Store) -> None:
    connection = duckdb.connect(str(store.path))
    connection.execute("ALTER TABLE run DROP COLUMN prompt")
    connection.close()
    with pytest.raises(InputError, match="its tables are not those of the schema that it says") as refused:
        store.run("run-a")
    assert "\n" not in str(refused.value)


def test_a_migration_that_fails_midway_leaves_the_file_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.samples("run-a").to_pylist()
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, BROKEN))
        with pytest.raises(InputError, match="no_such_column"):
            store.prepare()
    assert store.query("SELECT max(version) AS v FROM schema_migration").to_pylist() == [{"v": NEWEST}]
    assert store.samples("run-a").to_pylist() == before
    assert store.runs(1)[0].n_done == 2
    with pytest.raises(InputError, match="note"):
        store.query("FROM note")


@pytest.mark.parametrize("version", range(1, schema.FIRST))
def test_a_store_from_before_the_first_release_is_refused_in_one_line_by_readers_and_writers(
    store: Store, version: int
) -> None:
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("UPDATE schema_migration SET version = ?", [version])
    before = store.path.read_bytes()
    for use in (lambda: store.runs(1), lambda: store.write_completions(completions(2, 1)), store.prepare):
        with pytest.raises(InputError) as refused:
            use()
        assert str(refused.value) == (
            f"{store.path}: made by an unreleased morfi (schema {version}; this one reads {schema.FIRST} and "
            "newer); give another --db and run again there"
        )
    assert store.path.read_bytes() == before


def test_a_newer_schema_is_refused_by_readers_and_writers(store: Store) -> None:
    connection = duckdb.connect(str(store.path))
    connection.execute("INSERT INTO schema_migration VALUES (99, 'later', now()::TIMESTAMP)")
    connection.close()
    before = store.path.read_bytes()
    for use in (lambda: store.runs(1), lambda: store.write_completions(completions(2, 1)), store.prepare):
        with pytest.raises(
            InputError, match=f"has schema 99, newer than this morfi, which knows up to {NEWEST}"
        ):
            use()
    assert store.path.read_bytes() == before


def test_reading_a_missing_file_makes_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.duckdb: no such database; give --db"):
        Store(tmp_path / "none.duckdb").runs(1)
    with pytest.raises(InputError, match=r"none\.duckdb: no such database"):
        Store(tmp_path / "none.duckdb").write_completions(completions(0, 1))
    assert list(tmp_path.iterdir()) == []


def make_text(path: Path) -> None:
    path.write_text('{"id": 1}\n' * 500)


def make_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE run (run_id TEXT)")
    connection.close()


def make_headless(path: Path) -> None:
    Store(path).begin_run(run_record(), {"test": QUESTIONS})
    os.truncate(path, 100)


def make_corrupt(path: Path) -> None:
    Store(path).begin_run(run_record(), {"test": QUESTIONS})
    content = bytearray(path.read_bytes())
    content[20:12288] = bytes(12268)
    path.write_bytes(content)


def make_foreign(path: Path) -> None:
    connection = duckdb.connect(str(path))
    connection.execute("CREATE TABLE sales (a INTEGER)")
    connection.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_text, "is not a DuckDB database; give another --db"),
        (Path.touch, "is not a DuckDB database"),
        (make_sqlite, "is not a DuckDB database"),
        (Path.mkdir, "is a folder"),
        (make_headless, "cannot be used as a database"),
        (make_corrupt, "cannot be used as a database"),
        (make_foreign, r"a DuckDB database, but not morfi's \(it holds the table sales\)"),
    ],
)
def test_an_unfit_file_is_refused_in_one_line_and_left_alone(
    tmp_path: Path, make: object, message: str
) -> None:
    path = tmp_path / "morfi.duckdb"
    make(path)  # type: ignore[operator]
    before = path.read_bytes() if path.is_file() else b""
    for use in (Store(path).prepare, lambda: Store(path).runs(1)):
        with pytest.raises(InputError, match=message) as refused:
            use()
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert (path.read_bytes() if path.is_file() else b"") == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
def test_a_file_that_duckdb_reads_by_its_ending_is_no_database(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"id": "q1", "relation": "P17"}\n')
    for use in (Store(path).prepare, lambda: Store(path).runs(1)):
        with pytest.raises(InputError, match="is not a DuckDB database; give another --db"):
            use()


def test_a_truncated_file_never_gives_part_of_its_rows(store: Store) -> None:
    store.write_completions(completions(2, 2000, text="x" * 500))
    whole, content = store.samples("run-a"), store.path.read_bytes()
    refused = 0
    for share in (0.2, 0.4, 0.6, 0.8, 0.99):
        store.path.write_bytes(content[: int(len(content) * share)])
        try:
            assert store.samples("run-a").equals(whole)
        except InputError as error:
            assert re.search(r"morfi\.duckdb: cannot be used as a database: [^\n]*$", str(error))  # noqa: PT017
            refused += 1
    assert refused >= 3


def test_a_file_of_another_duckdb_is_refused_with_both_versions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise duckdb.IOException("IO Error: Trying to read a database file with version number 999, but …")

    monkeypatch.setattr(duckdb, "connect", refuse)
    with pytest.raises(InputError, match=f"another version of DuckDB than this {duckdb.__version__} .*999"):
        store.runs(1)


def test_an_empty_duckdb_database_becomes_a_store(tmp_path: Path) -> None:
    duckdb.connect(str(tmp_path / "new.duckdb")).close()
    Store(tmp_path / "new.duckdb").begin_run(run_record(), {"test": QUESTIONS})
    assert Store(tmp_path / "new.duckdb").run("last") == run_record()


@pytest.mark.parametrize("name", ["md:morfi", ":memory:", "s3:x.duckdb", "a b'\"; é.db"])
def test_every_name_is_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Store(Path(name)).begin_run(run_record(), {"test": QUESTIONS})
    assert Store(tmp_path / name).run("last") == run_record()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "message"), [("x" * 300, "File name too long"), ("\udcff.db", "not valid Unicode")]
)
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str, message: str) -> None:
    for use in (Store(tmp_path / name).prepare, lambda: Store(tmp_path / name).runs(1)):
        with pytest.raises(InputError, match=message):
            use()


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


def test_a_missing_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"the folder {re.escape(str(tmp_path / 'none'))} does not exist"):
        Store(tmp_path / "none" / "morfi.duckdb").prepare()


def test_the_log_of_a_database_that_is_gone_is_not_replayed(tmp_path: Path) -> None:
    (tmp_path / "morfi.duckdb.wal").write_bytes(b"rows")
    with pytest.raises(InputError, match=r"morfi\.duckdb\.wal: belongs to a database that is gone"):
        Store(tmp_path / "morfi.duckdb").prepare()
    assert (tmp_path / "morfi.duckdb.wal").read_bytes() == b"rows"


def test_a_database_that_another_process_made_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        Store(target).begin_run(run_record("run-first"), {"test": QUESTIONS})
        link(source, target)

    monkeypatch.setattr(os, "link", link_late)
    store = Store(tmp_path / "morfi.duckdb")
    store.begin_run(run_record(), {"test": QUESTIONS})
    assert {summary.run_id for summary in store.runs(9)} == {"run-first", "run-a"}
    assert list(tmp_path.iterdir()) == [store.path]


def test_a_file_system_without_hard_links_still_gets_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path / "morfi.duckdb")
    store.begin_run(run_record(), {"test": QUESTIONS})
    assert store.run("last") == run_record()
    assert list(tmp_path.iterdir()) == [store.path]


def test_a_lock_of_another_process_is_waited_for_then_named(store: Store) -> None:
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read(1)"
    with child(code, store.path) as holder:
        assert line_of(holder) == "held"
        for use in (lambda: store.runs(1), lambda: store.write_completions(completions(2, 1))):
            start = time.monotonic()
            with pytest.raises(
                InputError, match=rf"locked by PID {holder.pid} \(.*duckdb\.connect"
            ) as refused:
                use()
            assert 0.1 < time.monotonic() - start < 5
            assert "\n" not in str(refused.value)
        patient = Store(store.path, lock_timeout_s=20)
        release = threading.Timer(0.3, holder.kill)
        release.start()
        patient.write_completions(completions(2, 1))
        release.join()
    assert store.summary("last").n_done == 3


def test_a_connection_of_the_same_process_is_named(store: Store) -> None:
    own = duckdb.connect(str(store.path))
    with pytest.raises(
        InputError, match=rf"locked by another connection in this process \(PID {os.getpid()}"
    ):
        store.runs(1)
    own.close()
    assert len(store.runs(1)) == 1


@pytest.mark.parametrize(
    ("message", "holder"),
    [
        ("Conflicting lock is held in /bin/x (PID 4194399). See", "PID 4194399 (/bin/x)"),
        ("Conflicting lock is held in /a b/x y (PID 4194399) by user z.", "PID 4194399 (/a b/x y)"),
        ("Conflicting lock is held in PID 4194399.", "PID 4194399"),
        ("Could not set lock on file: Resource temporarily unavailable", "another process"),
        ("PID", "another process"),
    ],
)
def test_the_holder_is_read_from_any_wording(message: str, holder: str) -> None:
    assert lock_holder(message) == holder


@contextmanager
def without_privileges() -> Iterator[Path]:
    """A folder of a user without root's right to ignore permissions, who the block runs as."""
    folder = Path(tempfile.mkdtemp())
    privileged = os.geteuid() == 0
    if privileged:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if privileged:
            os.seteuid(0)
        folder.chmod(stat.S_IRWXU)
        shutil.rmtree(folder)


def test_a_read_only_file_can_be_read_but_not_written() -> None:
    with without_privileges() as folder:
        store = Store(folder / "morfi.duckdb")
        store.begin_run(run_record(), {"test": QUESTIONS})
        store.path.chmod(stat.S_IRUSR)
        assert store.run("last") == run_record()
        for use in (store.prepare, lambda: store.write_completions(completions(0, 1))):
            with pytest.raises(InputError, match=r"morfi\.duckdb: cannot be written: permission denied"):
                use()
        store.path.chmod(0)
        with pytest.raises(InputError, match=r"morfi\.duckdb: .*permission denied"):
            store.runs(1)
        folder.chmod(0)
        for look in (lambda: store.runs(1), lambda: store.latest_run("f"), lambda: store.run("last")):
            with pytest.raises(InputError, match=r"morfi\.duckdb: Permission denied; give another --db"):
                look()


def test_a_read_only_folder_is_refused() -> None:
    with without_privileges() as folder:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(InputError, match=r"/morfi\.duckdb: cannot be written: permission denied"):
            Store(folder / "morfi.duckdb").prepare()
        assert list(folder.iterdir()) == []


def test_a_full_disk_is_one_line_and_keeps_the_batches_before(store: Store) -> None:
    code = f"""{CHILD}
import os, resource
from morfi.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
for n in range(1000):
    try:
        store.write_completions([r.__class__(*[os.urandom(2000).hex() if f == "prompt" else getattr(r, f)
            for f in r.__slots__]) for r in batch(n)])
    except InputError as error:
        print(n, error)
        break
"""
    before = store.finished("run-a")
    with child(code, store.path) as process:
        n, _, message = line_of(process).partition(" ")
        process.wait(timeout=30)
    assert re.search(r"morfi\.duckdb: the disk is full; what was written before is kept", message)
    assert int(n) > 0
    assert store.finished("run-a") == before | {(f"q{i}", 0) for i in range(int(n) * 64)}
    store.write_completions(completions(10**6, 1))
    assert ("q1000000", 0) in store.finished("run-a")


def test_a_disk_full_from_the_start_leaves_no_file(tmp_path: Path) -> None:
    code = f"""{CHILD}
import resource
from morfi.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    store.prepare()
except InputError as error:
    print(error)
"""
    with child(code, tmp_path / "morfi.duckdb") as process:
        assert re.search(r"/morfi\.duckdb: the disk is full", line_of(process))
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
