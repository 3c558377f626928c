"""Answers judged by a regular expression: by what they look like, whatever is accepted."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig
from morfi.questions.matching import is_correct, judge

UPPER_CASE = "regex:[^a-z]*[A-Z][^a-z]*"


@pytest.mark.parametrize(
    ("answer", "right"),
    [("FRANCE", True), (" U.S.A. 1 ", True), ("France", False), ("FRANCe", False), ("1", False), ("", False)],
)
def test_a_pattern_judges_the_whole_answer_whatever_is_accepted(answer: str, right: bool) -> None:
    for accepted in ([], ["France"], [answer]):
        assert is_correct(answer, accepted, UPPER_CASE) is right
    assert judge(answer, [answer or "x"], UPPER_CASE).correct_squad is bool(answer)


@pytest.mark.parametrize(
    "pattern", ["[", "(?P<a", "a{9999999999999}", "(" * 3000 + ")" * 3000, "*"], ids=range(5)
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="holds no regular expression"):
        is_correct("x", ["x"], f"regex:{pattern}")


@pytest.mark.long
def test_a_pattern_that_never_ends_is_stopped_by_name() -> None:
    with pytest.raises(
        InputError, match=r'^--match regex:\(a\|aa\)\+b takes more than 1 s on the answer "a{80}…"'
    ):
        is_correct("a" * 100, [], "regex:(a|aa)+b")


@given(
    st.text("ab \n", max_size=20),
    st.sampled_from(["a*b?", "(?i)A+", "a.b", r"(a|b)*\s$", r"[^a]+\Z", "(a)\\1"]),
)
def test_it_matches_as_re_does(answer: str, pattern: str) -> None:
    assert is_correct(answer, [], f"regex:{pattern}") == bool(re.fullmatch(pattern, answer.strip()))


def test_a_command_refuses_it_in_its_own_words() -> None:
    assert EvalConfig("x", match=UPPER_CASE).match == UPPER_CASE
    with pytest.raises(InputError, match=r'^--match "regex:\(" holds no regular expression: missing \)'):
        EvalConfig("x", match="regex:(")
    with pytest.raises(InputError, match=r'--match is "regex"; expected one of .*, or regex:PATTERN'):
        EvalConfig("x", match="regex")
