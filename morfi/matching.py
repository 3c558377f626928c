"""How an answer is compared with the accepted ones, and the two confounds that make a fact look known."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from morfi.errors import InputError, nearest
from morfi.types import Question

MATCH_MODES = ("squad", "strict", "contains")

_ARTICLES = frozenset(("a", "an", "the"))


class _WithoutPunctuation(dict[int, int | None]):
    """A table for `str.translate` that drops punctuation, filled with each character as it is met."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        dropped = character in string.punctuation or unicodedata.category(character).startswith("P")
        self[code] = None if dropped else code
        return self[code]


_WITHOUT_PUNCTUATION = _WithoutPunctuation()


def parse_answer(text: str) -> str:
    """The answer inside a completion: its first line, without the blanks around it.

    A blank first line gives an empty answer: nothing after it is looked at.
    """
    return text.split("\n", 1)[0].strip()


def normalise(text: str) -> str:
    """`text` as SQuAD compares it: NFKC, lower case, no punctuation, no a/an/the, single blanks.

    Punctuation is dropped, not replaced by a blank ("D.C." becomes "dc"): every character of the Unicode
    categories P, and the ASCII symbols ($, +, <, =, >, ^, `, |, ~).
    """
    composed = text if text.isascii() else unicodedata.normalize("NFKC", text)
    words = composed.lower().translate(_WITHOUT_PUNCTUATION).split()
    return " ".join([word for word in words if word not in _ARTICLES])


def is_correct(answer: str, accepted: Sequence[str], mode: str) -> bool:
    """Whether `answer` equals (`squad`, `strict`) or holds (`contains`, whole words) an accepted answer.

    An accepted answer of which normalisation leaves nothing ("The The", "!!!") is compared as in `strict`
    in every mode, for nothing would equal every other nothing, and stand in every text.
    Raises InputError for an unknown mode.
    """
    if mode not in MATCH_MODES:
        hint = nearest(mode, MATCH_MODES)
        raise InputError(f'unknown way to match "{mode}"; expected squad, strict or contains.{hint}')
    stripped = answer.strip()
    normalised = "" if mode == "strict" else normalise(answer)
    for candidate in accepted:
        wanted = "" if mode == "strict" else normalise(candidate)
        if not wanted:
            if stripped == candidate.strip():
                return True
        elif normalised == wanted or (mode == "contains" and _holds_words(normalised, wanted)):
            return True
    return False


def answer_in_subject(question: Question) -> bool:
    """Whether an accepted answer stands, as whole words, inside the subject's name ("Mexico City").

    Such a question can be answered by copying, without knowing the fact.
    """
    subject = normalise(question.subject)
    wanted = (normalise(answer) for answer in question.answers)
    return any(words and _holds_words(subject, words) for words in wanted)


@dataclass(frozen=True, slots=True)
class MajorityAnswer:
    """The best constant answer to a list of questions: `n` of them, a `share` of all, accept it."""

    answer: str  # normalised
    n: int
    share: float


def majority_answer(questions: Sequence[Question]) -> MajorityAnswer:
    """The normalised answer that most of `questions` accept; empty, with share 0, for no questions.

    Among equals the one listed first in the questions' own answers wins, then the alphabet, so that
    neither the order of the questions nor an alias decides.
    """
    counts: dict[str, int] = {}
    positions: dict[str, int] = {}
    for question in questions:
        words = dict.fromkeys(normalise(answer) for answer in question.answers)
        for position, answer in enumerate(answer for answer in words if answer):
            counts[answer] = counts.get(answer, 0) + 1
            positions[answer] = positions.get(answer, 0) + position
    if not counts:
        return MajorityAnswer("", 0, 0.0)
    best = min(counts, key=lambda answer: (-counts[answer], positions[answer], answer))
    return MajorityAnswer(best, counts[best], counts[best] / len(questions))


def _holds_words(text: str, words: str) -> bool:
    """Whether `words` stands in `text` between blanks; both are normalised."""
    return f" {words} " in f" {text} "
