"""Subjects found in questions: what is left of each without the wording that its relation shares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from morfi.folding import is_unspaced

_TOKEN = re.compile(r"\w+|[^\w\s]")
_SAMPLE = 400  # questions in which wordings are looked for at once; the others are tried on what is found
_LONGEST = 40  # tokens at either end


@dataclass(frozen=True, slots=True)
class Wording:
    """What stands before and after the subject, as tokens; `n` questions are worded so."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    n: int

    def __str__(self) -> str:
        return f'"{" ".join((*self.before, "...", *self.after))}"'


@dataclass(frozen=True, slots=True)
class Found:
    """A subject for each question, "" where its text is a wording and no more; None where none is known.

    `wordings` are those of all questions, the most frequent first; `moved` the words that all questions of a
    wording share and that yet belong to its subjects, being names.
    """

    subjects: tuple[str | None, ...]
    wordings: tuple[Wording, ...]
    moved: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Tokens:
    text: str
    tokens: tuple[str, ...]
    places: tuple[tuple[int, int], ...]  # of each token in `text`

    def between(self, wording: Wording) -> str | None:
        """What stands between the ends of `wording`; None for a text that is worded otherwise."""
        n_before, n_after, n = len(wording.before), len(wording.after), len(self.tokens)
        if (
            n < n_before + n_after
            or self.tokens[:n_before] != wording.before
            or self.tokens[n - n_after :] != wording.after
        ):
            return None
        if n == n_before + n_after:
            return ""
        return self.text[self.places[n_before][0] : self.places[n - n_after - 1][1]]


def find_subjects(texts: Sequence[str]) -> Found:
    """The subjects of `texts`, all questions of one relation.

    A wording is a beginning and an end that at least two texts share with something else between them. Of
    all that fit, those are taken that explain most words of most texts. A name ("North", after "capital of")
    that all texts of a wording share is part of the subjects.
    """
    split = [_tokens(text) for text in texts]
    left = sorted(range(len(texts)), key=lambda index: texts[index])
    wordings: list[Wording] = []
    moved: list[str] = []
    while left:
        best = _most_shared([split[index] for index in _spread(left)])
        if best is None:
            break
        kept, names = _without_names(best)
        moved += [name for name in names if name not in moved]
        wordings.append(kept)
        left = [index for index in left if split[index].between(kept) is None]
    wordings = _shortest(wordings)
    chosen = [_wording_of(one, wordings) for one in split]
    counted = [Wording(one.before, one.after, sum(one is other for other in chosen)) for one in wordings]
    subjects = tuple(
        None if wording is None else one.between(wording) for one, wording in zip(split, chosen, strict=True)
    )
    return Found(subjects, tuple(sorted(counted, key=lambda one: -one.n)), tuple(moved))


def _tokens(text: str) -> _Tokens:
    """Words and signs; in scripts without blanks each character is a token."""
    places: list[tuple[int, int]] = []
    for found in _TOKEN.finditer(text):
        start, end = found.span()
        if not found[0].isascii() and any(map(is_unspaced, found[0])):
            places += [(place, place + 1) for place in range(start, end)]
        else:
            places.append((start, end))
    return _Tokens(text, tuple(text[start:end] for start, end in places), tuple(places))


def _spread(indices: Sequence[int]) -> Iterable[int]:
    step = max(1, len(indices) // _SAMPLE)
    return indices[::step]


def _most_shared(texts: Iterable[_Tokens]) -> Wording | None:
    """The wording that explains most words: its own, in all texts but one that have it; None without any."""
    counts: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    for text in {one.tokens: one for one in texts}.values():
        tokens = text.tokens
        for n_before in range(min(len(tokens), _LONGEST)):
            # One token at least is the subject.
            for n_after in range(min(len(tokens) - n_before, _LONGEST)):
                ends = (tokens[:n_before], tokens[len(tokens) - n_after :])
                counts[ends] = counts.get(ends, 0) + 1
    found = max(
        counts, key=lambda ends: ((counts[ends] - 1) * (len(ends[0]) + len(ends[1])), ends), default=None
    )
    if found is None or counts[found] < 2 or not (found[0] or found[1]):
        return None
    return Wording(*found, counts[found])


def _without_names(wording: Wording) -> tuple[Wording, list[str]]:
    """`wording` without the names next to its subject, which are its subjects' own, and these names."""
    before, after, names = list(wording.before), list(wording.after), []
    while len(before) > 1 and _is_name(before[-1]):
        names.append(before.pop())
    while len(after) > 1 and _is_name(after[0]):
        names.append(after.pop(0))
    return Wording(tuple(before), tuple(after), wording.n), names


def _is_name(token: str) -> bool:
    return token[0].isupper() or token[0].isdigit()


def _shortest(wordings: Sequence[Wording]) -> list[Wording]:
    """Those of `wordings` that no other one makes superfluous: the same up to names beside the subject."""

    def narrows(one: Wording, other: Wording) -> bool:
        n_before, n_after = len(other.before), len(other.after)
        if one.before[:n_before] != other.before or one.after[len(one.after) - n_after :] != other.after:
            return False
        return any(map(_is_name, (*one.before[n_before:], *one.after[: len(one.after) - n_after])))

    distinct = list({(one.before, one.after): one for one in wordings}.values())
    return [one for one in distinct if not any(narrows(one, other) for other in distinct if other is not one)]


def _wording_of(text: _Tokens, wordings: Sequence[Wording]) -> Wording | None:
    """The longest of `wordings` that `text` has, one that leaves a subject if there is any."""
    if len(wordings) == 1:
        return wordings[0] if text.between(wordings[0]) is not None else None
    fitting = [one for one in wordings if text.between(one) is not None]
    return max(
        fitting, key=lambda one: (text.between(one) != "", len(one.before) + len(one.after)), default=None
    )
