from __future__ import annotations

import dataclasses
import io
import string
import threading
import time
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_record import START, run_record

from morfi.errors import InputError, MorfiError
from morfi.questions.question import Question
from morfi.report.listing import rows_table, write_rows
from morfi.statistics import wilson_interval
from morfi.store import Store
from morfi.store import file as store_file
from morfi.store.query import Rows
from morfi.store.records import AttemptEnd, AttemptRecord, CompletionRow, JudgedAnswer, RunKind

QUESTIONS = [
    Question("q1", "P17", "Lyon", "Which country is Lyon in?", ("France", "FR")),
    Question("q2", "P17", "Kyiv", "Which country is Kyiv in?", ("Ukraine",)),
    Question("q3", "P36", "Peru", "What is the capital of Peru?", ("Lima",)),
]


RUN = run_record(config={"shots": 4, "relations": ["P17"], "limit": None}, n_planned=3)


def attempt_record(pid: int = 1, host: str = "elsewhere") -> AttemptRecord:
    return AttemptRecord(START, "morfi eval", pid, host, "0.1.0", None, {"torch": "2"}, "cpu", {"block": 32})


def end(status: str, **changes: object) -> AttemptEnd:
    finished = AttemptEnd(START, status, 10.0, 4.0, 8, 800, 80, None)
    return dataclasses.replace(finished, **changes)  # type: ignore[arg-type]


def completion(question_id: str, correct: bool, run_id: str = "run-a", sample: int = 0) -> CompletionRow:
    answer = JudgedAnswer(" Lima", "Lima", "stop", correct, correct, correct, 12, 8, 2, attempt=1)
    return CompletionRow(run_id, question_id, sample, "Q: …\nA:", answer)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "morfi.duckdb")
    store.begin_run(RUN, {"test": QUESTIONS})
    return store


@pytest.fixture(scope="module")
def read_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("read") / "morfi.duckdb")
    store.begin_run(RUN, {"test": QUESTIONS})
    (store.path.parent / "secret.csv").write_text("a\n1\n")
    return store


def test_a_run_reads_back_as_it_was_written(store: Store) -> None:
    written = run_record(
        "run-b", base="b", base_sha256="1" * 64, adapter_sha256="2" * 64, bos=False, seed=2**40
    )
    store.begin_run(written, {"test": QUESTIONS})
    assert store.run("run-b") == written
    assert store.run("run-a") == RUN


def test_times_of_another_zone_read_back_as_the_same_moment(store: Store) -> None:
    moment = START.astimezone(timezone(timedelta(hours=-7)))
    store.begin_run(run_record("run-z", created_at=moment), {})
    assert store.run("run-z").created_at == START
    assert store.run("run-z").created_at.tzinfo is UTC


def test_beginning_a_run_twice_changes_nothing(store: Store) -> None:
    before = store.query("SELECT * FROM run, question").to_pylist()
    store.begin_run(RUN, {"test": QUESTIONS})
    assert store.query("SELECT * FROM run, question").to_pylist() == before


def test_a_run_id_with_other_settings_is_refused_and_its_questions_are_not_added(store: Store) -> None:
    more = [*QUESTIONS, Question("q4", "P36", "Chad", "What is the capital of Chad?", ("N'Djamena",))]
    with pytest.raises(MorfiError, match=r"run-a is in .* already"):
        store.begin_run(dataclasses.replace(RUN, fingerprint="0"), {"test": more})
    assert store.query("SELECT count(*) AS n FROM question").to_pylist() == [{"n": 3}]


def test_attempts_are_numbered_from_one_for_each_run(store: Store) -> None:
    store.begin_run(run_record("run-b"), {"test": QUESTIONS})
    numbers = []
    for run_id in ("run-a", "run-a", "run-b", "run-a"):
        numbers.append(store.begin_attempt(run_id, attempt_record()))
        store.end_attempt(run_id, numbers[-1], end("failed"))
    assert numbers == [1, 2, 1, 3]


@pytest.mark.long
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.sampled_from(["q1", "q2", "q3"]), st.integers(0, 2))), max_size=4))
def test_rows_written_in_any_overlapping_batches_are_kept_once(
    store: Store, batches: list[list[tuple[str, int]]]
) -> None:
    before = store.finished("run-a")
    for batch in batches:
        store.write_completions(
            [completion(question_id, True, sample=sample) for question_id, sample in batch]
        )
    written = {key for batch in batches for key in batch}
    assert store.finished("run-a") == before | written
    assert store.samples("run-a").num_rows == len(before | written)


