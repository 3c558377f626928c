"""The exemplars that a relation's questions share: drawn by a seed, and never giving an answer away."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from morfi.errors import InputError
from morfi.questions import UNSPLIT, Families, QuestionSet, text_key
from morfi.questions.question import Question


@dataclass(frozen=True, slots=True)
class Shots:
    """The exemplars of each relation, and the questions left to score."""

    exemplars: Mapping[str, tuple[Question, ...]]
    scored: tuple[Question, ...]
    first_sample: int = 0  # the number of the first answer to each question under these exemplars


def no_shots(questions: Sequence[Question]) -> Shots:
    """`questions` without exemplars."""
    return Shots(dict.fromkeys(sorted({question.relation for question in questions}), ()), tuple(questions))


def choose_shots(
    data: QuestionSet,
    scored: Sequence[Question],
    split: str,
    *,
    shots: int,
    seed: int | str,
    sources: Sequence[str] = ("train", "dev"),
) -> Shots:
    """`shots` exemplars for every relation of `scored`, drawn by the seed and the same for all its questions.

    They come from the first of `sources` that is not the scored split, and none gives a question of that
    split away (see `Families`). A source without splits gives them from its own questions; those, and any
    question that they would give away, are then not scored.
    Raises InputError for a relation that has too few.
    """
    return draw_shots(data, scored, split, shots=shots, seeds=(seed,), sources=sources)[0]


def draw_shots(
    data: QuestionSet,
    scored: Sequence[Question],
    split: str,
    *,
    shots: int,
    seeds: Sequence[int | str],
    sources: Sequence[str] = ("train", "dev"),
) -> list[Shots]:
    """The exemplars of `choose_shots` for each of `seeds`; no two draws of a relation are the same.

    They differ in their exemplars as long as there are other sets, then in the order of these.
    Raises InputError, with the number that there is, for a relation that has fewer than `seeds` draws.
    """
    relations = sorted({question.relation for question in scored})
    if shots == 0:
        return [no_shots(scored) for _ in seeds]
    source = _exemplar_split(data, split, sources)
    families = Families((*data.splits[source], *(data.splits[split] if source != split else ())))
    # Those of the whole split, not only of what is scored, lest --limit decide who is an exemplar.
    barred = {families.of(question) for question in data.splits[split]} if source != split else set()
    allowed = [question for question in data.splits[source] if families.of(question) not in barred]
    pools = _pools(allowed, relations)
    drawn = {relation: _draws(pools[relation], relation, shots, seeds) for relation in relations}
    for relation in relations:
        if len(pools[relation]) < shots:
            about = f", about other subjects than those of {split}" if source != split else ""
            raise _too_few(f"{len(pools[relation])} questions in {source}{about}", relation, data, shots)
        if len(drawn[relation]) < len(seeds):
            raise InputError(
                f"relation {relation} of {data.name} has {len(pools[relation])} questions in {source} to "
                f"take {shots} exemplars from, which makes {len(drawn[relation])} different prompts, not "
                f"{len(seeds)}; give --n-ex {len(drawn[relation])} or less, or fewer --shots, or other "
                "--relations"
            )
    found = []
    for number in range(len(seeds)):
        exemplars = {relation: drawn[relation][number] for relation in relations}
        shown = {families.of(one) for chosen in exemplars.values() for one in chosen}
        left = tuple(question for question in scored if families.of(question) not in shown)
        for relation in sorted(set(relations) - {question.relation for question in left}):
            raise _too_few(f"no question left to score of {len(pools[relation])}", relation, data, shots)
        found.append(Shots(exemplars, left))
    return found


def n_sets(draws: Sequence[Shots], relation: str) -> int:
    """How many different sets of exemplars `draws` show for a relation, whatever their order."""
    return len({frozenset(question.id for question in one.exemplars[relation]) for one in draws})


def _pools(questions: Sequence[Question], relations: Sequence[str]) -> dict[str, list[Question]]:
    """The questions of each relation in order of id, no text twice."""
    pools: dict[str, dict[str, Question]] = {relation: {} for relation in relations}
    for question in sorted(questions, key=lambda question: question.id):
        if question.relation in pools:
            pools[question.relation].setdefault(text_key(question), question)
    return {relation: list(pool.values()) for relation, pool in pools.items()}


def _draws(
    candidates: Sequence[Question], relation: str, shots: int, seeds: Sequence[int | str]
) -> list[tuple[Question, ...]]:
    """As many different draws of `shots` candidates as there are `seeds`, or as can be made."""
    n_sets_left = math.comb(len(candidates), shots)
    n_possible = min(len(seeds), math.perm(len(candidates), shots))
    orders: set[tuple[Question, ...]] = set()
    sets: set[frozenset[Question]] = set()
    found: list[tuple[Question, ...]] = []
    for seed in seeds[:n_possible]:
        rng = random.Random(f"shots/{seed}/{relation}")  # noqa: S311 - a reproducible draw, not a secret
        chosen = tuple(rng.sample(candidates, shots))
        while chosen in orders or (n_sets_left and frozenset(chosen) in sets):
            chosen = tuple(rng.sample(candidates, shots))
        n_sets_left -= frozenset(chosen) not in sets
        orders.add(chosen)
        sets.add(frozenset(chosen))
        found.append(chosen)
    return found


def _too_few(found: str, relation: str, data: QuestionSet, shots: int) -> InputError:
    return InputError(
        f"relation {relation} of {data.name} has {found}: too few for {shots} exemplars; "
        "give a smaller --shots or other --relations"
    )


def _exemplar_split(data: QuestionSet, split: str, sources: Sequence[str]) -> str:
    if split == UNSPLIT:
        return UNSPLIT
    for candidate in sources:
        if candidate != split and candidate in data.splits:
            return candidate
    raise InputError(
        f"{data.name} has no train or dev questions beside {split} to take exemplars from; "
        "give --shots 0 or a data set with a train split"
    )
