"""What makes two questions the same, whatever their ids: what they are about, and what they ask."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from morfi.folding import is_unspaced
from morfi.matching import normalise
from morfi.types import Question


def subject_key(subject: str) -> str:
    """What two spellings of a subject share: normalised, without diacritics.

    A subject of which that leaves nothing ("!!!") is its own key, without the blanks around it.
    """
    return normalise(without_marks(subject)) or subject.strip()


def marks_of(question: Question) -> tuple[str, str]:
    """The keys of the question's subject and text; questions that share either give each other away."""
    return f"subject {subject_key(question.subject)}", f"text {subject_key(question.text)}"


def marks(questions: Iterable[Question]) -> frozenset[str]:
    """All keys of `questions`, to ask `gives_away` with."""
    return frozenset(mark for question in questions for mark in marks_of(question))


def gives_away(question: Question, others: frozenset[str]) -> bool:
    """Whether `question` has its subject or its text from the questions whose `marks` are `others`."""
    return not others.isdisjoint(marks_of(question))


def without_marks(text: str) -> str:
    """`text` without diacritics, in its compatibility form (NFKD)."""
    if text.isascii():
        return text
    return "".join(
        c
        for c in unicodedata.normalize("NFKD", text)
        # In scripts without blanks the marks are vowels and tones: words that differ in them differ.
        if not unicodedata.combining(c) or is_unspaced(c)
    )