def test_the_first_row_of_a_key_stays(store: Store) -> None:
    store.write_completions([completion("q1", True)])
    store.write_completions([completion("q1", False), completion("q2", False)])
    verdicts = {row["question_id"]: row["correct"] for row in store.samples("run-a").to_pylist()}
    assert verdicts == {"q1": True, "q2": False}


def test_a_batch_with_one_bad_row_writes_none(store: Store) -> None:
    bad = dataclasses.replace(completion("q2", True), prompt="\ud800")
    with pytest.raises(InputError, match="not valid Unicode"):
        store.write_completions([completion("q1", True), bad])
    unjudged = completion("q2", None)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="NOT NULL"):
        store.write_completions([completion("q1", True), unjudged])
    assert store.finished("run-a") == set()


def test_a_block_of_operations_together_opens_the_file_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    connect = store_file._connect

    def counting(path: Path, *rest: Any) -> Any:
        opened.append(path)
        return connect(path, *rest)

    monkeypatch.setattr(store_file, "_connect", counting)
    unjudged = completion("q2", None)  # type: ignore[arg-type]
    with store.together():
        store.write_completions([completion("q1", True)])
        with pytest.raises(Exception, match="NOT NULL"):
            store.write_completions([completion("q3", True), unjudged])
        assert store.finished("run-a") == {("q1", 0)}
        store.write_completions([completion("q2", True)])
    assert opened == [store.path]
    assert store.finished("run-a") == {("q1", 0), ("q2", 0)}
    assert opened == [store.path] * 2


def test_writing_no_rows_needs_no_file(tmp_path: Path) -> None:
    Store(tmp_path / "none.duckdb").write_completions([])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["run-alpha", "run-al", "last"])
def test_a_run_is_found_by_id_unique_beginning_or_last(store: Store, word: str) -> None:
    store.begin_run(run_record("run-alpha", created_at=START + timedelta(seconds=1)), {})
    assert store.run(word).run_id == "run-alpha"


def test_the_last_run_of_a_command_is_the_newest_of_its_kind(store: Store) -> None:
    for second, kind in enumerate((RunKind.SPLIT, RunKind.SPLIT, RunKind.MIX)):
        made = run_record(f"{kind}-{second}", kind=kind, created_at=START + timedelta(seconds=1 + second))
        store.begin_run(made, {})
    assert store.run("last").run_id == "mix-2"
    assert store.run_of_kind("last", RunKind.SPLIT).run_id == "split-1"
    with pytest.raises(InputError, match=r"no run of `morfi train` yet; the newest is mix-2"):
        store.run_of_kind("last", RunKind.TRAIN)
    with pytest.raises(InputError, match="mix-2 is a run of `morfi mix`; give one of `morfi split`"):
        store.run_of_kind("mix-2", RunKind.SPLIT)


def test_a_full_id_wins_over_longer_ids_that_begin_with_it(store: Store) -> None:
    store.begin_run(run_record("run-a2"), {})
    assert store.run("run-a").run_id == "run-a"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("run-", r'"run-" could be any of 2 runs \(run-b, run-a\)'),
        ("rum-b", r'no run "rum-b" .* Did you mean "run-b"\? The newest: run-b, run-a'),
        ("", r'no run ""'),
        ("run-a'; DROP TABLE run; --", "no run"),
    ],
)
def test_an_unknown_or_ambiguous_run_is_refused_with_the_ids_there_are(
    store: Store, word: str, message: str
) -> None:
    store.begin_run(run_record("run-b", created_at=START + timedelta(seconds=1)), {})
    with pytest.raises(InputError, match=message):
        store.run(word)


def test_latest_run_is_the_newest_with_that_fingerprint(store: Store, tmp_path: Path) -> None:
    for i, fingerprint in enumerate(["one", "two", "one", "two"]):
        store.begin_run(
            run_record(f"run-{i}", fingerprint=fingerprint, created_at=START + timedelta(hours=i)), {}
        )
    latest = store.latest_run("one")
    assert latest is not None
    assert latest.run_id == "run-2"
    assert store.latest_run("three") is None
    assert Store(tmp_path / "none.duckdb").latest_run("one") is None


