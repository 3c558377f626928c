"""What the checkpoints of a series are asked: the questions of a split run, or those of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.conditions.series import Series
from morfi.errors import InputError
from morfi.questions import UNSPLIT, QuestionSet, load_questions, select
from morfi.questions.question import Question
from morfi.questions.texts import load_texts
from morfi.store.records import KnowledgeRow
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class Source:
    """Questions by split; `facts`, by question id, are what the base model knows, where a split run says."""

    data: QuestionSet
    facts: Mapping[str, KnowledgeRow] | None = None
    relations: tuple[str, ...] = ()

    def split(self, given: str | None, otherwise: str) -> str:
        """The split to ask: what was given, else all of a file without splits, else `otherwise`.

        Raises InputError where there are no questions of it.
        """
        wanted = given or (UNSPLIT if UNSPLIT in self.data.splits else otherwise)
        if wanted not in self.data.splits:
            there = ", ".join(sorted(self.data.splits))
            asker = f"{self.data.name} has" if self.facts is None else "the split run asked"
            raise InputError(f'{asker} no questions of "{wanted}"; it has: {there}')
        return wanted

    def chosen(self, split: str, limit: int | None, seed: int) -> tuple[Question, ...]:
        """At most `limit` questions of a split, as `select` takes them."""
        return select(self.data.splits[split], relations=self.relations, limit=limit, seed=seed)


def source_of(
    series: Series,
    store: Store,
    data: str | None,
    relations: Sequence[str],
    progress: Progress,
    *,
    prompts: str | None = None,
) -> Source:
    """The questions of `series`: its split run's, or those of `data`, a question file as for `morfi eval`.

    With `prompts` the texts of that file instead (`load_texts`). Raises InputError where it has its own and
    others are given, or has none and none are given.
    """
    if prompts is not None:
        if data is not None or relations:
            raise InputError(f"--prompts {prompts} are asked as they are; leave --data and --relations out")
        return Source(load_texts(prompts))
    if series.lineage is None:
        if data is None:
            raise InputError(
                f"--data is missing: {series.source} brings no questions; give a file of them, or world-facts"
            )
        progress.phase(f"reading {data}")
        found = load_questions(data)
        for note in found.notes:
            progress.phase(note)
        return Source(found, relations=tuple(relations))
    for option, given in (("data", data), ("relations", ",".join(relations))):
        if given:
            raise InputError(
                f"--{option} {given}: {series.source} has its own questions, those of "
                f"{series.lineage.split.run_id}; leave --{option} out"
            )
    split = series.lineage.split
    rows = store.knowledge(split.run_id)
    splits: dict[str, list[Question]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row.asked)
    known = QuestionSet(split.data, split.data_sha256, {name: tuple(own) for name, own in splits.items()})
    return Source(known, {row.question_id: row for row in rows})
