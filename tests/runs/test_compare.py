from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_record import run_record
from scipy.stats import binomtest

from morfi.errors import InputError
from morfi.questions.question import Question
from morfi.runs.compare import compare, difference
from morfi.statistics import wilson_interval
from morfi.store import Store
from morfi.store.records import CompletionRow, JudgedAnswer

QUESTIONS = [
    Question(
        f"q{i:02}", "P17" if i % 3 else "P36", f"subject {i}", f"question {i}?", (f"answer {i}", f"a{i}")
    )
    for i in range(40)
]


def add_run(
    store: Store,
    run_id: str,
    verdicts: Mapping[str, bool],
    *,
    sample: int = 0,
    questions: Sequence[Question] = QUESTIONS,
    answer: str = "x",
    **changes: Any,
) -> None:
    store.begin_run(run_record(run_id, n_planned=len(verdicts), **changes), {"test": questions})
    store.write_completions(
        [
            CompletionRow(
                run_id,
                question_id,
                sample,
                "p",
                JudgedAnswer(f" {run_id} {question_id}", answer, "stop", *(correct,) * 3, 1, 1, 1, 1),
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


@pytest.mark.long
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
    assert found.whole.interval.low < 0 < found.whole.interval.high, "three questions leave much open"
    assert found.notes == ()


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
    others = [replace(question, text=f"else {question.text}") for question in QUESTIONS]
    add_run(store, "run-b", verdicts_of([True]), data_sha256="e" * 64, questions=others)
    with pytest.raises(InputError, match=r"run-a and run-b cannot be compared: .*d{12}.*e{12}"):
        compare(store, "run-a", "run-b")


def test_the_questions_that_two_data_sets_share_are_compared_and_this_is_said(store: Store) -> None:
    add_run(store, "run-a", verdicts_of([True, True, False]))
    others = [QUESTIONS[0], replace(QUESTIONS[1], answers=("other",)), QUESTIONS[2]]
    add_run(store, "run-b", verdicts_of([True, True, True]), data_sha256="e" * 64, questions=others)
    found = compare(store, "run-a", "run-b")
    assert (found.whole.n, found.whole.n_gained, found.n_only_a, found.n_only_b) == (2, 1, 1, 1)
    assert found.notes[0].startswith("asked from other data (world-facts dddddddddddd, world-facts eeeeeeeee")


def test_runs_that_were_judged_by_different_rules_are_judged_by_one(store: Store) -> None:
    ids = [question.id for question in QUESTIONS[:4]]
    add_run(store, "run-a", dict.fromkeys(ids, False), config={"match": "squad"}, answer="In answer 0!")
    add_run(store, "run-b", dict.fromkeys(ids, True), config={"match": "contains"}, answer="In answer 0!")
    found = compare(store, "run-a", "run-b")
    assert (found.whole.n_gained, found.whole.n_lost) == (0, 0)
    assert found.notes == ("judged differently: a by squad, b by contains; here both are judged by squad",)
    found = compare(store, "run-b", "run-a")
    assert (found.whole.accuracy_a, found.whole.accuracy_b) == (1.0, 0.25), "a's verdicts are its own"


@pytest.mark.parametrize(
    ("changes", "config", "note"),
    [
        ({}, {"shots": 0}, "prompted differently, so that not only the checkpoints differ: shots 4 and 0"),
        ({"bos": False}, {}, "prompted differently, so that not only the checkpoints differ: BOS yes and no"),
        ({"prompt": "chat template"}, {}, "prompted differently, .*: prompt p and chat template"),
        ({"seed": 1}, {}, "prompted differently, .*: seed 0 and 1"),
        ({}, {"max_tokens": 64}, "cut differently, .*: max-tokens 16 and 64"),
        ({}, {"dtype": "bfloat16"}, "computed differently, .*: dtype float32 and bfloat16"),
    ],
)
def test_what_else_differs_between_the_runs_is_said(
    store: Store, changes: dict[str, Any], config: dict[str, Any], note: str
) -> None:
    changes = {"ckpt": "other", "ckpt_sha256": "b" * 64, **changes}
    same = {"match": "squad", "shots": 4, "max_tokens": 16, "dtype": "float32"}
    add_run(store, "run-a", verdicts_of([True, False]), config=same)
    add_run(store, "run-b", verdicts_of([True, True]), config=same | config, **changes)
    (found,) = compare(store, "run-a", "run-b").notes
    assert re.fullmatch(note, found)


def test_of_one_checkpoint_it_is_not_said_that_the_checkpoints_differ(store: Store) -> None:
    for run_id, shots in (("run-a", 4), ("run-b", 0)):
        add_run(store, run_id, verdicts_of([True]), config={"shots": shots})
    found = compare(store, "run-a", "run-b")
    assert found.notes == ("prompted differently: shots 4 and 0",)
    assert (found.ckpt_a, found.ckpt_sha256_b) == ("smollm2", "a" * 64)


def test_a_run_that_asks_nothing_is_named_with_what_it_has(store: Store) -> None:
    add_run(store, "run-a", verdicts_of([True]))
    add_run(store, "mix-b", {}, kind="mix")
    with pytest.raises(InputError, match=r"mix-b is a run of `morfi mix`, .* in mixture: morfi sql"):
        compare(store, "run-a", "mix-b")


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60))
def test_no_interval_of_a_difference_is_of_width_zero(n_gained: int, n_lost: int, n_same: int) -> None:
    before = [False] * n_gained + [True] * n_lost + [True] * n_same
    after = [True] * n_gained + [False] * n_lost + [True] * n_same
    found = difference(before, after)
    assert -1 <= found.interval.low <= found.difference <= found.interval.high <= 1
    assert found.interval.low < found.interval.high


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