def test_accuracies_are_by_relation_then_overall_over_first_samples(store: Store) -> None:
    assert store.accuracies("run-a") == []
    store.write_completions([completion("q1", True), completion("q2", False), completion("q3", True)])
    store.write_completions([completion("q1", False, sample=i) for i in (1, 2)])
    p17, p36, whole = store.accuracies("run-a")
    assert (p17.relation, p17.n, p17.n_correct, p17.accuracy) == ("P17", 2, 1, 0.5)
    assert (p36.relation, p36.n, p36.n_correct, p36.accuracy) == ("P36", 1, 1, 1.0)
    assert (whole.relation, whole.n, whole.n_correct) == (None, 3, 2)
    for row in (p17, p36, whole):
        interval = wilson_interval(row.n_correct, row.n)
        assert (row.ci_low, row.ci_high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    summary = store.summary("run-a")
    assert (summary.n_done, summary.n, summary.n_correct) == (5, 3, 2)
    assert (summary.accuracy, summary.ci_low, summary.ci_high) == pytest.approx(
        (whole.accuracy, whole.ci_low, whole.ci_high)
    )


def test_wilson_in_sql_equals_wilson_in_python(read_store: Store) -> None:
    sql = (
        "SELECT n, k, wilson_low(k, n) AS low, wilson_high(k, n) AS high "
        "FROM (FROM range(1, 61) AS a(n) UNION ALL VALUES (1000000), (3000000000)) AS sizes, "
        "(FROM range(0, 61) UNION ALL VALUES (999999), (1000000), (2999999999)) AS b(k) WHERE k <= n"
    )
    rows = read_store.query(sql).to_pylist()
    assert len(rows) > 1000
    for row in rows:
        interval = wilson_interval(row["k"], row["n"])
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_questions_are_those_answered(store: Store) -> None:
    store.write_completions(
        [completion("q3", True), completion("q1", True), completion("q1", True, sample=1)]
    )
    assert store.questions("run-a") == [QUESTIONS[0], QUESTIONS[2]]


def test_status_follows_the_last_attempt_until_all_is_done(store: Store) -> None:
    def status() -> str:
        return store.runs(1)[0].status

    assert status() == "interrupted"
    first = store.begin_attempt("run-a", attempt_record())
    assert status() == "running"
    store.end_attempt("run-a", first, end("failed", message="out of memory"))
    assert status() == "failed"
    store.end_attempt("run-a", first, end("done"))
    assert status() == "failed"
    store.begin_attempt("run-a", attempt_record())
    assert status() == "running"
    store.write_completions([completion(question.id, True) for question in QUESTIONS])
    assert status() == "done"


def test_a_summary_sums_the_attempts_that_ended(store: Store) -> None:
    assert store.summary("last").requests_per_s is None
    for status in ("interrupted", "done"):
        store.end_attempt("run-a", store.begin_attempt("run-a", attempt_record()), end(status))
    store.begin_attempt("run-a", attempt_record())
    summary = store.summary("last")
    assert (summary.n_attempts, summary.wall_s, summary.generate_s) == (3, 20.0, 8.0)
    assert (summary.n_requests, summary.output_tokens, summary.requests_per_s) == (16, 160, 2.0)


def test_runs_come_newest_first_and_limited(store: Store) -> None:
    for i in range(1, 4):
        store.begin_run(run_record(f"run-{i}", created_at=START + timedelta(hours=i)), {})
    assert [summary.run_id for summary in store.runs(3)] == ["run-3", "run-2", "run-1"]
    assert [summary.accuracy for summary in store.runs(9)] == [None] * 4


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) AS n FROM runs",
        "select 1 ; -- one statement",
        "WITH a AS (SELECT 1) FROM a",
        "DESCRIBE runs",
        "SHOW TABLES",
        "EXPLAIN SELECT 1",
        "PIVOT question ON relation USING count(*) GROUP BY data_sha256",
        "SELECT config->>'shots' AS shots FROM run",
        "CALL pragma_version()",
    ],
)
def test_sql_that_reads_is_answered(read_store: Store, sql: str) -> None:
    assert read_store.query(sql).num_rows >= 1


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM run",
        "INSERT INTO question SELECT * FROM question",
        "UPDATE run SET seed = 1",
        "DROP TABLE run",
        "CREATE TABLE x AS SELECT 1",
        "CREATE TEMP TABLE x AS SELECT 1",
        "COPY run TO '{folder}/stolen.csv'",
        "EXPORT DATABASE '{folder}/stolen'",
        "ATTACH '{folder}/new.duckdb'",
        "SELECT * FROM read_csv('{folder}/secret.csv')",
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM read_text('{folder}/secret.csv')",
        "SELECT * FROM glob('{folder}/*')",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "BEGIN",
        "CHECKPOINT run",
        "EXPLAIN ANALYZE DELETE FROM run",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE run",
        "",
        "-- nothing",
        "SELEKT 1",
        "SELECT * FROM no_such_table",
        "SELECT seed + FROM run",
        "SELECT CAST(ckpt AS INTEGER) FROM run",
        "SELECT ?",
        "SELECT '\ud800'",
        "SELECT * FROM rows",
    ],
)
def test_sql_that_writes_leaves_the_database_or_fails_is_one_line_and_changes_nothing(
    read_store: Store, sql: str
) -> None:
    import pyarrow as pa

    rows = pa.table({"secret": [1]})  # a variable of this process, which SQL must not see
    folder = read_store.path.parent
    files = sorted(folder.iterdir())
    before = read_store.path.read_bytes()
    with pytest.raises(InputError) as refused:
        read_store.query(sql.format(folder=folder))
    assert "\n" not in str(refused.value)
    assert read_store.path.read_bytes() == before
    assert sorted(folder.iterdir()) == files
    assert rows.num_rows == 1


