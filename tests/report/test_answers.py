from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from morfi.report.answers import answer_lines, answer_object
from morfi.report.evaluation import run_report, run_table
from morfi.store import Store
from morfi.store.counts import AnswerCounts
from morfi.store.records import BaselineRow

P17 = AnswerCounts("P17", n=200, n_correct=50, n_squad=50, n_answer=50, n_all=200, n_cut=0, n_empty=0)
P474 = AnswerCounts("P474", n=100, n_correct=10, n_squad=10, n_answer=14, n_all=100, n_cut=0, n_empty=0)


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    assert answer_lines([P17], "squad", 16) == []
    assert answer_lines([], "squad", 16) == []
    assert answer_object([])["accuracy_answer"] is None


def test_cut_and_empty_answers_are_counted() -> None:
    counts = [replace(P17, n_cut=7), replace(P474, n_empty=2, n_answer=10)]
    assert answer_lines(counts, "squad", 16) == [
        "7 of 300 answers were cut at --max-tokens 16; what is right in more words counts as wrong.",
        "2 of 300 answers are empty.",
    ]
    one = [replace(P17, n_cut=1, n_empty=1)]
    assert answer_lines(one, "regex:.*", None) == [
        "1 of 200 answers was cut; what would follow is not looked at.",
        "1 of 200 answers is empty.",
    ]
    assert answer_lines([P17, P474], "regex:.*", 16) == []
    assert answer_object(counts) == {
        "n_cut": 7,
        "n_empty": 2,
        "accuracy_squad": 60 / 300,
        "accuracy_answer": 60 / 300,
    }


def test_relations_and_the_whole_are_named_where_the_rules_differ_by_a_point() -> None:
    assert answer_lines([P17, P474], "strict", 16) == [
        "right by --match squad and by --match answer (this run: strict): all 20.0 % and 21.3 %, "
        "calling code (P474) 10.0 % and 14.0 %."
    ]
    many = [replace(P474, relation=f"P{i}", n_answer=12 + i) for i in range(8)]
    (line,) = answer_lines([replace(P17, n=10_000), *many], "squad", 16)
    assert line.endswith("P3 10.0 % and 15.0 % and 3 relations more.")
    assert "all" not in line.partition(": ")[2].split(": ")[-1].split(",")[0]


def test_the_majority_is_that_of_the_whole_split_whatever_was_asked(
    store: Store, add_run: Callable[..., str]
) -> None:
    run_id = add_run(store, "run-a")
    assert "answer among the questions asked. in" in run_table(run_report(store, run_id))
    store.add(run_id, [BaselineRow("test", "P17", 50, "peru", 20), BaselineRow("test", "P36", 10, "lima", 1)])
    report = run_report(store, run_id)
    assert [(row.majority_answer, row.majority_share) for row in report.relations] == [
        ("peru", 0.4),
        ("lima", 0.1),
        ("", (5 * 0.4 + 2 * 0.1) / 7),
    ]
    assert "frequent answer. in subject" in run_table(report)
