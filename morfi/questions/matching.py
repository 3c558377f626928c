"""How an answer is compared with the accepted ones, and the two confounds that make a fact look known."""

from __future__ import annotations

import re
import string
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import regex

from morfi.errors import InputError, nearest, reason_of
from morfi.questions.answer_rule import ARTICLES, answer_key
from morfi.questions.folding import folded, is_unspaced
from morfi.questions.question import Question

MATCH_MODES = ("squad", "answer", "strict", "contains")
REGEX = "regex:"  # and a pattern: a further rule, by which an answer has a form whatever is accepted
_SHOWN = 80  # characters of an answer in a message
_PATTERN_S = 1.0  # processor time for one answer
_ESCAPED = re.compile(r"\\N\{[\w -]*\}|\\.", re.DOTALL)
# What `regex` reads in another way than `re`: a fuzzy match such as {i} or {e<=1}, and [:alpha:] in a set.
_FUZZY = re.compile(r"\{\s*(?:\d+\s*(?:<=?)?\s*)?[deis]\s*[,}:<+]")
_POSIX_CLASS = re.compile(r"\[\^?\]?[^\]]*(\[:[^\]]*:\])")
MATCH_RULES = f"{', '.join(MATCH_MODES)}, or {REGEX}PATTERN"  # for messages


class _WithoutPunctuation(dict[int, int | None]):
    """A table for `str.translate` that drops punctuation, filled with each character as it is met."""

    def __missing__(self, code: int) -> int | None:
        self[code] = None if _is_punctuation(chr(code)) else code
        return self[code]


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


_WITHOUT_PUNCTUATION = _WithoutPunctuation()


def parse_answer(text: str) -> str:
    """The answer inside a completion: its first line, without the blanks around it.

    A blank first line gives an empty answer: nothing after it is looked at.
    """
    return text.split("\n", 1)[0].strip()


def normalise(text: str) -> str:
    """`text` as SQuAD compares it: folded, no punctuation, no a/an/the, single blanks.

    Punctuation is dropped, not replaced by a blank ("D.C." becomes "dc"): every character of the Unicode
    categories P, and the ASCII symbols ($, +, <, =, >, ^, `, |, ~). Articles alone are words, for nothing
    else would be left of them. Folding (`folding`) gives the published rule, which knows ASCII only,
    one form of each character to work on.
    """
    words = folded(text).translate(_WITHOUT_PUNCTUATION).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def is_correct(answer: str, accepted: Sequence[str], mode: str) -> bool:
    """Whether `answer` is one of `accepted` by the rule `mode`, one of MATCH_MODES, or matches its pattern.

    `squad` and `answer` compare what `normalise` and `answer_key` make of both, `strict` the texts without
    the blanks around them; `contains` asks whether an accepted answer stands in `answer` as whole words (see
    `holds`), or equals it as in `squad`. An accepted answer of which a rule leaves nothing ("!!!") is
    compared as in `strict`, for nothing would equal every other nothing, and stand in every text. After REGEX
    the pattern has to match the whole answer, without the blanks around it, and `accepted` does not matter.
    Raises InputError for an unknown mode, and for a pattern that takes too long on this answer.
    """
    if (pattern := pattern_of(mode)) is not None:
        return _fits(pattern, answer.strip())
    form = form_of(mode)
    stripped, own = answer.strip(), form(answer)
    for candidate in accepted:
        wanted = form(candidate)
        if not wanted:
            if stripped == candidate.strip():
                return True
        elif own == wanted or (mode == "contains" and holds(answer, candidate)):
            return True
    return False


def form_of(mode: str) -> Callable[[str], str]:
    """The function from a text to what the rule `mode` compares; raises InputError for an unknown mode."""
    if pattern_of(mode) is not None:
        return str.strip
    if mode not in MATCH_MODES:
        hint = nearest(mode, MATCH_MODES)
        raise InputError(f'unknown way to match "{mode}"; expected one of {MATCH_RULES}.{hint}')
    forms: dict[str, Callable[[str], str]] = {"strict": str.strip, "answer": answer_key}
    return forms.get(mode, normalise)


