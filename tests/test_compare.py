from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from morfi.compare import compare
from morfi.errors import InputError
from morfi.statistics import Interval, wilson_interval
from morfi.store import Store
from morfi.store.records import CompletionRow, RunRecord
from morfi.types import Question

QUESTIONS = [
    Question(
        f"q{i:02}", "P17" if i % 3 else "P36", f"subject {i}", f"question {i}?", (f"answer {i}", f"a{i}")
    )
    for i in range(40)
]


def add_run(
    store: Store, run_id: str, verdicts: Mapping[str, bool], *, data_sha256: str = "d" * 64, sample: int = 0
) -> None:
    run = RunRecord(
        run_id=run_id,
        kind="eval",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        fingerprint=run_id,
        config={},
        ckpt="smollm2",
        ckpt_sha256="a" * 64,
        base=None,
        base_sha256=None,
        adapter_sha256=None,
        data="world-facts",
        data_sha256=data_sha256,
        prompt="p",
        bos=True,
        seed=0,
        n_planned=len(verdicts),
    )
    store.begin_run(run, {"test": QUESTIONS})
    store.write_completions(
        [
            CompletionRow(
                run_id, question_id, sample, "p", f" {run_id} {question_id}", "x", "stop", correct, 1, 1, 1, 1
            )
            for question_id, correct in verdicts.items()
        ]
    )


def verdicts_of(correct: list[bool]) -> dict[str, bool]:
    return {question.id: verdict for question, verdict in zip(QUESTIONS, correct, strict=False)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "morfi.duckdb")


def test_a_comparison_counts_the_common_questions_and_names_the_flips(store: Store) -> None:
    add_run(store, "run-a", {"q00": True, "q01": True, "q02": False, "q04": True, "q05": True})
    add_run(store, "run-b", {"q00": False, "q01": True, "q02": True, "q04": False, "q07": True, "q08": True})
    found = compare(store, "run-a", "run-b")
    assert (found.run_a, found.run_b, found.n_only_a, found.n_only_b) == ("run-a", "run-b", 1, 2)
    whole = found.whole
    assert (whole.relation, whole.n, whole.n_gained, whole.n_lost) == (None, 4, 1, 2)
    assert (whole.accuracy_a, whole.accuracy_b, whole.difference) == (0.75, 0.5, -0.25)
    assert (whole.interval_a, whole.interval_b) == (wilson_interval(3, 4), wilson_interval(2, 4))
    assert whole.p == pytest.approx(binomtest(1, 3).pvalue)
    assert whole.interval.low <= whole.difference <= whole.interval.high
    assert [(row.relation, row.n, row.difference) for row in found.by_relation] == [
        ("P17", 3, 0.0),
        ("P36", 1, -1.0),
    ]
    assert [(flip.question_id, flip.gained) for flip in found.flips] == [
        ("q02", True),
        ("q04", False),
        ("q00", False),
    ]
    flip = found.flips[0]
    assert (flip.relation, flip.subject, flip.answers) == ("P17", "subject 2", ("answer 2", "a2"))
    assert (flip.text_a, flip.text_b) == (" run-a q02", " run-b q02")


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_swapping_the_runs_swaps_gains_and_losses(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[bool, bool]]
) -> None:
    store = Store(tmp_path_factory.mktemp("swap") / "morfi.duckdb")
    add_run(store, "run-a", verdicts_of([a for a, _ in pairs]))
    add_run(store, "run-b", verdicts_of([b for _, b in pairs]))
    forth, back = compare(store, "run-a", "run-b"), compare(store, "run-b", "run-a")
    for there, here in zip([forth.whole, *forth.by_relation], [back.whole, *back.by_relation], strict=True):
        assert (there.n_gained, there.n_lost, there.p) == (here.n_lost, here.n_gained, here.p)
        assert there.difference == -here.difference
        assert (there.accuracy_a, there.interval_a) == (here.accuracy_b, here.interval_b)
    assert sum(row.n for row in forth.by_relation) == forth.whole.n == len(pairs)
    assert sum(row.n_gained for row in forth.by_relation) == forth.whole.n_gained
    assert len(forth.flips) == forth.whole.n_gained + forth.whole.n_lost
    assert [flip.gained for flip in forth.flips] == [not flip.gained for flip in back.flips]


def test_a_run_against_itself_has_no_difference(store: Store) -> None:
    add_run(store, "run-a", verdicts_of([True, False, True]))
    found = compare(store, "last", "run-a")
    assert (found.whole.difference, found.whole.p, found.flips) == (0.0, 1.0, ())
    assert found.whole.interval == Interval(0.0, 0.0)


def test_the_bootstrap_follows_its_seed(store: Store) -> None:
    add_run(store, "run-a", verdicts_of([i % 2 == 0 for i in range(40)]))
    add_run(store, "run-b", verdicts_of([i % 7 == 0 for i in range(40)]))
    assert compare(store, "run-a", "run-b", seed=3) == compare(store, "run-a", "run-b", seed=3)


def test_further_samples_are_left_out(store: Store) -> None:
    add_run(store, "run-a", verdicts_of([True, True]))
    add_run(store, "run-b", verdicts_of([False, False]))
    add_run(store, "run-b", verdicts_of([True, True, True]), sample=1)
    found = compare(store, "run-a", "run-b")
    assert (found.whole.n, found.whole.n_lost, found.n_only_b) == (2, 2, 0)


def test_runs_on_other_questions_are_refused(store: Store) -> None:
    add_run(store, "run-a", verdicts_of([True]))
    add_run(store, "run-b", verdicts_of([True]), data_sha256="e" * 64)
    with pytest.raises(InputError, match=r"run-a and run-b cannot be compared: .*d{12}.*e{12}"):
        compare(store, "run-a", "run-b")


@pytest.mark.parametrize("verdicts_b", [{}, {"q05": True}])
def test_runs_without_a_common_answer_are_refused(store: Store, verdicts_b: dict[str, bool]) -> None:
    add_run(store, "run-a", verdicts_of([True, False]))
    add_run(store, "run-b", verdicts_b)
    with pytest.raises(
        InputError, match=rf"no answered question in common \(2 and {len(verdicts_b)} answered\)"
    ):
        compare(store, "run-a", "run-b")


def test_an_unknown_run_is_refused(store: Store) -> None:
    add_run(store, "run-a", verdicts_of([True]))
    with pytest.raises(InputError, match='no run "ran-b"'):
        compare(store, "run-a", "ran-b")
