"""Question sets: checked, identified by content, split and drawn from."""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from morfi.errors import InputError, nearest
from morfi.questions.folding import holds_text
from morfi.questions.question import Question
from morfi.questions.recognition import Families, subject_key, without_marks

SPLITS = ("train", "dev", "test")
UNSPLIT = "all"  # the only split of a source that does not say which split its questions belong to

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of one source by split; `sha256` names their content, whatever file they came from."""

    name: str
    sha256: str
    splits: Mapping[str, tuple[Question, ...]]  # keys among train, dev and test, or only "all"
    notes: tuple[str, ...] = ()  # what is to be said of how it was read, a sentence each


def question_set(name: str, splits: Mapping[str, Sequence[Question]]) -> QuestionSet:
    """The set of these questions, with the sha256 of their content; splits without questions are left out.

    The digest is over one line of compact JSON for each question, [split, id, relation, subject, question,
    answers], in sorted order: neither file name, compression, further keys nor the order of rows changes it.
    """
    lines = sorted(
        json.dumps(
            [split, row.id, row.relation, row.subject, row.text, row.answers],
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for split, rows in splits.items()
        for row in rows
    )
    digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    return QuestionSet(name, digest, {split: tuple(rows) for split, rows in splits.items() if rows})


def with_splits(data: QuestionSet) -> QuestionSet:
    """`data` in train, dev and test, 60, 15 and 25 % of its subjects; the same where it has splits already.

    A hash of the subject's `split_key` decides: a subject stands in one split only, and neither the other
    questions nor the file's name change where it goes. Questions that give each other away, by their text or
    by another spelling of the subject, go together: where the first of their keys goes. The name stays, the
    sha256 is that of the new content.
    """
    if set(data.splits) != {UNSPLIT}:
        return data
    splits: dict[str, list[Question]] = {split: [] for split in SPLITS}
    families, groups = Families(data.splits[UNSPLIT]), dict[str, list[Question]]()
    for question in data.splits[UNSPLIT]:
        groups.setdefault(families.of(question), []).append(question)
    for group in groups.values():
        key = min(split_key(question.subject) or subject_key(question.subject) for question in group)
        splits[split_of(key, "questions/1")] += group
    return replace(question_set(data.name, splits), notes=data.notes)


def split_of(key: str, salt: str) -> str:
    """The split of what `key` names: train, dev or test for 60, 15 and 25 % of all keys, by their hash."""
    digest = hashlib.sha256(f"{salt}/{key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") % 100
    return "train" if place < 60 else "dev" if place < 75 else "test"


def split_key(name: str) -> str:
    """The key that decides the split of a name: lower case, without diacritics, punctuation and articles.

    It stays as it was when the first sets were split by it, or their questions would change places.
    """
    composed = unicodedata.normalize("NFKC", without_marks(name)).lower().translate(_ASCII_PUNCTUATION)
    if not composed.isascii():
        composed = "".join(c for c in composed if not unicodedata.category(c).startswith("P"))
    return " ".join([word for word in composed.split() if word not in ("a", "an", "the")])


def select(
    questions: Iterable[Question], *, relations: Sequence[str] = (), limit: int | None = None, seed: int = 0
) -> tuple[Question, ...]:
    """At most `limit` questions of the given relations (of all, when none is given), grouped by relation.

    Inside a relation they stand in an order drawn from the seed, the relation and the ids alone, and every
    relation gives the same share of `limit`, smaller ones all they have; so a smaller limit gives a part of a
    larger one's questions. Raises InputError for a relation that no question has or a limit under 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit on questions is {limit}; expected at least 1")
    by_relation: dict[str, list[Question]] = {}
    for question in questions:
        by_relation.setdefault(question.relation, []).append(question)
    wanted = sorted(set(_named(relations, by_relation)) or by_relation)
    shares = equal_shares([len(by_relation[relation]) for relation in wanted], limit)
    chosen: list[Question] = []
    for relation, share in zip(wanted, shares, strict=True):
        rows = sorted(by_relation[relation], key=lambda question: question.id)
        random.Random(f"{seed}/{relation}").shuffle(rows)  # noqa: S311 - a reproducible draw, not a secret
        chosen += rows[:share]
    return tuple(chosen)


def _named(given: Sequence[str], known: Iterable[str]) -> list[str]:
    """The relations that `given` names; those with commas in their names may come in parts ("city", "state").

    Raises InputError for one that no question has.
    """
    parts_of = {tuple(part.strip() for part in name.split(",")): name for name in known}
    names, place = [], 0
    while place < len(given):
        if given[place] in parts_of.values():
            names.append(given[place])
            place += 1
            continue
        length = next(
            (n for n in range(len(given) - place, 0, -1) if tuple(given[place : place + n]) in parts_of), 0
        )
        if not length:
            available = ", ".join(f'"{name}"' if "," in name else name for name in sorted(parts_of.values()))
            hint = nearest(given[place], parts_of.values())
            raise InputError(
                f'no question has the relation "{given[place]}"; available: {available or "none"}.{hint}'
            )
        names.append(parts_of[tuple(given[place : place + length])])
        place += length
    return names


def equal_shares(sizes: Sequence[int], limit: int | None) -> list[int]:
    """How many to take of each size: `limit` together, evenly, what a small one lacks given to the others."""
    if limit is None:
        return list(sizes)
    shares = [0] * len(sizes)
    left = min(limit, sum(sizes))
    while left:
        open_ones = [index for index, size in enumerate(sizes) if shares[index] < size]
        even = max(1, left // len(open_ones))
        for index in open_ones[:left]:
            taken = min(even, sizes[index] - shares[index])
            shares[index] += taken
            left -= taken
    return shares


def text_of(value: Any, what: str) -> str:
    """`value`, if it is a string that is not blank and can be written as UTF-8; else raises InputError.

    `what` opens the message: where the value stands, and under which key.
    """
    if not isinstance(value, str):
        raise InputError(f"{what} is {shown(value)}; expected a string")
    if not holds_text(value):
        raise InputError(f"{what} is blank{_unseen(value)}; expected some text")
    if _UNWRITABLE.search(value):
        raise InputError(f"{what} is {shown(value)}; expected no NUL and no half of a surrogate pair")
    return value


def _unseen(value: str) -> str:
    return f" to a reader (it is {shown(value)})" if value.strip() else ""


def answers_of(value: Any, what: str) -> tuple[str, ...]:
    """`value` as the accepted answers of a question; raises InputError unless a list of at least one text."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{what} is {shown(value)}; expected a list of at least one accepted answer")
    return tuple(text_of(answer, f"{what}, entry {number}") for number, answer in enumerate(value, 1))


def shown(value: Any) -> str:
    """`value` as JSON (as Python, what JSON has no form for) in at most 60 characters, for a message."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
