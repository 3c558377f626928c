from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from morfi.report.evaluation import run_object, run_report, run_table
from morfi.report.listing import runs_table
from morfi.store import Store

AddRun = Callable[..., str]


def test_the_object_of_a_run_has_accuracies_intervals_and_both_confounds(
    store: Store, add_run: AddRun
) -> None:
    found = run_object(run_report(store, add_run(store, "run-a")))
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


def test_the_table_shows_the_same_in_percent_and_ends_with_the_whole(store: Store, add_run: AddRun) -> None:
    table = run_table(run_report(store, add_run(store, "run-a"))).splitlines()
    assert table[0] == "tiny on facts.jsonl (test): 7 of 7 questions, 4-shot, squad match, 3.5 requests/s"
    rows = {line.split()[0]: " ".join(line.split()) for line in table[2:10] if line}
    assert rows["country"] == "country (P17) 5 60.0 % 23.1 % - 88.2 % 60.0 % 20.0 % france"
    assert rows["capital"] == "capital (P36) 2 50.0 % 9.5 % - 90.5 % 50.0 % 50.0 % lima"
    # Majority of the whole: (3 + 1) of 7, each relation with its own constant answer.
    assert rows["all"] == "all 7 57.1 % 25.0 % - 84.2 % 57.1 % 28.6 %"
    assert max(map(len, table[2:8])) <= 100


@pytest.mark.long
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["P17", "P30", "P36"]), st.integers(0, 3), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_the_baselines_equal_counts_over_the_questions(
    tmp_path_factory: pytest.TempPathFactory, add_run: AddRun, drawn: list[tuple[str, int, bool]]
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


def test_a_file_without_splits_is_named_so_and_so_are_exemplars_of_its_own(
    store: Store, add_run: AddRun
) -> None:
    run_id = add_run(store, "run-a", split="all")
    report = run_report(store, run_id)
    said = "facts.jsonl has no splits: the exemplars are questions of its own, which are not asked."
    table = run_table(report).splitlines()
    assert table[0].startswith("tiny on facts.jsonl (no splits): 7 of 7 questions")
    assert said in table
    assert run_object(report)["splits"] == ["all"]
    unshown = replace(report, run=replace(report.run, config={"shots": 0}))
    assert said not in run_table(unshown)
    of_test = run_report(store, add_run(store, "run-b"))
    assert said not in run_table(of_test)
    assert run_object(of_test)["splits"] == ["test"]


def test_a_run_without_an_answer_yet_is_reported_as_such(store: Store, add_run: AddRun) -> None:
    report = run_report(store, add_run(store, "run-a", [], n_planned=9))
    found = run_object(report)
    assert (found["n"], found["accuracy"], found["ci"], found["by_relation"]) == (0, None, None, {})
    assert "0 of 9 questions" in run_table(report)
    assert "nan" not in runs_table(store.runs(9)).lower()
