"""Two runs on the same questions: how far apart they are, how sure that is, and which answers flipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.statistics import Interval, mcnemar_exact_p, paired_bootstrap_interval, wilson_interval

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class Flip:
    """A question that one run answered correctly and the other did not: gained if b is the correct one."""

    question_id: str
    relation: str
    subject: str
    answers: tuple[str, ...]
    text_a: str
    text_b: str
    gained: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracies of both runs over the n questions of `relation` that both answered (None: all relations).

    `interval_a` and `interval_b` are Wilson, `interval` the paired bootstrap of `difference` (b minus a), all
    at 95 %; `p` is McNemar's exact two-sided p-value of `n_gained` against `n_lost`.
    """

    relation: str | None
    n: int
    accuracy_a: float
    interval_a: Interval
    accuracy_b: float
    interval_b: Interval
    difference: float
    interval: Interval
    p: float
    n_gained: int
    n_lost: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run b against run a; `n_only_a` and `n_only_b` count the questions that only one of them answered."""

    run_a: str
    run_b: str
    whole: Difference
    by_relation: tuple[Difference, ...]
    flips: tuple[Flip, ...]
    n_only_a: int
    n_only_b: int


def compare(store: Store, run_a: str, run_b: str, *, seed: int = 0) -> Comparison:
    """Run b against run a over the questions that both answered greedily (sample 0).

    The runs are given as `Store.run` takes them. Raises InputError where they used different question files
    or have no question in common. `seed` draws the bootstrap.
    """
    a, b = store.run(run_a), store.run(run_b)
    if a.data_sha256 != b.data_sha256:
        raise InputError(
            f"runs {a.run_id} and {b.run_id} cannot be compared: their questions differ ({a.data}, sha256 "
            f"{a.data_sha256[:12]}; {b.data}, sha256 {b.data_sha256[:12]}); evaluate both on the same --data"
        )
    rows_a, rows_b = _greedy(store, a.run_id), _greedy(store, b.run_id)
    pairs = [(row, rows_b[question_id]) for question_id, row in rows_a.items() if question_id in rows_b]
    if not pairs:
        raise InputError(
            f"runs {a.run_id} and {b.run_id} have no answered question in common "
            f"({len(rows_a)} and {len(rows_b)} answered); evaluate both with the same --relations and --limit"
        )
    relations = sorted({row["relation"] for row, _ in pairs})
    return Comparison(
        run_a=a.run_id,
        run_b=b.run_id,
        whole=_difference(None, pairs, seed),
        by_relation=tuple(
            _difference(relation, [pair for pair in pairs if pair[0]["relation"] == relation], seed)
            for relation in relations
        ),
        flips=tuple(_flip(*pair) for pair in pairs if pair[0]["correct"] != pair[1]["correct"]),
        n_only_a=len(rows_a) - len(pairs),
        n_only_b=len(rows_b) - len(pairs),
    )


def _greedy(store: Store, run_id: str) -> dict[str, dict[str, Any]]:
    """Sample 0 of each question, by question id, in the store's order."""
    wanted = ["question_id", "sample", "relation", "subject", "answers", "text", "correct"]
    rows = store.samples(run_id).select(wanted).to_pylist()
    return {row["question_id"]: row for row in rows if row["sample"] == 0}


def difference(
    before: Sequence[bool], after: Sequence[bool], *, relation: str | None = None, seed: int = 0
) -> Difference:
    """How verdicts `after` differ from those `before`, of the same questions; `seed` draws the bootstrap."""
    n, n_correct_a, n_correct_b = len(before), sum(before), sum(after)
    changes = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    n_gained, n_lost = changes.count(1), changes.count(-1)
    return Difference(
        relation=relation,
        n=n,
        accuracy_a=n_correct_a / n,
        interval_a=wilson_interval(n_correct_a, n),
        accuracy_b=n_correct_b / n,
        interval_b=wilson_interval(n_correct_b, n),
        difference=(n_gained - n_lost) / n,
        interval=paired_bootstrap_interval(changes, seed=seed),
        p=mcnemar_exact_p(n_gained, n_lost),
        n_gained=n_gained,
        n_lost=n_lost,
    )


def _difference(
    relation: str | None, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], seed: int
) -> Difference:
    before, after = [a["correct"] for a, _ in pairs], [b["correct"] for _, b in pairs]
    return difference(before, after, relation=relation, seed=seed)


def _flip(a: dict[str, Any], b: dict[str, Any]) -> Flip:
    return Flip(
        question_id=a["question_id"],
        relation=a["relation"],
        subject=a["subject"],
        answers=tuple(a["answers"]),
        text_a=a["text"],
        text_b=b["text"],
        gained=b["correct"],
    )
