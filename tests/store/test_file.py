"""Files that are made, found, or refused as databases."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from answered_run import QUESTIONS, completions
from run_record import run_record

from morfi.errors import InputError
from morfi.store import Store


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


def foreign(statement: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with duckdb.connect(str(path)) as connection:
            connection.execute(statement)

    return make


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
        (foreign("CREATE VIEW run AS SELECT 1 AS a"), r"not morfi's \(it holds the view run\)"),
        (foreign("CREATE SCHEMA own"), r"not morfi's \(it holds the schema own\)"),
        (foreign("CREATE SEQUENCE numbers"), r"not morfi's \(it holds the sequence numbers\)"),
        (foreign("CREATE MACRO twice(x) AS 2 * x"), r"not morfi's \(it holds the function twice\)"),
        (foreign("CREATE MACRO rows() AS TABLE SELECT 1"), r"not morfi's \(it holds the function rows\)"),
        (foreign("CREATE TYPE mood AS ENUM ('a')"), r"not morfi's \(it holds the type mood\)"),
        (foreign("CREATE TABLE schema_migration (x INTEGER)"), "holds the table schema_migration"),
        (foreign("CREATE VIEW schema_migration AS SELECT 'x' AS version"), "holds the view schema_migration"),
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


def test_reading_an_empty_database_finds_nothing_and_leaves_it_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "new.duckdb")
    duckdb.connect(str(store.path)).close()
    before = store.path.read_bytes()
    assert store.runs() == []
    assert store.latest_run("f") is None
    assert store.query("SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 0}]
    with pytest.raises(InputError, match="COPY is not allowed"):
        store.query("COPY run TO '/tmp/rows.csv'")
    assert store.path.read_bytes() == before


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