@lru_cache
def pattern_of(mode: str) -> regex.Pattern[str] | None:
    """The pattern of a rule that begins with REGEX, else None; raises InputError where it is none.

    The language is that of Python's `re`; `regex` matches it, which can be told to stop. What the two read
    in different ways is refused.
    """
    if not mode.startswith(REGEX):
        return None
    written = mode.removeprefix(REGEX)
    try:
        with warnings.catch_warnings(action="ignore"):  # of what Python may read in another way some day
            re.compile(written)
            _check_read_alike(written, mode)
            return regex.compile(written, regex.VERSION0)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise InputError(f'"{mode}" holds no regular expression: {reason_of(error)}') from error


def _check_read_alike(written: str, mode: str) -> None:
    """Raises InputError for a pattern with what `re` and `regex` read in different ways."""
    plain = _ESCAPED.sub("x", written)
    if (found := _FUZZY.search(plain)) is not None:
        raise InputError(f'"{mode}" holds "{found[0]}", which can mean a fuzzy match; write \\{{ for a brace')
    if (found := _POSIX_CLASS.search(plain)) is not None:
        raise InputError(
            f'"{mode}" holds "{found[1]}", which is no class in Python\'s re; write its characters'
        )


def _fits(pattern: regex.Pattern[str], answer: str) -> bool:
    try:
        return pattern.fullmatch(answer, timeout=_PATTERN_S) is not None
    except TimeoutError as error:
        shown = answer if len(answer) <= _SHOWN else f"{answer[:_SHOWN]}…"
        raise InputError(
            f'--match {REGEX}{pattern.pattern} takes more than {_PATTERN_S:g} s on the answer "{shown}": it '
            "can be matched in too many ways; write it without a repetition inside another"
        ) from error


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Whether an answer is right: by the rule of its run, by `squad` and by `answer`."""

    correct: bool
    correct_squad: bool
    correct_answer: bool


def judge(answer: str, accepted: Sequence[str], mode: str) -> Verdicts:
    """The verdicts on `answer` by the rule `mode` and by the two that are stored with every answer."""
    squad, as_answer = is_correct(answer, accepted, "squad"), is_correct(answer, accepted, "answer")
    by_mode = {"squad": squad, "answer": as_answer}
    chosen = by_mode[mode] if mode in by_mode else is_correct(answer, accepted, mode)
    return Verdicts(chosen, squad, as_answer)


@dataclass(frozen=True, slots=True)
class _Words:
    """The letters, digits and marks of a text without what stands between them.

    `cuts` are the places in `letters` where a word may begin or end: where blanks or punctuation stood, and
    on both sides of each character of a script without blanks. `blanks` are those where a blank stood.
    """

    letters: str
    cuts: frozenset[int]
    blanks: frozenset[int]


@lru_cache(maxsize=65_536)
def _words(text: str) -> _Words:
    letters: list[str] = []
    cuts, blanks = {0}, set()
    for character in folded(text):
        place = len(letters)
        if character.isspace():
            cuts.add(place)
            blanks.add(place)
        elif _is_punctuation(character):
            cuts.add(place)
        else:
            is_mark = unicodedata.category(character).startswith("M")
            if is_unspaced(character):
                cuts.add(place + 1)
                if not is_mark:
                    cuts.add(place)
            if is_mark and place not in blanks:
                cuts.discard(place)  # a mark belongs to the letter before it
            letters.append(character)
    return _Words("".join(letters), frozenset(cuts | {len(letters)}), frozenset(blanks))


def holds(text: str, wanted: str) -> bool:
    """Whether `wanted` stands in `text` as whole words, with or without punctuation between and around them.

    A word ends at blanks and punctuation ("France's", "Paris-based", "Dallas/Fort Worth") and, in scripts
    that put no blanks between words, after every character. What a blank parts in one of the two must be
    parted in the other too, by a blank or punctuation. Case and Unicode forms do not matter, nor does an
    article in front of `wanted`. False where `wanted` is only punctuation.
    """
    return any(_stands_in(_words(text), form) for form in _forms_in_text(wanted))


def _forms_in_text(wanted: str) -> Iterator[_Words]:
    """The words of `wanted`, as it is and without an article in front of other words."""
    for shown in dict.fromkeys((wanted, normalise(wanted))):
        if (words := _words(shown)).letters:
            yield words


def _stands_in(text: _Words, wanted: _Words) -> bool:
    start = text.letters.find(wanted.letters)
    while start >= 0:
        if _parted_alike(text, start, wanted):
            return True
        start = text.letters.find(wanted.letters, start + 1)
    return False


def _parted_alike(text: _Words, start: int, wanted: _Words) -> bool:
    """Whether the letters of `wanted`, which stand in `text` from `start` on, are whole words there."""
    end = start + len(wanted.letters)
    return (
        start in text.cuts
        and end in text.cuts
        and all(place - start in wanted.cuts for place in text.blanks if start < place < end)
        and all(start + place in text.cuts for place in wanted.blanks if 0 < place < len(wanted.letters))
    )


def answer_in_subject(question: Question) -> bool:
    """Whether an accepted answer stands, as whole words, inside the subject's name ("Mexico City").

    Such a question can be answered by copying, without knowing the fact.
    """
    return _copied_from(question.subject, question)


def answer_in_text(question: Question) -> bool:
    """Whether an accepted answer stands in the question's own text, the subject's name left out."""
    return _copied_from(question.text.replace(question.subject, " | "), question)


def _copied_from(text: str, question: Question) -> bool:
    wanted = (answer for answer in question.answers if answer.strip().lower() not in ARTICLES)
    return any(holds(text, answer) for answer in wanted)


@dataclass(frozen=True, slots=True)
class MajorityAnswer:
    """The best constant answer to a list of questions: `n` of them, a `share` of all, accept it."""

    answer: str  # in the form that its rule compares
    n: int
    share: float


def majority_answer(questions: Sequence[Question], mode: str = "squad") -> MajorityAnswer:
    """The accepted answer that is right for most of `questions` by the rule `mode`; empty for no questions.

    Among equals the one listed first in the questions' own answers wins, then the alphabet, so that
    neither the order of the questions nor an alias decides. Where `mode` is a pattern, an accepted
    answer that matches it is right for all questions.
    """
    form = form_of(mode)
    counts: dict[str, int] = {}
    positions: dict[str, int] = {}
    for question in questions:
        forms = dict.fromkeys(form(answer) for answer in question.answers)
        for position, answer in enumerate(answer for answer in forms if answer):
            counts[answer] = counts.get(answer, 0) + 1
            positions[answer] = positions.get(answer, 0) + position
    if mode == "contains":
        counts = _n_contained(counts, questions)
    elif (pattern := pattern_of(mode)) is not None:
        counts = {answer: len(questions) for answer in counts if _fits(pattern, answer)}
    if not counts:
        return MajorityAnswer("", 0, 0.0)
    best = min(counts, key=lambda answer: (-counts[answer], positions[answer], answer))
    return MajorityAnswer(best, counts[best], counts[best] / len(questions))


def _n_contained(candidates: Iterable[str], questions: Sequence[Question]) -> dict[str, int]:
    """For each of `candidates` the number of questions of which it contains an accepted answer."""
    accepting: dict[str, list[tuple[_Words, int]]] = {}
    for number, question in enumerate(questions):
        for answer in question.answers:
            for words in _forms_in_text(answer):
                accepting.setdefault(words.letters, []).append((words, number))
    found: dict[str, int] = {}
    for candidate in candidates:
        text = _words(candidate)
        places = sorted(text.cuts)
        right = {
            number
            for index, start in enumerate(places)
            for end in places[index + 1 :]
            for words, number in accepting.get(text.letters[start:end], ())
            if _parted_alike(text, start, words)
        }
        found[candidate] = len(right)
    return found
