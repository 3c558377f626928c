"""Subjects found in questions: what is left of each without the wording that its relation shares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from morfi.questions.folding import is_unspaced

_TOKEN = re.compile(r"\w+|[^\w\s]")
_PARTICLE = re.compile(
    "[\u3041-\u309f\u7684\u662f\u5728\u6709\u548c\u4e0e\u7531\u88ab\u4f4d\u4e4b]"
)  # Hiragana, and Chinese ones
_SAMPLE = 400  # questions in which wordings are looked for at once; the others are tried on what is found
_STALE = 7 / 8  # a sample is drawn anew where fewer than this share of its texts are left
_LONGEST = 40  # tokens at either end


@dataclass(frozen=True, slots=True)
class Wording:
    """The tokens before and after the subject; `n` questions are worded so."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    n: int

    def __str__(self) -> str:
        return f'"{" ".join((*self.before, "...", *self.after))}"'


@dataclass(frozen=True, slots=True)
class Found:
    """A subject for each question, "" where its text is a wording and no more; None where none is known.

    `wordings` are those of all questions, the most frequent first; `moved` the words that all questions of a
    wording share and that yet belong to its subjects, being names. `cuts` are the characters of scripts
    without blanks that stand beside subjects and may belong to them, each after such a subject.
    """

    subjects: tuple[str | None, ...]
    wordings: tuple[Wording, ...]
    moved: tuple[str, ...]
    cuts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Tokens:
    text: str
    tokens: tuple[str, ...]
    places: tuple[tuple[int, int], ...]  # of each token in `text`

    def between(self, wording: Wording) -> str | None:
        """The text between the ends of `wording`; None for a text that is worded otherwise."""
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
    sample = _Sample(split[index] for index in _spread(left))
    n_sampled, n_found = len(left), 0  # texts that the sample is of, wordings found in it
    while left:
        best = sample.most_shared()
        if best is None and not (n_found and n_sampled > _SAMPLE):
            break
        if best is None or len(left) < n_sampled * _STALE:
            if n_sampled > _SAMPLE:
                sample, n_sampled, n_found = _Sample(split[index] for index in _spread(left)), len(left), 0
                best = sample.most_shared()
            if best is None:
                break
        n_found += 1
        kept, names = _without_names(best)
        moved += [name for name in names if name not in moved]
        wordings.append(kept)
        left = [index for index in left if split[index].between(kept) is None]
        sample.drop(kept)
    wordings = _shortest(wordings)
    chosen = [_wording_of(one, wordings) for one in split]
    counted = [Wording(one.before, one.after, sum(one is other for other in chosen)) for one in wordings]
    subjects = tuple(
        None if wording is None else one.between(wording) for one, wording in zip(split, chosen, strict=True)
    )
    cuts: dict[str, str] = {}
    for wording, subject in zip(chosen, subjects, strict=True):
        if wording and subject:
            for beside in _besides(subject, wording):
                cuts.setdefault(beside, subject)
    return Found(
        subjects,
        tuple(sorted(counted, key=lambda one: -one.n)),
        tuple(moved),
        tuple((subject, beside) for beside, subject in cuts.items()),
    )


def _besides(subject: str, wording: Wording) -> Iterator[str]:
    """The characters beside `subject` in `wording` that may belong to it: no blank, no particle parts them.

    Nothing else tells where a name ends: two countries whose names end alike are left without that end.
    """
    for beside, end in ((wording.before[-1:], subject[0]), (wording.after[:1], subject[-1])):
        for token in beside:
            may_belong = len(token) == 1 and token.isalnum() and not _PARTICLE.fullmatch(token)
            if may_belong and is_unspaced(token) and is_unspaced(end):
                yield token


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


_Ends = tuple[tuple[str, ...], tuple[str, ...]]


class _Sample:
    """Texts in which wordings are looked for, with the ends that they share, each by how many have it."""

    def __init__(self, texts: Iterable[_Tokens]) -> None:
        self._texts = {one.tokens: one for one in texts}
        counts: dict[_Ends, int] = {}
        for tokens in self._texts:
            for ends in _ends(tokens):
                counts[ends] = counts.get(ends, 0) + 1
        self._shared = {ends: n for ends, n in counts.items() if n > 1 and (ends[0] or ends[1])}

    def most_shared(self) -> Wording | None:
        """The wording that explains most words: its own, in all texts but one that have it; None if none."""
        found = max(
            self._shared,
            key=lambda ends: ((self._shared[ends] - 1) * (len(ends[0]) + len(ends[1])), ends),
            default=None,
        )
        return None if found is None else Wording(*found, self._shared[found])

    def drop(self, wording: Wording) -> None:
        """Leaves out the texts that have `wording`."""
        for tokens in [tokens for tokens, one in self._texts.items() if one.between(wording) is not None]:
            del self._texts[tokens]
            for ends in _ends(tokens):
                if (n := self._shared.get(ends)) is not None:
                    if n > 2:
                        self._shared[ends] = n - 1
                    else:
                        del self._shared[ends]


def _ends(tokens: tuple[str, ...]) -> Iterator[_Ends]:
    """All that a wording of these tokens may have before and after the subject, of one token at least."""
    for n_before in range(min(len(tokens), _LONGEST)):
        for n_after in range(min(len(tokens) - n_before, _LONGEST)):
            yield tokens[:n_before], tokens[len(tokens) - n_after :]


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
