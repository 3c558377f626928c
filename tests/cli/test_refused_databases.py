"""Databases that cannot be used are refused, and left as they were."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from child_process import child, line_of
from command_line import CommandLine, Ended, files_under, refused

from morfi.store import Store


def test_a_refused_command_leaves_a_database_that_is_there_as_it_was(
    ask: Callable[..., Ended], run: CommandLine
) -> None:
    assert ask().code == 0
    before = files_under(Path.cwd())
    assert list(before) == [str(Path.cwd() / "morfi.duckdb")]
    for ended, part in (
        (ask("--shots", 7), "too few"),
        (ask(ckpt="smolm2"), "smollm2"),
        (run("show", "eval-x"), 'no run "eval-x"'),
        (run("compare", "last", "eval-x"), 'no run "eval-x"'),
        (run("sql", "DELETE FROM run"), "only reads"),
        (run("sql", "SELECT * FROM rnus"), "rnus"),
        (run("export", "last", "--format", "parquet"), "--out FILE.parquet"),
        (run("cache", "rm", "00"), "fits no entry"),
        (ask("--resume", "eval-x"), 'no run "eval-x"'),
    ):
        refused(ended, part)
    assert files_under(Path.cwd()) == before


def not_a_database(path: Path) -> None:
    path.write_text("these are my notes\n" * 1000)


def a_folder(path: Path) -> None:
    path.mkdir()


def another_database(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE birds (name VARCHAR)")


def a_newer_schema(path: Path) -> None:
    Store(path).prepare()
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO schema_migration VALUES (999, 'later', now()::TIMESTAMP)")


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (not_a_database, ("is not a DuckDB database",)),
        (a_folder, ("is a folder",)),
        (another_database, ("not morfi's", "birds")),
        (a_newer_schema, ("schema 999, newer than this morfi",)),
    ],
)
def test_an_unfit_database_is_refused_by_every_command_and_left_as_it_was(
    ask: Callable[..., Ended],
    run: CommandLine,
    make: Callable[[Path], None],
    parts: tuple[str, ...],
    serving: Any,
) -> None:
    make(Path("x.duckdb"))
    before = files_under(Path.cwd())
    for ended in (
        ask("--db", "x.duckdb"),
        run("runs", "--db", "x.duckdb"),
        run("sql", "SELECT 1", "--db", "x.duckdb"),
    ):
        refused(ended, "x.duckdb", *parts)
    assert serving.starts == []
    assert files_under(Path.cwd()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/sys takes no files, not even from root")
def test_a_folder_that_takes_no_file_is_refused_before_the_engine_starts(
    ask: Callable[..., Ended], serving: Any
) -> None:
    refused(ask("--db", "/sys/morfi.duckdb"), "/sys/morfi.duckdb", "cannot be written")
    refused(ask("--db", "none/morfi.duckdb"), "the folder none does not exist")
    assert serving.starts == []


def test_a_locked_database_names_its_holder(
    ask: Callable[..., Ended], run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Store.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "lock_timeout_s", 0.2)
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    Store(Path("x.duckdb")).prepare()
    with child(hold, "x.duckdb") as holder:
        assert line_of(holder) == "held"
        for ended in (ask("--db", "x.duckdb"), run("runs", "--db", "x.duckdb")):
            refused(ended, "x.duckdb: locked by", f"PID {holder.pid}")
