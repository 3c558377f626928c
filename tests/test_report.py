from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from morfi.compare import compare
from morfi.report import (
    arrow_object,
    arrow_table,
    cache_table,
    comparison_table,
    run_object,
    run_report,
    run_table,
    runs_table,
)
from morfi.store import Store
from morfi.store.records import AttemptEnd, AttemptRecord, CompletionRow, RunRecord
from morfi.types import Question

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
# Relation, subject, accepted answers, verdict; majority 3/5 (France) and 1/2, in the subject 1/5 and 1/2.
FACTS = [
    ("P17", "Lyon", ("France",), True),
    ("P17", "Nice", ("France", "FR"), True),
    ("P17", "Paris, France", ("the France!",), False),
    ("P17", "Kyiv", ("Ukraine",), False),
    ("P17", "Oslo", ("Norway",), True),
    ("P36", "Lima Region", ("Lima",), False),
    ("P36", "Chad", ("N'Djamena",), True),
]


def add_run(
    store: Store, run_id: str, facts: Sequence[tuple[str, str, tuple[str, ...], bool]], n_planned: int = 0
) -> str:
    questions = [
        Question(f"q{i:03}", relation, subject, f"{relation} of {subject}?", answers)
        for i, (relation, subject, answers, _) in enumerate(facts)
    ]
    run = RunRecord(
        run_id=run_id,
        kind="eval",
        created_at=START,
        fingerprint=run_id,
        config={"shots": 4, "match": "squad"},
        ckpt="tiny",
        ckpt_sha256="c" * 64,
        base="tiny",
        base_sha256="c" * 64,
        adapter_sha256=None,
        data="facts.jsonl",
        data_sha256="d" * 64,
        prompt="Q: {question}\nA:",
        bos=True,
        seed=0,
        n_planned=n_planned or len(facts),
    )
    store.begin_run(run, questions)
    number = store.begin_attempt(run_id, AttemptRecord(START, "morfi", 1, "h", "0", None, {}, "cpu", {}))
    store.write_completions(
        [
            CompletionRow(run_id, q.id, 0, "p", " x", "x", "stop", fact[3], 10, 5, 2, number)
            for q, fact in zip(questions, facts, strict=True)
        ]
    )
    store.end_attempt(run_id, number, AttemptEnd(START, "done", 4.0, 2.0, len(facts), 70, 2 * len(facts)))
    return run_id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "morfi.duckdb")


def test_the_object_of_a_run_has_accuracies_intervals_and_both_confounds(store: Store) -> None:
    found = run_object(run_report(store, add_run(store, "run-a", FACTS)))
    whole = binomtest(4, 7).proportion_ci(method="wilson")
    assert found["ci"] == pytest.approx([whole.low, whole.high])
    assert found["accuracy"] == pytest.approx(4 / 7)
    part = binomtest(3, 5).proportion_ci(method="wilson")
    p17 = found["by_relation"]["P17"]
    assert p17.pop("ci") == pytest.approx([part.low, part.high])
    assert p17 == {"n": 5, "accuracy": 0.6, "majority_share": 0.6, "in_subject_share": 0.2}
    assert {**found["by_relation"]["P36"], "ci": None} == {
        "n": 2,
        "accuracy": 0.5,
        "ci": None,
        "majority_share": 0.5,
        "in_subject_share": 0.5,
    }
    assert list(found["by_relation"]) == ["P17", "P36"]
    assert (found["requests_per_s"], found["output_tokens"], found["wall_s"]) == (3.5, 14, 4.0)
    assert (found["run_id"], found["n"], found["status"]) == ("run-a", 7, "done")


