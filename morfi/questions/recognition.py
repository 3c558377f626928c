"""What makes two questions the same, whatever their ids: what they are about, and what they ask."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from morfi.folding import is_unspaced
from morfi.matching import normalise
from morfi.types import Question


@lru_cache(maxsize=1 << 19)  # a set's subjects and texts are looked up several times
def subject_key(subject: str) -> str:
    """What two spellings of a subject share: normalised, without diacritics.

    A subject of which that leaves nothing ("!!!") is its own key, without the blanks around it.
    """
    return normalise(without_marks(subject)) or subject.strip()


def text_key(question: Question) -> str:
    """What two spellings of a question's text share, as `subject_key` says of subjects."""
    return subject_key(question.text)


class Families:
    """Questions in families: those of one subject or one text, however spelled, and all that these link.

    Questions of one family give each other's answers away.
    """

    def __init__(self, questions: Iterable[Question]) -> None:
        self._above: dict[str, str] = {}
        for question in questions:
            self._above[self._top(f"text {text_key(question)}")] = self.of(question)

    def of(self, question: Question) -> str:
        """The name of the family of `question`, which is one of those that were given."""
        return self._top(f"subject {subject_key(question.subject)}")

    def _top(self, key: str) -> str:
        while (above := self._above.setdefault(key, key)) != key:
            self._above[key] = self._above[above]
            key = above
        return key


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
