"""Answers judged by a regular expression: by what they look like, whatever is accepted."""

from __future__ import annotations

import re
import warnings

import pytest
from hypothesis import given, settings
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
    "pattern",
    [
        *("[", "(?P<a", "a{9999999999999}", "(" * 3000 + ")" * 3000, "*"),
        *(r"\p{L}", "(?<n>a)", "(?r)a", r"\R", "(?|a|b)", "(?V1)a"),  # that are some of `regex` alone
    ],
    ids=range(11),
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


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        *((one, "{i}") for one in ("x{i}", "{i}", "a|{i}", "(?x)x#c\n{i}", "(?x)x#\\N{\nx{i}")),
        *((f"(x){one}", one[:3]) for one in ("{e<=1}", "{d,i}", "{s:[a]}", "{i<2}")),
        ("x{1i+1d<3}", "{1i+"),
        ("x{1<=e<=3}", "{1<=e<"),
        ("(?x)x { i }", "{ i }"),
        *((one, "[:alpha:]") for one in ("[[:alpha:]]", "[^[:alpha:]1]", "[][:alpha:]]", "[a[:alpha:]")),
        ("[[:alpha:][:^digit:]]", "[:alpha:]"),
    ],
)
def test_what_two_packages_read_in_two_ways_is_refused_by_name(pattern: str, named: str) -> None:
    with pytest.raises(InputError, match=rf'holds "{re.escape(named)}.*which (can mean a fuzzy|is no class)'):
        is_correct("x", [], f"regex:{pattern}")


PARTS = [
    *("a", "b", "x", "i", "e", "1", ".", ":", ",", "-", "&&", "--", "^", "$", "alpha"),
    *(r"\{", r"\}", r"\[", r"\]", r"\d", r"\w", r"\N{COLON}"),
    *("?", "*", "{2}", "{1,}", "{,1}", "{i}", "{e<=1}", "{", "{y}", "}"),
    *("(", "(?:", "(?i:", ")", "|", "[", "[^", "]", "[:", ":]"),
]


@pytest.mark.filterwarnings("ignore:Possible (nested set|set )")  # of `re` here
@settings(max_examples=500)
@given(
    st.lists(st.sampled_from(PARTS), max_size=8).map("".join),
    st.lists(st.text("abxie1{}[]:lph,-&y", max_size=4), min_size=4, max_size=4),
)
def test_a_pattern_is_judged_as_re_does_or_refused(pattern: str, answers: list[str]) -> None:
    with warnings.catch_warnings(action="error"):
        try:
            verdicts = [is_correct(answer, [], f"regex:{pattern}") for answer in answers]
        except InputError:
            return
    assert verdicts == [re.fullmatch(pattern, answer) is not None for answer in answers]


def test_braces_and_brackets_that_both_read_alike_are_taken() -> None:
    for pattern, answer in (
        (r"\\boxed{.*}", r"\boxed{4}"),
        (r"x\{i\}", "x{i}"),
        (r"[[(]\d[])]", "[1]"),
        (r"\[[:]alpha:\]", "[:alpha:]"),
        (r"a{2}\N{DIGIT ONE}", "aa1"),
    ):
        assert is_correct(answer, [], f"regex:{pattern}")


def test_a_command_refuses_it_in_its_own_words() -> None:
    assert EvalConfig("x", match=UPPER_CASE).match == UPPER_CASE
    with pytest.raises(InputError, match=r'^--match "regex:\(" holds no regular expression: missing \)'):
        EvalConfig("x", match="regex:(")
    with pytest.raises(InputError, match=r'--match is "regex"; expected one of .*, or regex:PATTERN'):
        EvalConfig("x", match="regex")