def test_any_text_reads_back_as_it_was(store: Store) -> None:
    texts = [
        "",
        " ",
        "a\0b",
        'say "hi"',
        "x\r\ny",
        "é\u0301 \u2028",
        "🗼",
        "'; DROP TABLE run; --",
        string.printable,
    ]
    store.write_completions(
        [dataclasses.replace(completion("q1", True, sample=i), prompt=text) for i, text in enumerate(texts)]
    )
    assert store.samples("run-a")["prompt"].to_pylist() == texts


def test_threads_of_one_process_wait_for_each_other(store: Store) -> None:
    failures: list[BaseException] = []

    def work(sample: int) -> None:
        try:
            store.write_completions([completion("q1", True, sample=sample)])
            Store(store.path).query("SELECT count(*) FROM completion")
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(sample,)) for sample in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.finished("run-a")) == 8


def test_the_first_rows_of_many_are_all_that_is_computed(read_store: Store) -> None:
    begun = time.process_time()
    with read_store.query_rows("SELECT *, repeat('x', 1000) AS x FROM range(10000000000)") as rows:
        assert rows.first(201)["range"].to_pylist() == [*range(201)]
    assert time.process_time() - begun < 10, "20 TB of text would take longer"


def test_an_error_in_a_later_row_is_one_line(read_store: Store) -> None:
    late = "SELECT CASE WHEN range = 300000 THEN error('so late') ELSE '' END AS x FROM range(400000)"
    with pytest.raises(InputError, match=r"SQL: .*so late"):
        read_store.query(late)


def test_every_type_of_duckdb_is_shown(read_store: Store) -> None:
    """Dates before year 1, infinity, 24:00:00, zones and bits: what Python or Arrow cannot hold."""
    with read_store.query_rows("SELECT * FROM test_all_types()", as_text=True) as rows:
        table = rows.whole()
    assert len(rows_table(table).splitlines()) == 1 + 3
    write_rows(Rows(table.schema, iter(table.to_batches())), io.BytesIO(), ascii_only=False)
    first, last, none = table.to_pylist()
    assert (first["date"], last["date"], none["date"]) == ("5877642-06-25 (BC)", "5881580-07-10", None)
    assert (last["time"], last["time_tz"]) == ("24:00:00", "24:00:00-15:59:59")
    assert (last["bit"], last["uhugeint"]) == ("10101", str(2**128 - 1))
    assert last["date_array"] == ["1970-01-01", "infinity", "-infinity", None, "2022-05-12"]
    assert last["struct_of_arrays"]["a"] == [42, 999, None, None, -42]


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("DATE '12000-01-01'", "12000-01-01"),
        ("'-infinity'::TIMESTAMP", "-infinity"),
        ("DATE '0001-01-01' - INTERVAL 5 YEAR", "0005-01-01 (BC) 00:00:00"),
        ("""{'a "b"': DATE '2020-01-01'}""", {'a "b"': "2020-01-01"}),
        ("MAP {1: [DATE '2020-01-01']}", [(1, ["2020-01-01"])]),
        ("array_value(DATE '2020-01-01')", ["2020-01-01"]),
        ("union_value(a := DATE '2020-01-01')", "2020-01-01"),
        ("now() IS NULL", False),
    ],
)
def test_a_moment_is_as_duckdb_writes_it(read_store: Store, expression: str, shown: object) -> None:
    with read_store.query_rows(f'SELECT {expression} AS "x ""y", 2 AS n', as_text=True) as rows:
        assert rows.whole().to_pylist() == [{'x "y': shown, "n": 2}]


@pytest.mark.parametrize("limit", [0, -1, 1 << 63, 10**30, True, 2.0, "3", None])
def test_a_limit_that_is_no_number_of_runs_is_refused(store: Store, limit: Any) -> None:
    with pytest.raises(InputError, match=r"a limit of .* runs: expected a whole number"):
        store.runs(limit)
