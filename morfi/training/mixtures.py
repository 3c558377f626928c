"""Training mixtures D_p: equal in size, equal in relations, p % of their questions Unknown to the model.

A mixture is a row of places. Each place belongs to a relation and has two partners, a Known and an Unknown
question; the share of Unknown decides which of the two stands there. So relation counts are the same at every
level, neighbouring levels differ in exactly the places whose question was replaced, and the Unknown questions
of a level are among those of every higher one.

Subjects and questions are disjoint from dev and test. Inside train one subject may stand in several
relations, and so several times in one mixture: these are different facts.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from morfi.errors import InputError, nearest
from morfi.questions.matching import MajorityAnswer, answer_in_subject, is_correct, majority_answer
from morfi.questions.question import Question
from morfi.questions.recognition import Families
from morfi.questions.sets import equal_shares
from morfi.runs.options import check_numbers, option, run_of
from morfi.store.records import KnowledgeRow, MixtureRow

KNOWN_CATEGORIES = ("HighlyKnown", "MaybeKnown", "WeaklyKnown")
UNKNOWN = "Unknown"

# A relation's majority answer is a confound only where giving it always would earn something: it is right for
# one question in ten, and for three at least. Where every answer differs, each one is a "majority".
MIN_MAJORITY_SHARE = 0.1
MIN_MAJORITY_COUNT = 3

_MOST_NAMED = 5  # relations in one message


@dataclass(frozen=True, slots=True)
class MixConfig:
    """Everything that decides the rows of a mix run; stored with it."""

    split_run: str = run_of("split", name="split")
    levels: tuple[int, ...] = option("Percent Unknown of each mixture.", (0, 10, 25, 50, 75, 90, 100))
    size: int = option("Questions in each mixture.", 320)
    seed: int = 0
    nested: bool = option(
        "Levels share as many questions as they can; --independent draws each by itself.",
        True,
        off="independent",
    )
    exclude_confounds: bool = option("Drop majority answers and copied names.", False)
    known: tuple[str, ...] = option("Categories that count as Known.", KNOWN_CATEGORIES)
    # The paper drops questions with several answers; where these are spellings of one fact, most would go.
    several_answers: bool = option("Keep questions with several accepted answers.", True, off="one-answer")

    def __post_init__(self) -> None:
        _check_levels(self.levels)
        check_numbers({"size": (self.size, 1), "seed": (self.seed, 0)})
        categories = ", ".join(KNOWN_CATEGORIES)
        if not self.known:
            raise InputError(f"no category counts as Known; give one or more of {categories}")
        for category in self.known:
            if category not in KNOWN_CATEGORIES:
                hint = nearest(category, KNOWN_CATEGORIES)
                raise InputError(
                    f'"{category}" cannot count as Known; expected one or more of {categories}.{hint}'
                )


def _check_levels(levels: Sequence[int]) -> None:
    if not levels:
        raise InputError("--levels is empty; give one or more percentages from 0 to 100, such as 0,50,100")
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= 100:
            raise InputError(f"--levels holds {level!r}; expected whole percentages from 0 to 100")
        if levels.count(level) > 1:
            raise InputError(f"--levels holds {level} more than once; give every level once")


@dataclass(frozen=True, slots=True)
class Confounds:
    """The facts that can be answered without knowing them, by question id, and why."""

    majority: Mapping[str, MajorityAnswer]  # by relation, of those that have a material one
    majority_ids: frozenset[str]  # questions that accept their relation's majority answer
    in_subject_ids: frozenset[str]  # questions with an accepted answer inside the subject's name


@dataclass(frozen=True, slots=True)
class Dropped:
    """How many train questions were left out; each is counted once, under the first reason that holds."""

    shared_subject: int = 0  # the subject, or the very question, stands in dev or test too
    other_category: int = 0  # Known, but of a category that was not chosen
    several_answers: int = 0
    majority: int = 0
    in_subject: int = 0


@dataclass(frozen=True, slots=True)
class Mixtures:
    """All mixtures of one draw, in order of level and position, and what was left out before it."""

    rows: tuple[MixtureRow, ...]
    dropped: Dropped


@dataclass(frozen=True, slots=True)
class _Pool:
    """The questions a relation can give."""

    known: tuple[KnowledgeRow, ...]
    unknown: tuple[KnowledgeRow, ...]


def confounds(
    rows: Sequence[KnowledgeRow], *, match: str = "squad", everything: Iterable[Question] = ()
) -> Confounds:
    """Which of `rows`, all splits together, can be answered by a constant or by copying from the subject.

    A relation's majority answer, by the rule `match`, counts if MIN_MAJORITY_COUNT questions and
    MIN_MAJORITY_SHARE of all accept it; of several equally frequent answers `majority_answer` takes one.
    `everything` is the whole data set, of which `rows` may be a part.
    """
    asked = [row.asked for row in rows]
    by_relation: dict[str, list[Question]] = {question.relation: [] for question in asked}
    for question in everything or asked:
        if question.relation in by_relation:
            by_relation[question.relation].append(question)
    majority: dict[str, MajorityAnswer] = {}
    for relation, questions in sorted(by_relation.items()):
        found = majority_answer(questions, match)
        if found.n >= MIN_MAJORITY_COUNT and found.share >= MIN_MAJORITY_SHARE:
            majority[relation] = found
    majority_ids = {
        question.id
        for question in asked
        if question.relation in majority
        and is_correct(majority[question.relation].answer, question.answers, match)
    }
    in_subject = {question.id for question in asked if answer_in_subject(question)}
    return Confounds(majority, frozenset(majority_ids), frozenset(in_subject))


def draw(
    rows: Sequence[KnowledgeRow],
    config: MixConfig,
    splits: Mapping[str, Sequence[Question]] | None = None,
    match: str = "squad",
) -> Mixtures:
    """The mixtures of `config`, drawn from the train questions among `rows`, whatever their order.

    `splits` is the whole data set, of which `rows` may be a part: no question of the family of a dev or test
    question of either is drawn. `match` is the rule that the answers were judged by.

    D_p holds exactly round(size * p / 100) Unknown questions, spread over the relations in proportion to
    their places. Relations have as even a number of places as their questions allow at the lowest and at the
    highest level.
    Raises InputError where there are no Known or no Unknown questions, or too few for `size`.
    """
    kept, dropped = _candidates(rows, config, splits or {}, match)
    pools = {
        relation: _Pool(
            tuple(row for row in kept if row.relation == relation and row.known),
            tuple(row for row in kept if row.relation == relation and not row.known),
        )
        for relation in sorted({row.relation for row in kept})
    }
    places = _places_by_relation(pools, config)
    turns = _turns(pools, places)
    drawn: list[MixtureRow] = []
    for level in sorted(config.levels):
        replaced = frozenset(turns[: _n_unknown(config.size, level)])
        salt = str(config.seed) if config.nested else f"{config.seed}/level {level}"
        chosen = _placed(pools, places, replaced, salt)
        drawn += [
            MixtureRow(level, position, row.question_id, row.category) for position, row in enumerate(chosen)
        ]
    return Mixtures(tuple(drawn), dropped)


def given_away(drawn: Iterable[MixtureRow], facts: Sequence[KnowledgeRow]) -> list[KnowledgeRow]:
    """The training questions among `drawn` that a dev or test question of `facts` is of the family of.

    There are none in mixtures that this morfi drew; an earlier one went by the spelling of subjects alone.
    """
    families = Families(row.asked for row in facts)
    held_out = {families.of(row.asked) for row in facts if row.split != "train"}
    wanted = {row.question_id for row in drawn}
    return [row for row in facts if row.question_id in wanted and families.of(row.asked) in held_out]


def _candidates(
    rows: Sequence[KnowledgeRow],
    config: MixConfig,
    splits: Mapping[str, Sequence[Question]],
    match: str,
) -> tuple[list[KnowledgeRow], Dropped]:
    """The train questions that may be drawn, sorted by id, and the number of those that may not."""
    held_out = [question for split, some in splits.items() if split != "train" for question in some]
    held_out += [row.asked for row in rows if row.split != "train"]
    families = Families((*held_out, *(row.asked for row in rows)))
    barred = {families.of(question) for question in held_out}
    found = Confounds({}, frozenset(), frozenset())
    if config.exclude_confounds:
        everything = [question for some in splits.values() for question in some]
        found = confounds(rows, match=match, everything=everything)
    kept: list[KnowledgeRow] = []
    counts: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row.question_id):
        if row.split != "train":
            continue
        reasons = {
            "shared_subject": families.of(row.asked) in barred,
            "other_category": row.known and row.category not in config.known,
            "several_answers": len(row.answers) > 1 and not config.several_answers,
            "majority": row.question_id in found.majority_ids,
            "in_subject": row.question_id in found.in_subject_ids,
        }
        reason = next((name for name, holds in reasons.items() if holds), None)
        if reason is None:
            kept.append(row)
        else:
            counts[reason] = counts.get(reason, 0) + 1
    return kept, Dropped(**counts)


def _n_unknown(size: int, level: int) -> int:
    return round(size * level / 100)


def _places_by_relation(pools: Mapping[str, _Pool], config: MixConfig) -> dict[str, int]:
    """How many places of a mixture each relation has, `config.size` together.

    A relation with n places needs at most ceil(n * highest / 100) Unknown questions and
    ceil(n * (100 - lowest) / 100) Known ones.
    """
    most, least = max(config.levels), min(config.levels)
    for kind, needed, n in (
        ("Known", least < 100, sum(len(pool.known) for pool in pools.values())),
        ("Unknown", most > 0, sum(len(pool.unknown) for pool in pools.values())),
    ):
        if needed and not n:
            n_left = sum(len(pool.known) + len(pool.unknown) for pool in pools.values())
            raise InputError(
                f"none of the {n_left} train questions that {config.split_run} offers is {kind}; mixtures "
                f"with {least} to {most} % Unknown need some: split more or other data"
            )
    room: dict[str, int] = {}
    for relation, pool in pools.items():
        bounds = []
        if most > 0:
            bounds.append(len(pool.unknown) * 100 // most)
        if least < 100:
            bounds.append(len(pool.known) * 100 // (100 - least))
        room[relation] = min(bounds)
    if sum(room.values()) < config.size:
        raise InputError(_shortage(pools, room, config))
    return dict(zip(room, equal_shares(list(room.values()), config.size), strict=True))


def _shortage(pools: Mapping[str, _Pool], room: Mapping[str, int], config: MixConfig) -> str:
    """The message that says what is missing if every relation had an even part of the missing places."""
    most, least, largest = max(config.levels), min(config.levels), sum(room.values())
    parts = equal_shares([config.size] * len(room), config.size - largest)
    missing: dict[str, dict[str, int]] = {"Unknown": {}, "Known": {}}
    for (relation, pool), part in zip(pools.items(), parts, strict=True):
        n = room[relation] + part
        missing["Unknown"][relation] = -(-n * most // 100) - len(pool.unknown)
        missing["Known"][relation] = -(-n * (100 - least) // 100) - len(pool.known)
    said = []
    for kind, by_relation in missing.items():
        short = sorted(((n, name) for name, n in by_relation.items() if n > 0), key=lambda e: (-e[0], e[1]))
        if short:
            named = ", ".join(f"{name} {n}" for n, name in short[:_MOST_NAMED])
            more = f" and {len(short) - _MOST_NAMED} more" if len(short) > _MOST_NAMED else ""
            said.append(f"{sum(n for n, _ in short)} {kind} questions ({named}{more})")
    advice = f"give --size {largest} or less, or" if largest else "at any size:"
    return (
        f"mixtures of {config.size} questions with {least} to {most} % Unknown cannot be filled from "
        f"{config.split_run}: {' and '.join(said)} are missing if every relation fills an even part; "
        f"{advice} split more data"
    )


def _turns(pools: Mapping[str, _Pool], places: Mapping[str, int]) -> list[tuple[str, int]]:
    """All places, as (relation, number in it), in the order in which they turn from Known to Unknown.

    Turning place k of n when the share of Unknown passes (k + 1/2) / n spreads any number of Unknown
    questions over the relations as Webster's method spreads seats: in proportion and, unlike largest
    remainders, so that a larger number never takes one away. Places whose relation has no Known partner for
    them come first, those without an Unknown partner last.
    """
    order: list[tuple[Fraction, str, int]] = []
    for relation, n in places.items():
        pool = pools[relation]
        for number in range(n):
            share = Fraction(2 * number + 1, 2 * n)
            if number < n - len(pool.known):
                share = Fraction(0)
            elif number >= len(pool.unknown):
                share = Fraction(1)
            order.append((share, relation, number))
    return [(relation, number) for _, relation, number in sorted(order)]


def _placed(
    pools: Mapping[str, _Pool], places: Mapping[str, int], replaced: Collection[tuple[str, int]], salt: str
) -> list[KnowledgeRow]:
    """The questions of one mixture in its order; the places in `replaced` hold their Unknown partner.

    `salt` alone decides partners and order. Unknown questions are given to a relation's places from the first
    one on, Known ones from the last one on.
    """
    chosen: list[KnowledgeRow] = []
    for relation, n in places.items():
        known = _shuffled(pools[relation].known, f"{salt}/{relation}/Known")
        unknown = _shuffled(pools[relation].unknown, f"{salt}/{relation}/Unknown")
        for number in range(n):
            is_unknown = (relation, number) in replaced
            chosen.append(unknown[number] if is_unknown else known[n - 1 - number])
    return _shuffled(chosen, f"{salt}/order")


def _shuffled(rows: Sequence[KnowledgeRow], salt: str) -> list[KnowledgeRow]:
    shuffled = list(rows)
    random.Random(salt).shuffle(shuffled)  # noqa: S311 - a reproducible draw, not a secret
    return shuffled
