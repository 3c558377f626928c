"""Tables and views, migrations, and files of other versions of morfi."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import duckdb
import pytest
from answered_run import completions

from morfi.errors import InputError
from morfi.store import Store, schema
from morfi.store.schema import Migration

NEWEST = schema.newest()
NOTES = "CREATE TABLE note (run_id VARCHAR);"
NEXT = Migration(NEWEST + 1, "notes", f"{NOTES} INSERT INTO note SELECT run_id FROM run;")
BROKEN = Migration(NEWEST + 1, "broken", f"{NOTES} DROP VIEW runs; SELECT no_such_column;")


def test_another_schema_has_another_number() -> None:
    found = hashlib.sha256(resources.files("morfi.store").joinpath("schema.sql").read_bytes()).hexdigest()
    # Until the first release a change of the file raises FIRST: both stand here. After it, nothing changes.
    assert (schema.FIRST, found[:16]) == (11, "a2011d7637a4894b")


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
        "sweep_checkpoint": "run_id VARCHAR, position INTEGER, level DOUBLE?, seed BIGINT?, "
        "epoch_setting VARCHAR?, epoch INTEGER?, ckpt_sha256 VARCHAR, eval_run_id VARCHAR, load_s DOUBLE, "
        "attempt INTEGER",
        "captured_checkpoint": "run_id VARCHAR, position INTEGER, level DOUBLE?, seed BIGINT?, "
        "epoch_setting VARCHAR?, epoch INTEGER?, ckpt_sha256 VARCHAR, path VARCHAR, files JSON, "
        "load_s DOUBLE, capture_s DOUBLE, attempt INTEGER",
        "trend_condition": "run_id VARCHAR, axis VARCHAR, position INTEGER, level DOUBLE, seed BIGINT, "
        "epoch_setting VARCHAR, epoch INTEGER?, ckpt_sha256 VARCHAR, explained_variance DOUBLE, l0 DOUBLE",
        "trend_summary": "run_id VARCHAR, axis VARCHAR, n_selected BIGINT, n_questions BIGINT, "
        "n_firing BIGINT, expected_false DOUBLE, "
        "smallest_s INTEGER?, is_descriptive BOOLEAN, sae_sha256 VARCHAR, layer INTEGER",
        "false_discoveries": "run_id VARCHAR, axis VARCHAR, s INTEGER, n_found BIGINT, fdr DOUBLE",
        "latent_trend": "run_id VARCHAR, latent INTEGER, direction TINYINT, rho FLOAT, s INTEGER, "
        "p_exact DOUBLE, slope FLOAT, score FLOAT, stability FLOAT?, mean_abs_rho FLOAT?, "
        "page_z DOUBLE?, page_p DOUBLE?, firing FLOAT, selected BOOLEAN, means FLOAT[], "
        "epochs_rho FLOAT?, epochs_s INTEGER?, epochs_p DOUBLE?, epochs_means FLOAT[]?",
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
    store.prepare()
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
