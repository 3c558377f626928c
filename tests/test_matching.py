from __future__ import annotations

import random
import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.matching import (
    MATCH_MODES,
    answer_in_subject,
    is_correct,
    majority_answer,
    normalise,
    parse_answer,
)
from morfi.types import Question


def question(*answers: str, subject: str = "Atlantis", name: str = "1") -> Question:
    return Question(name, "P17", subject, f"In which country is {subject}?", answers)


def normalised_by_regex(text: str) -> str:
    """The definition again, step by step, with other means."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    words = [word for word in re.split(r"\s+", text) if not re.fullmatch("a|an|the", word)]
    return " ".join(word for word in words if word)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The United States", "united states"),
        ("Washington, D.C.", "washington dc"),
        ("  St.   Louis\t", "st louis"),
        ("«Côte d\u2019Ivoire»", "côte divoire"),
        ("\uff26\uff52\uff41\uff4e\uff43\uff45", "france"),  # full-width letters
        ("Sa\u0303o Tome\u0301", "são tomé"),  # combining marks
        ("A an THE", ""),
        ("theatre of another", "theatre of another"),
        ("C++ & C#", "c c"),
        ("東京。", "東京"),
        ("+49", "49"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalise_follows_the_definition(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text(st.one_of(st.characters(), st.sampled_from("a an the A.,'\u2019 \t\u00a0")), max_size=40))
def test_normalise_equals_a_second_implementation(text: str) -> None:
    assert normalise(text) == normalised_by_regex(text)


@given(st.text(st.characters(categories=("L", "N", "Zs", "P")), max_size=30))
def test_punctuation_case_and_blanks_around_change_no_verdict(text: str) -> None:
    assert is_correct(f"  {text}!! ", [text], "squad") or not normalise(text)


@given(st.text(max_size=30), st.lists(st.text(max_size=10), max_size=4))
def test_strict_implies_squad_implies_contains(answer: str, accepted: list[str]) -> None:
    strict, squad, contains = (is_correct(answer, accepted, mode) for mode in ("strict", "squad", "contains"))
    assert strict <= squad <= contains


@pytest.mark.parametrize(
    ("answer", "accepted", "verdicts"),
    [
        ("France", ["France"], {"squad", "strict", "contains"}),
        ("france.", ["France"], {"squad", "contains"}),
        ("It is in France, near Paris", ["France"], {"contains"}),
        ("the Bahamas", ["Bahamas"], {"squad", "contains"}),
        ("Nigeria", ["Niger"], set()),
        ("South Korea", ["Korea"], {"contains"}),
        ("Korea", ["South Korea"], set()),
        (" New\u00a0York ", ["New York"], {"squad", "contains"}),
        ("USA", ["United States", "USA"], {"squad", "strict", "contains"}),
        ("", ["France"], set()),
        ("France", [], set()),
        ("French", ["France"], set()),
    ],
)
def test_verdict_of_each_mode(answer: str, accepted: list[str], verdicts: set[str]) -> None:
    assert {mode for mode in MATCH_MODES if is_correct(answer, accepted, mode)} == verdicts


@pytest.mark.parametrize("mode", MATCH_MODES)
@pytest.mark.parametrize("accepted", ["The The", "!!!", "an", ""])
def test_accepted_answer_that_normalises_to_nothing_matches_itself_only(accepted: str, mode: str) -> None:
    assert not is_correct("Paris", [accepted], mode)
    assert not is_correct("the", [accepted], mode)
    assert is_correct(f" {accepted} ", [accepted], mode)


def test_unknown_mode_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r'"squat".*Did you mean "squad"'):
        is_correct("x", ["x"], "squat")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris\nQ: What", "Paris"),
        ("Washington, D.C.", "Washington, D.C."),
        ("\nParis", ""),
        ("Paris\r\nQ", "Paris"),
        ("", ""),
    ],
)
def test_answer_is_the_first_line_stripped(text: str, answer: str) -> None:
    assert parse_answer(text) == answer


@pytest.mark.parametrize(
    ("subject", "answers", "copied"),
    [
        ("Mexico City", ["Mexico"], True),
        ("University of the Oxford, England", ["Oxford England"], True),
        ("Nigeria", ["Niger"], False),
        ("Paris", ["France", "paris!"], True),
        ("Paris", ["The"], False),
        ("Paris", ["Paris, Texas"], False),
    ],
)
def test_answer_in_subject_looks_for_whole_words(subject: str, answers: list[str], copied: bool) -> None:
    assert answer_in_subject(question(*answers, subject=subject)) is copied


def test_majority_answer_counts_a_question_once_for_each_accepted_answer() -> None:
    rows = [question("USA", "usa", "United States"), question("Peru"), question("France", "USA!")]
    best = majority_answer(rows)
    assert (best.answer, best.n, best.share) == ("usa", 2, 2 / 3)


def test_majority_answer_of_no_questions_is_empty() -> None:
    best = majority_answer([])
    assert (best.answer, best.n, best.share) == ("", 0, 0.0)


@given(
    st.lists(st.lists(st.sampled_from(["USA", "the usa", "France", "Peru", "The"]), min_size=1), max_size=12),
    st.randoms(use_true_random=False),
)
def test_majority_share_is_the_accuracy_of_always_giving_it(
    answers: list[list[str]], order: random.Random
) -> None:
    rows = [question(*some, name=str(number)) for number, some in enumerate(answers)]
    best = majority_answer(rows)
    n_right = sum(is_correct(best.answer, row.answers, "squad") for row in rows) if best.answer else 0
    assert best.n == n_right
    for constant in ("USA", "France", "Peru"):
        assert sum(is_correct(constant, row.answers, "squad") for row in rows) <= best.n
    order.shuffle(rows)
    assert majority_answer(rows) == best
