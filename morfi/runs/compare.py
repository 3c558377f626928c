"""Two runs on the same questions: how far apart they are, how sure that is, and which answers flipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.questions.matching import is_correct
from morfi.statistics import (
    Interval,
    mcnemar_exact_p,
    paired_adjusted_interval,
    paired_bootstrap_interval,
    wilson_interval,
)
from morfi.store.records import RunRecord

if TYPE_CHECKING:
    from morfi.store import Store

# Resampling shows nothing that was not seen: with fewer answers unlike the others its interval is too narrow,
# and where all are alike it has no width.
_FEWEST_FOR_BOOTSTRAP = 10


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

    `interval_a` and `interval_b` are Wilson, `interval` that of `difference` (b minus a), all at 95 %: the
    paired bootstrap's or, where fewer than ten answers are unlike the others, Bonett and Price's. `p` is
    McNemar's exact two-sided p-value of `n_gained` against `n_lost`.
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
    """Run b against run a; `n_only_a` and `n_only_b` count the questions that only one of them answered.

    `notes` say, a sentence each, what differs between the runs beside what they are about.
    """

    run_a: str
    run_b: str
    ckpt_a: str
    ckpt_b: str
    ckpt_sha256_a: str
    ckpt_sha256_b: str
    whole: Difference
    by_relation: tuple[Difference, ...]
    flips: tuple[Flip, ...]
    n_only_a: int
    n_only_b: int
    notes: tuple[str, ...]


def compare(store: Store, run_a: str, run_b: str, *, seed: int = 0) -> Comparison:
    """Run b against run a over the questions that both answered greedily (sample 0).

    The runs are given as `Store.answered_run` takes them. A question is the same where id, text and accepted
    answers are. Where the runs went by different rules of matching, both are judged by the rule of run a.
    Raises InputError where they have no question in common. `seed` draws the bootstrap.
    """
    a, b = store.answered_run(run_a), store.answered_run(run_b)
    match = a.asked.match
    rows_a, rows_b = _greedy(store, a.run_id), _greedy(store, b.run_id)
    if b.asked.match != match:
        _judge_anew(rows_b.values(), match)
    pairs = [(row, rows_b[key]) for key, row in rows_a.items() if key in rows_b]
    if not pairs:
        raise InputError(_nothing_in_common(a, b, len(rows_a), len(rows_b)))
    relations = sorted({row["relation"] for row, _ in pairs})
    return Comparison(
        run_a=a.run_id,
        run_b=b.run_id,
        ckpt_a=a.ckpt,
        ckpt_b=b.ckpt,
        ckpt_sha256_a=a.ckpt_sha256,
        ckpt_sha256_b=b.ckpt_sha256,
        whole=_difference(None, pairs, seed),
        by_relation=tuple(
            _difference(relation, [pair for pair in pairs if pair[0]["relation"] == relation], seed)
            for relation in relations
        ),
        flips=tuple(_flip(*pair) for pair in pairs if pair[0]["correct"] != pair[1]["correct"]),
        n_only_a=len(rows_a) - len(pairs),
        n_only_b=len(rows_b) - len(pairs),
        notes=tuple(_notes(store, a, b)),
    )


def _nothing_in_common(a: RunRecord, b: RunRecord, n_a: int, n_b: int) -> str:
    if a.data_sha256 != b.data_sha256:
        return (
            f"runs {a.run_id} and {b.run_id} cannot be compared: their questions differ ({a.data}, sha256 "
            f"{a.data_sha256[:12]}; {b.data}, sha256 {b.data_sha256[:12]}); evaluate both on the same --data"
        )
    return (
        f"runs {a.run_id} and {b.run_id} have no answered question in common "
        f"({n_a} and {n_b} answered); evaluate both with the same --split, --relations and --limit"
    )


def _judge_anew(rows: Iterable[dict[str, Any]], match: str) -> None:
    for row in rows:
        row["correct"] = is_correct(row["answer"], row["answers"], match)


def _notes(store: Store, a: RunRecord, b: RunRecord) -> list[str]:
    """The reasons beside the checkpoints for which the runs' answers differ, a sentence for each kind."""
    of = [(run, run.asked, _engine_dtype(store, run)) for run in (a, b)]
    settings: dict[str, dict[str, list[Any]]] = {
        "prompted": {
            "prompt": [run.prompt for run, _, _ in of],
            "shots": [asked.shots for _, asked, _ in of],
            "BOS": [run.bos_shown for run, _, _ in of],
        },
        "cut": {"max-tokens": [asked.max_tokens for _, asked, _ in of]},
        "computed": {"dtype": [dtype for _, _, dtype in of]},
    }
    if any(settings["prompted"]["shots"]):  # else the seed chooses no exemplars
        settings["prompted"]["seed"] = [run.seed for run, _, _ in of]
    notes = []
    matches = [asked.match for _, asked, _ in of]
    if matches[0] != matches[1]:
        notes.append(
            f"judged differently: a by {matches[0]}, b by {matches[1]}; here both are judged by {matches[0]}"
        )
    beside = "" if a.ckpt_sha256 == b.ckpt_sha256 else ", so that not only the checkpoints differ"
    for how, named in settings.items():
        differing = [
            f"{name} {_shown(one)} and {_shown(other)}"
            for name, (one, other) in named.items()
            if one != other
        ]
        if differing:
            notes.append(f"{how} differently{beside}: {', '.join(differing)}")
    if a.data_sha256 != b.data_sha256:
        notes.append(
            f"asked from other data ({a.data} {a.data_sha256[:12]}, {b.data} {b.data_sha256[:12]}): compared "
            "are the questions with the same id, text and accepted answers"
        )
    return notes


def _shown(value: object) -> str:
    return "?" if value is None else repr(value) if isinstance(value, str) and "\n" in value else str(value)


def _engine_dtype(store: Store, run: RunRecord) -> str | None:
    """The dtype that the run's engine had, else what was asked for."""
    named = [attempt.engine.get("dtype") for attempt in store.attempts(run.run_id)]
    found = next((str(dtype) for dtype in reversed(named) if dtype), run.asked.dtype)
    return None if found is None else str(found).removeprefix("torch.")


def _greedy(store: Store, run_id: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Sample 0 of each question, by what makes it the same question, in the store's order."""
    wanted = [
        *("question_id", "sample", "relation", "subject", "question", "answers", "text", "answer"),
        "correct",
    ]
    rows = [row for row in store.samples(run_id).select(wanted).to_pylist() if row["sample"] == 0]
    return {(row["question_id"], row["question"], *row["answers"]): row for row in rows}


def difference(
    before: Sequence[bool], after: Sequence[bool], *, relation: str | None = None, seed: int = 0
) -> Difference:
    """How verdicts `after` differ from those `before`, of the same questions; `seed` draws the bootstrap."""
    n, n_correct_a, n_correct_b = len(before), sum(before), sum(after)
    changes = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    n_gained, n_lost = changes.count(1), changes.count(-1)
    n_unlike = n - max(n_gained, n_lost, changes.count(0))
    return Difference(
        relation=relation,
        n=n,
        accuracy_a=n_correct_a / n,
        interval_a=wilson_interval(n_correct_a, n),
        accuracy_b=n_correct_b / n,
        interval_b=wilson_interval(n_correct_b, n),
        difference=(n_gained - n_lost) / n,
        interval=paired_adjusted_interval(n_gained, n_lost, n)
        if n_unlike < _FEWEST_FOR_BOOTSTRAP
        else paired_bootstrap_interval(changes, seed=seed),
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