def test_the_table_shows_the_same_in_percent_and_ends_with_the_whole(store: Store) -> None:
    table = run_table(run_report(store, add_run(store, "run-a", FACTS)), Path("a b.duckdb")).splitlines()
    assert table[0] == "tiny on facts.jsonl: 7 of 7 questions, 4-shot, squad match, 3.5 requests/s"
    rows = {line.split()[0]: " ".join(line.split()) for line in table[2:10] if line}
    assert rows["P17"] == "P17 5 60.0 % 23.1 % - 88.2 % 60.0 % 20.0 % france"
    assert rows["P36"] == "P36 2 50.0 % 9.5 % - 90.5 % 50.0 % 50.0 % lima"
    # Majority of the whole: (3 + 1) of 7, each relation with its own constant answer.
    assert rows["all"] == "all 7 57.1 % 25.0 % - 84.2 % 57.1 % 28.6 %"
    assert "  morfi show run-a --db 'a b.duckdb'" in table
    assert max(map(len, table[2:8])) <= 100


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["P17", "P30", "P36"]), st.integers(0, 3), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_the_baselines_equal_counts_over_the_questions(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int, bool]]
) -> None:
    store = Store(tmp_path_factory.mktemp("drawn") / "morfi.duckdb")
    facts = [
        (relation, f"town {i} of land{answer}" if i % 3 == 0 else f"town {i}", (f"land{answer}",), correct)
        for i, (relation, answer, correct) in enumerate(drawn)
    ]
    report = run_report(store, add_run(store, "run-a", facts))
    counts = {
        relation: Counter(answers[0] for r, _, answers, _ in facts if r == relation)
        for relation in sorted({fact[0] for fact in facts})
    }
    assert [row.accuracy.relation for row in report.relations] == [*counts, None]
    for row in report.relations[:-1]:
        found = counts[str(row.accuracy.relation)]
        assert row.majority_share == max(found.values()) / found.total()
        assert found[row.majority_answer] == max(found.values())
    whole = report.relations[-1]
    best = sum(max(found.values()) for found in counts.values())
    assert whole.majority_share == pytest.approx(best / len(facts))
    assert whole.in_subject_share == pytest.approx(math.ceil(len(facts) / 3) / len(facts))
    assert whole.accuracy.n_correct == sum(fact[3] for fact in facts)


def test_a_run_without_an_answer_yet_is_reported_as_such(store: Store) -> None:
    report = run_report(store, add_run(store, "run-a", [], n_planned=9))
    found = run_object(report)
    assert (found["n"], found["accuracy"], found["ci"], found["by_relation"]) == (0, None, None, {})
    assert "0 of 9 questions" in run_table(report, Path("x"))
    assert "nan" not in runs_table(store.runs(9)).lower()


def test_the_table_of_runs_holds_a_line_for_each_in_columns(store: Store) -> None:
    for run_id in ("run-a", "run-bb"):
        add_run(store, run_id, FACTS, n_planned=10)
    lines = runs_table(store.runs(9)).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["run-bb", "run-a"]
    assert "7/10" in lines[2]
    assert "57.1 %" in lines[2]
    assert len({line.index("57.1 %") for line in lines[2:]}) == 1


def test_no_runs_give_the_header_alone() -> None:
    assert runs_table([]).split()[0] == "run"
    assert len(runs_table([]).splitlines()) == 2


def test_the_table_of_a_comparison_counts_the_flips_it_leaves_out(store: Store) -> None:
    for run_id, verdict in (("run-a", False), ("run-b", True)):
        add_run(store, run_id, [("P17", f"s{i}", ("yes",), verdict) for i in range(25)])
    assert "flipped" not in comparison_table(compare(store, "run-a", "run-a"))
    table = comparison_table(compare(store, "run-a", "run-b"), flips=3).splitlines()
    assert "25 answers flipped, the first 3:" in table
    assert len([line for line in table if line.startswith("+  ")]) == 3
    row = next(line for line in table if line.startswith("P17"))
    assert row.split()[1:5] == ["25", "0.0", "%", "100.0"]


def test_a_query_result_keeps_columns_of_one_name_apart() -> None:
    rows = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "a_2"])
    assert arrow_table(rows).splitlines()[2].split() == ["1", "2", "3"]
    found = arrow_object(rows)
    assert list(found["rows"][0].values()) == [1, 2, 3]
    assert found["columns"] == list(found["rows"][0])
    assert len(set(found["columns"])) == 3


def test_a_query_result_holds_no_number_that_json_lacks() -> None:
    rows = pa.table({"x": [1.5, math.nan, math.inf], "y": [[math.nan], [], None], "z": [{"k": math.nan}] * 3})
    assert arrow_object(rows)["rows"] == [
        {"x": 1.5, "y": [None], "z": {"k": None}},
        {"x": None, "y": [], "z": {"k": None}},
        {"x": None, "y": None, "z": {"k": None}},
    ]


def test_a_query_result_is_cut_after_the_limit_and_a_cell_after_sixty_characters() -> None:
    rows = pa.table({"n": list(range(5)), "text": ["x" * 61, "two\nlines", None, "y" * 60, ""]})
    lines = arrow_table(rows, limit=4).splitlines()
    assert len(lines) == 7
    assert lines[-1] == "(5 rows, the first 4; --json gives all)"
    assert lines[2].endswith("x...")
    assert "two\\nlines" in lines[3]
    assert "y" * 60 in lines[5]
    assert len(arrow_table(rows.slice(0, 0)).splitlines()) == 2


def test_an_empty_cache_is_zero_megabytes() -> None:
    assert cache_table(Path("/somewhere"), []).splitlines()[-1] == "0 MB in /somewhere"
