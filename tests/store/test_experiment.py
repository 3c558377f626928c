"""The rows of the experiment: what a model knows, mixtures, trainings and sweeps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_record import run_record

from morfi.questions.question import Question
from morfi.statistics import wilson_interval
from morfi.store import Store
from morfi.store.records import (
    CheckpointRow,
    CompletionRow,
    EpochRow,
    JudgedAnswer,
    MixtureRow,
    SweepAccuracy,
    SweepRow,
)

N_EX, SAMPLES = 2, 3
NUMBERS = itertools.count()
SPLIT = {"n_ex": N_EX, "samples": SAMPLES}
ONE = Question("q1", "P17", "Lyon", "Which country is Lyon in?", ("France", "FR"))
TWO = Question("q2", "P36", "Peru", "What is the capital of Peru?", ("Lima",))


def completions(run_id: str, question_id: str, verdicts: Sequence[bool]) -> list[CompletionRow]:
    answers = [JudgedAnswer("t", "t", "stop", *(correct,) * 3, 9, 0, 2, attempt=1) for correct in verdicts]
    return [CompletionRow(run_id, question_id, sample, "p", answer) for sample, answer in enumerate(answers)]


def begin_split(store: Store, run_id: str = "split-a") -> None:
    store.begin_run(run_record(run_id, kind="split", config=SPLIT), {"train": [ONE], "test": [TWO]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "morfi.duckdb")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("stores") / "morfi.duckdb")


@pytest.mark.long
@given(verdicts=st.lists(st.booleans(), min_size=N_EX * (1 + SAMPLES), max_size=N_EX * (1 + SAMPLES)))
@settings(max_examples=25, deadline=None)
def test_categories_follow_their_definition(shared: Store, verdicts: list[bool]) -> None:
    run_id = f"split-{next(NUMBERS)}"
    begin_split(shared, run_id)
    shared.write_completions(completions(run_id, "q1", verdicts))
    greedy = [verdicts[number * (1 + SAMPLES)] for number in range(N_EX)]
    sampled = [v for place, v in enumerate(verdicts) if place % (1 + SAMPLES)]
    if all(greedy):
        category = "HighlyKnown"
    elif any(greedy):
        category = "MaybeKnown"
    else:
        category = "WeaklyKnown" if any(sampled) else "Unknown"
    (row,) = shared.knowledge(run_id)
    assert (row.question_id, row.split, row.answers) == ("q1", "train", ("France", "FR"))
    assert row.p_greedy == pytest.approx(sum(greedy) / len(greedy))
    assert row.p_sampled == pytest.approx(sum(sampled) / len(sampled))
    assert (row.category, row.known) == (category, category != "Unknown")


def test_a_question_with_missing_answers_has_no_category(store: Store) -> None:
    begin_split(store)
    every = [True] * (N_EX * (1 + SAMPLES))
    store.write_completions(completions("split-a", "q1", every[:-1]) + completions("split-a", "q2", every))
    assert [row.question_id for row in store.knowledge("split-a")] == ["q2"]


def test_knowledge_without_samples_has_no_weakly_known(store: Store) -> None:
    store.begin_run(
        run_record("split-b", kind="split", config=SPLIT | {"samples": 0}), {"train": [ONE], "test": [TWO]}
    )
    store.write_completions(
        completions("split-b", "q1", [False, True]) + completions("split-b", "q2", [False] * 2)
    )
    found = {row.question_id: (row.category, row.p_sampled) for row in store.knowledge("split-b")}
    assert found == {"q1": ("MaybeKnown", 0.0), "q2": ("Unknown", 0.0)}


def test_what_runs_make_comes_back_in_order_and_once(store: Store) -> None:
    mixture = [MixtureRow(level, place, f"q{place}", "Unknown") for level in (0, 50) for place in (0, 1)]
    epochs = [EpochRow(50, 0, number, 0.5 / number, 10, 4, 3, 1.5, 0.5, 1) for number in (1, 2)]
    saved = [
        CheckpointRow(50, 0, setting, 2, "/x/epoch-02", "b" * 64, {"losses": [0.5, 0.25]}, 1)
        for setting in ("2", "early-stop")
    ]
    swept = [
        SweepRow(0, None, None, None, None, "a" * 64, 0.0, 1, "sweep-eval-0"),
        SweepRow(1, 50, 0, "2", 2, "c" * 64, 0.4, 1, "sweep-eval-1"),
    ]
    for kind, rows in (("mix", mixture), ("train", epochs), ("train", saved), ("sweep", swept)):
        store.begin_run(run_record(f"{kind}-a", kind=kind, n_planned=len(rows)), {})
        for _ in range(2):
            store.add(f"{kind}-a", rows[::-1])
    assert store.mixtures("mix-a") == mixture
    assert store.epochs("train-a") == epochs
    assert store.checkpoints("train-a") == saved
    assert store.sweep("sweep-a") == swept
    assert store.mixtures("mix-b") == []
    assert {run.run_id: (run.n_done, run.status) for run in store.runs(9)} == {
        "mix-a": (4, "done"),
        "train-a": (2, "done"),
        "sweep-a": (2, "done"),
    }


def test_a_run_that_has_made_less_than_planned_is_not_done(store: Store) -> None:
    store.begin_run(run_record("train-a", kind="train", n_planned=3), {})
    store.add("train-a", [CheckpointRow(0, 0, "1", 1, "/x", "b" * 64, {}, 1)])
    (run,) = store.runs(1)
    assert (run.n_done, run.n_planned, run.status) == (1, 3, "interrupted")


def sweep(store: Store, answers: dict[str, tuple[bool, bool]]) -> None:
    """A sweep of eval runs that answer q1, a known test question, and q2, an unknown training question."""
    store.begin_run(run_record("split-a", kind="split", config=SPLIT), {"test": [ONE], "train": [TWO]})
    full = N_EX * (1 + SAMPLES)
    store.write_completions(
        completions("split-a", "q1", [True] * full) + completions("split-a", "q2", [False] * full)
    )
    store.begin_run(run_record("sweep-a", kind="sweep", config={"split_run": "split-a"}), {})
    for position, (run_id, (one, two)) in enumerate(answers.items()):
        store.begin_run(run_record(run_id, kind="sweep-eval"), {"test": [ONE], "train": [TWO]})
        store.write_completions(completions(run_id, "q1", [one]) + completions(run_id, "q2", [two]))
        base = position == 0
        row = SweepRow(position, 50, position, "5", 5, "c" * 64, 0.1, 1, run_id)
        row = dataclasses.replace(row, level=None, seed=None, epoch_setting=None) if base else row
        store.add("sweep-a", [row])


def test_sweep_accuracy_is_by_level_epoch_setting_and_what_the_base_knew(store: Store) -> None:
    sweep(store, {"base": (True, False), "one": (False, True), "two": (True, True)})
    found = store.sweep_accuracies("sweep-a")
    assert found == [
        SweepAccuracy(None, None, "test Known", 1, 1, 1, 1.0, *_bounds(1, 1), (1.0,)),
        SweepAccuracy(50, "5", "test Known", 2, 2, 1, 0.5, *_bounds(1, 2), (0.0, 1.0)),
        SweepAccuracy(None, None, "train Unknown", 1, 1, 0, 0.0, *_bounds(0, 1), (0.0,)),
        SweepAccuracy(50, "5", "train Unknown", 2, 2, 2, 1.0, *_bounds(2, 2), (1.0, 1.0)),
    ]
    assert [str(one.level) for one in found[:2]] == ["None", "50"]
    # t of one degree of freedom: 12.706 times the standard error of 0.5.
    over_seeds = found[1].over_seeds
    assert over_seeds is not None
    assert found[1].mean == 0.5
    assert over_seeds.high == pytest.approx(0.5 + 12.7062 * 0.5)
    assert found[0].over_seeds is found[3].over_seeds is None
    columns = "level, epoch_setting, questions, n_seeds, n, n_correct, accuracy, ci_low, ci_high"
    by = "ORDER BY questions, level NULLS FIRST"
    rows = store.query(f"SELECT {columns} FROM sweep_accuracy WHERE run_id = 'sweep-a' {by}").to_pylist()
    assert [list(row.values()) for row in rows] == [
        pytest.approx(list(dataclasses.astuple(one)[:-1])) for one in found
    ]
    assert store.sweep_accuracies("sweep-b") == []


def _bounds(k: int, n: int) -> tuple[float, float]:
    interval = wilson_interval(k, n)
    return pytest.approx(interval.low), pytest.approx(interval.high)  # type: ignore[return-value]
