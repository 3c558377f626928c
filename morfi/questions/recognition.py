"""Questions that are the same, whatever their ids: by what they are about, and what they ask."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from morfi.questions.folding import folded, is_unspaced
from morfi.questions.matching import normalise
from morfi.questions.question import Question

_MAY_SAY_SOMETHING = re.compile(r"[^\w\s?'\"]")
# The signs that make another question of one. Hyphens, points and commas inside words are only writing.
_SIGN = re.compile(
    r"""
      (?<=\d)[.:](?=\d) | (?<![\w.])\.(?=\d)                # 1.5, 10:30, .5
    | (?<=\d),(?=\d)(?!\d{3}(?!\d))                        # 1,5, but not 1,000
    | (?<=\d)\s*[-/]\s*(?=\d)                             # 3-4, 1/2
    | (?<=[^\W_])\s*[-+*/^=<>]?[+*^=<>]\s*(?=-?[^\W_])     # 3+4, x=1, x<=1
    | (?<![\w)])-(?=\$?\d) | [<>]=?(?=\s*-?\d) | \$(?=\d)  # -5, >5, $5
    | (?<=\d)%
    | (?<=[^\W_])[+#]+(?![^\W_])                          # C++, C#, O+
    | (?:(?<=^[^\W_])|(?<=[\W_][^\W_])|(?<=^[^\W_]{2})|(?<=[\W_][^\W_]{2}))-(?![^\W_])  # O-, AB-
    """,
    re.VERBOSE,
)


@lru_cache(maxsize=1 << 19)  # a set's subjects and texts are looked up several times
def subject_key(subject: str) -> str:
    """The key that two spellings of a subject share: normalised, without diacritics.

    Signs beside numbers and single letters, which say something ("C++", "3-4"), are part of it. A subject of
    which that leaves nothing ("!!!") is its own key, without the blanks around it.
    """
    shown = without_marks(subject)
    if _MAY_SAY_SOMETHING.search(shown):
        shown = _SIGN.sub(_kept, folded(shown))
    return normalise(shown) or subject.strip()


def _kept(sign: re.Match[str]) -> str:
    """The sign in characters of private use, which `normalise` does not take for punctuation."""
    return "".join(chr(0xE000 + ord(character)) for character in sign[0].replace(",", ".").strip())


def text_key(question: Question) -> str:
    """The key that two spellings of a question's text share, as `subject_key` says of subjects."""
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
