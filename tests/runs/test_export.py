from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from run_record import run_record

from morfi.errors import InputError
from morfi.questions.question import Question
from morfi.runs import export as export_module
from morfi.runs.export import FORMATS, export
from morfi.store import Store
from morfi.store.records import CompletionRow, JudgedAnswer

AWKWARD = [
    "",
    '"',
    ",",
    "a\nb",
    "a\r\nb",
    "\r",
    "=1+1",
    "a\0b",
    "\u2028",
    "é🗼",
    "true",
    "1.5",
    "null",
    "'",
    "\\",
]


def write_run(store: Store, run_id: str, texts: list[str]) -> None:
    questions = [
        Question(f"q{i}", "P17", f"subject {text}", text, (text, "other")) for i, text in enumerate(texts)
    ]
    store.begin_run(run_record(run_id, data_sha256=run_id, n_planned=len(texts)), {"test": questions})
    store.write_completions(
        [
            CompletionRow(
                run_id,
                f"q{i}",
                0,
                text,
                JudgedAnswer(text, text, "stop", i % 2 == 0, True, False, 9, 8, 2, 1),
            )
            for i, text in enumerate(texts)
        ]
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "morfi.duckdb")
    write_run(store, "run-a", AWKWARD)
    return store


def read_csv(content: str) -> list[dict[str, Any]]:
    rows = []
    for row in csv.DictReader(io.StringIO(content, newline=""), strict=True):
        typed: dict[str, Any] = dict(row)
        for name in ("sample", "prompt_tokens", "cached_tokens", "output_tokens", "attempt", "seed"):
            typed[name] = int(row[name])
        for name in ("answers", "correct", "correct_squad", "correct_answer"):
            typed[name] = json.loads(row[name]) if row[name] else None
        rows.append(typed)
    return rows


def read_rows(path: Path, fmt: str) -> list[dict[str, Any]]:
    if fmt == "parquet":
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return rows
    content = path.read_bytes().decode("utf-8")
    if fmt == "csv":
        return read_csv(content)
    return [json.loads(line) for line in content.split("\n")[:-1]]


@pytest.mark.parametrize("fmt", FORMATS)
def test_awkward_text_reads_back_from_every_format(store: Store, tmp_path: Path, fmt: str) -> None:
    out = tmp_path / f"rows.{fmt}"
    assert export(store, "last", fmt, out) == len(AWKWARD)
    rows = read_rows(out, fmt)
    assert rows == store.samples("run-a").to_pylist()
    assert sorted(row["text"] for row in rows) == sorted(AWKWARD)
    assert {path.name for path in tmp_path.iterdir()} == {"morfi.duckdb", out.name}


@pytest.mark.long
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(codec="utf-8")), max_size=30))
def test_any_text_reads_back_the_same_from_all_formats(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    store = Store(folder / "morfi.duckdb")
    write_run(store, "run-a", texts)
    expected = store.samples("run-a").to_pylist()
    for fmt in FORMATS:
        assert export(store, "run-a", fmt, folder / fmt) == len(texts)
        assert read_rows(folder / fmt, fmt) == expected


@pytest.mark.parametrize("fmt", ["jsonl", "csv"])
def test_standard_output_gets_the_same_bytes_as_a_file(
    store: Store, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], fmt: str
) -> None:
    export(store, "run-a", fmt, tmp_path / "rows")
    export(store, "run-a", fmt, None)
    assert capfdbinary.readouterr().out == (tmp_path / "rows").read_bytes()


def test_a_run_without_answers_gives_an_empty_table_with_all_columns(store: Store, tmp_path: Path) -> None:
    write_run(store, "run-b", [])
    names = store.samples("run-a").column_names
    assert export(store, "run-b", "parquet", tmp_path / "b.parquet") == 0
    assert parquet.read_schema(tmp_path / "b.parquet").names == names
    assert export(store, "run-b", "csv", tmp_path / "b.csv") == 0
    assert next(csv.reader([(tmp_path / "b.csv").read_text()])) == names
    assert export(store, "run-b", "jsonl", tmp_path / "b.jsonl") == 0
    assert (tmp_path / "b.jsonl").read_bytes() == b""


def test_an_existing_file_is_replaced_through_a_link_too(store: Store, tmp_path: Path) -> None:
    target, link = tmp_path / "old.jsonl", tmp_path / "link.jsonl"
    target.write_text("old\n" * 100000)
    link.symlink_to(target)
    export(store, "run-a", "jsonl", link)
    assert link.is_symlink()
    assert len(read_rows(target, "jsonl")) == len(AWKWARD)


def test_a_new_file_has_the_permissions_of_any_new_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    export(store, "run-a", "csv", tmp_path / "rows.csv")
    plain, rows = ((tmp_path / name).stat().st_mode for name in ("plain", "rows.csv"))
    assert stat.S_IMODE(plain) == stat.S_IMODE(rows)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: str
) -> None:
    write = export_module._write

    def fail_late(*arguments: Any) -> None:
        write(*arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export_module, "_write", fail_late)
    (tmp_path / "rows").write_text("old")
    with pytest.raises(InputError, match=r"/rows: cannot be written: No space left on device"):
        export(store, "run-a", fmt, tmp_path / "rows")
    assert (tmp_path / "rows").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"morfi.duckdb", "rows"}


def test_an_interrupt_leaves_nothing_half_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(store, "run-a", "csv", tmp_path / "rows")
    assert {path.name for path in tmp_path.iterdir()} == {"morfi.duckdb"}


@pytest.mark.parametrize(
    ("fmt", "out", "message"),
    [
        (
            "jsnol",
            "rows",
            r'unknown format "jsnol"; give one of jsonl, parquet, csv\. Did you mean "jsonl"\?',
        ),
        ("", "rows", 'unknown format ""'),
        ("parquet", None, r"needs a file; give --out FILE\.parquet"),
        ("jsonl", "rows.parquet", "named like parquet, but --format is jsonl; give --format parquet"),
        ("csv", ".", r": cannot be written: it is a folder$"),
        ("csv", "none/rows.csv", r"the folder .*/none does not exist"),
        ("csv", "morfi.duckdb", "it is a database"),
        ("csv", "morfi.duckdb.wal", "it is a database"),
        ("csv", "symbolic", "it is a database"),
        ("csv", "hard", "it is a database"),
        ("csv", "/dev/null", r": cannot be written: it is not a regular file$"),
    ],
)
def test_an_unfit_target_is_refused_and_the_store_stays(
    store: Store, tmp_path: Path, fmt: str, out: str | None, message: str
) -> None:
    (tmp_path / "symbolic").symlink_to(store.path)
    (tmp_path / "hard").hardlink_to(store.path)
    before = store.path.read_bytes()
    with pytest.raises(InputError, match=message):
        export(store, "run-a", fmt, None if out is None else tmp_path / out)
    assert store.path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"morfi.duckdb", "symbolic", "hard"}


def test_without_a_store_an_existing_file_stays(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("mine")
    with pytest.raises(InputError, match="no such database"):
        export(Store(tmp_path / "gone.duckdb"), "run-a", "csv", out)
    assert out.read_text() == "mine"


def test_an_unknown_run_is_refused_and_makes_no_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match='no run "run-z"'):
        export(store, "run-z", "csv", tmp_path / "rows.csv")
    assert not (tmp_path / "rows.csv").exists()
