"""Questions to try on a checkpoint, above all those that fine-tuning cost it, from the newest sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.questions.question import Question
from morfi.serve.http.catalog import Catalog
from morfi.store.records import SweepRow

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class Tried:
    """A question, with what the reference and the served checkpoint answered, if a sweep asked them."""

    question: Question
    reference_answer: str | None = None
    answer: str | None = None


def captured_questions(catalog: Catalog) -> list[Tried]:
    """The questions that the find run is about."""
    return [Tried(question) for question in catalog.found.activations.questions]


def lost_questions(catalog: Catalog, served: str) -> list[Tried]:
    """The questions of the newest sweep that M_0 answered right and the checkpoint `served` (an id) wrong.

    M_0 is the checkpoint of the lowest level with the same seed and epoch setting; with the base model
    served, the find run's setting and the lowest seed. Raises InputError where no sweep asked both.
    """
    if served not in catalog.checkpoints:
        raise InputError(f"{served} is no checkpoint of {catalog.trained.train.run_id}, so no sweep asked it")
    store, row = catalog.store, catalog.checkpoints[served]
    rows = newest_sweep(store, catalog.trained.train.run_id)
    setting = catalog.found.activations.epochs if row is None else row.epoch_setting
    of_setting = [one for one in rows if one.level is not None and one.epoch_setting == setting]
    alike = [one for one in of_setting if row is None or one.seed == row.seed]
    reference = min(alike, key=lambda one: (one.level or 0, one.seed or 0), default=None)
    asked = next((one for one in rows if _is(one, catalog, served)), None)
    if reference is None or asked is None:
        raise InputError(
            f"no sweep has asked {served} and its M_0 yet; run: morfi sweep --ckpts "
            f"{catalog.trained.train.run_id}"
        )
    before = {sample["question_id"]: sample for sample in _answers(store, reference)}
    return [
        Tried(_question(sample), before[sample["question_id"]]["answer"], sample["answer"])
        for sample in _answers(store, asked)
        if not sample["correct"] and before.get(sample["question_id"], {}).get("correct")
    ]


def asked_questions(catalog: Catalog) -> list[Question]:
    """The questions of the find run and of the newest sweep."""
    rows = newest_sweep(catalog.store, catalog.trained.train.run_id)
    asked = [_question(sample) for sample in _answers(catalog.store, rows[0])] if rows else []
    return [*(one.question for one in captured_questions(catalog)), *asked]


def newest_sweep(store: Store, train_run: str) -> list[SweepRow]:
    """The rows of the newest sweep of a train run's checkpoints; none where there is no sweep."""
    found = store.newest_of("sweep", train_run)
    return [] if found is None else store.sweep(found.run_id)


def known_accuracies(catalog: Catalog) -> dict[str, float]:
    """The share of Known test questions that the newest sweep's checkpoints got right, by id.

    Seeds of a level count together.
    """
    run = catalog.store.newest_of("sweep", catalog.trained.train.run_id)
    if run is None:
        return {}
    by_setting = {
        (one.level, one.epoch_setting): one.accuracy
        for one in catalog.store.sweep_accuracies(run.run_id)
        if one.questions.endswith("Known") and not one.questions.startswith("train")
    }
    keys = {
        name: (None, None) if row is None else (row.level, row.epoch_setting)
        for name, row in catalog.checkpoints.items()
    }
    return {name: by_setting[key] for name, key in keys.items() if key in by_setting}


def _is(one: SweepRow, catalog: Catalog, served: str) -> bool:
    row = catalog.checkpoints[served]
    if row is None:
        return one.level is None
    return (one.level, one.seed, one.epoch_setting) == (row.level, row.seed, row.epoch_setting)


def _answers(store: Store, one: SweepRow) -> list[dict[str, Any]]:
    """The greedy answers of one checkpoint."""
    return [row for row in store.samples(one.eval_run_id).to_pylist() if row["sample"] == 0]


def _question(sample: Mapping[str, Any]) -> Question:
    names = ("question_id", "relation", "subject", "question", "answers")
    question_id, relation, subject, text, answers = (sample[name] for name in names)
    return Question(question_id, relation, subject, text, tuple(answers))
