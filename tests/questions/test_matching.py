from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.questions.answer_rule import answer_key
from morfi.questions.folding import folded
from morfi.questions.matching import (
    MATCH_MODES,
    answer_in_subject,
    form_of,
    is_correct,
    judge,
    majority_answer,
    normalise,
    parse_answer,
)
from morfi.questions.question import Question


def question(*answers: str, subject: str = "Atlantis", name: str = "1") -> Question:
    return Question(name, "P17", subject, f"In which country is {subject}?", answers)


def normalised_by_regex(text: str) -> str:
    """The published rule, step by step: lower case, no punctuation, no articles, single blanks."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    words = [word for word in re.split(r"\s+", text) if word]
    return " ".join([word for word in words if not re.fullmatch("a|an|the", word)] or words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The United States", "united states"),
        ("Washington, D.C.", "washington dc"),
        ("  St.   Louis\t", "st louis"),
        ("«Côte d\u2019Ivoire»", "côte divoire"),
        ("\uff26\uff52\uff41\uff4e\uff43\uff45", "france"),  # full-width letters
        ("Sa\u0303o Tome\u0301", "são tomé"),  # combining marks
        ("A an THE", "a an the"),
        ("A.", "a"),
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


@given(st.text(st.sampled_from(string.printable.replace("\x0b", "") + "a an the "), max_size=40))
def test_of_ascii_text_normalise_makes_what_squad_makes(text: str) -> None:
    assert normalise(text) == normalised_by_regex(text)


WRITTEN = st.text(
    st.one_of(
        st.sampled_from(
            "aAnthe TheO01259+-\u2212\u2013.,'\u2019:/^#<>=~\u2264 %$\u00bd\u00b2()&_\u200b\u0131\u0130\u00df"
            '"*\u20ac\u266d\u266f\u221a\u03c0\u207be'
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=14,
)


@given(WRITTEN)
def test_what_is_normalised_stays_so(text: str) -> None:
    assert folded(folded(text)) == folded(text)
    assert normalise(normalise(text)) == normalise(text)
    assert answer_key(answer_key(text)) == answer_key(text)


INVISIBLE = "\u00ad\u034f\u200b\u200c\u200d\u200e\u200f\u202a\u2060\u2061\ufe0f\ufeff\U000e0061\x00"


@given(st.text(st.sampled_from("Paris Łódź 東京 1.5 C++ -5"), max_size=12), st.data())
def test_characters_that_nobody_sees_change_no_verdict(text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text)))
    hidden = text[:place] + data.draw(st.sampled_from(INVISIBLE)) + text[place:]
    assert normalise(hidden) == normalise(text)
    assert answer_key(hidden) == answer_key(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0130stanbul", "Istanbul"),
        ("\u0130zmir", "izmir"),
        ("DIYARBAKIR", "Diyarbak\u0131r"),
        ("Wei\u00dfenburg", "Weissenburg"),
        ("Hawai\u02bbi", "Hawai'i"),
        ("Bah\u00e1\u02bc\u00ed", "Bah\u00e1'\u00ed"),
        ("L\u00b4Aquila", "L\u2019Aquila"),
        ("\u221240", "-40"),
        ("\u0661\u0669\u0664\u0665", "1945"),
        ("\u0967\u096f", "19"),
        ("\u00bd", "1/2"),
        ("1\u00bd", "1 1/2"),
        ("Lego\u2122", "Lego"),
        ("\u2018Tosca\u2019", '"Tosca"'),
        ("\uff21\uff22\uff0d", "AB-"),
        ("A.", "a"),
    ],
)
def test_unicode_writes_one_answer_in_several_forms(one: str, other: str) -> None:
    for mode in ("squad", "answer", "contains"):
        assert is_correct(one, [other], mode)
        assert is_correct(other, [one], mode)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", "15"),
        ("-5", "5"),
        ("-$5", "$5"),
        ("1/2", "12"),
        ("10:30", "1030"),
        ("2-3", "23"),
        ("10^6", "106"),
        (">5", "<5"),
        ("C++", "C"),
        ("C#", "C++"),
        ("C#", "C"),
        ("O-", "O+"),
        ("O-", "O"),
        ("AB\u207b", "AB+"),
        ("Google+", "Google"),
        ("Vitamin A", "vitamin"),
        ("18+", "18"),
        ('"-5"', "5"),
        ("**-5**", "5"),
        ("$-5", "$5"),
        ("1.5e-3", "1.5e3"),
        ("10^-6", "106"),
        ("O -", "O"),
        ("O -", "O+"),
        ("-x", "x"),
        ("\u03c0/2", "\u03c02"),
        ("5%", "5"),
        ("5\u2030", "5"),
    ],
)
def test_the_rule_for_answers_keeps_apart_what_squad_makes_one(one: str, other: str) -> None:
    assert not is_correct(one, [other], "answer")
    assert not is_correct(other, [one], "answer")
    assert is_correct(one, [one], "answer")
    assert is_correct(f" {other}. ", [other], "answer")
    assert is_correct(one, [other], "squad")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u20ac-5", "\u20ac5"),
        ("10\u207b\u2076", "10 6"),
        ("10^-6", "10 6"),
        ("B\u266d", "B"),
        ("F\u266f", "F"),
        ("\u221a2", "2"),
        ("5\u2030", "5%"),
        *((f"{sign}5", "5") for sign in "\u20ba\u20b1\u20bf\u20a6\u0e3f\u20aa"),
        ("5\u00a2", "5"),
        ("A/B", "B"),
        ("A, B", "B"),
        ("A + B", "B"),
        ("A & B", "B"),
        ("A and B", "and B"),
    ],
)
def test_the_rule_for_answers_keeps_every_sign_that_says_something(one: str, other: str) -> None:
    assert not is_correct(one, [other], "answer")
    assert not is_correct(other, [one], "answer")
    assert is_correct(f"**{one}**.", [one], "answer")


@given(
    st.text(st.sampled_from("OAaBC+-#\u266d\u266f\u221a$\u20ac15.,/^e% \u03c0"), max_size=8),
    st.sampled_from(
        ['""', "\u201c\u201d", "''", "\u00ab\u00bb", "``", "**", "__", ("**", "**"), ("\u201c**", "**\u201d")]
    ),
)
def test_quotation_marks_and_markup_around_an_answer_change_no_verdict(
    text: str, marks: Sequence[str]
) -> None:
    assert answer_key(f"{marks[0]}{text}{marks[1]}") == answer_key(text)


@pytest.mark.parametrize(
    "spellings",
    [
        ["-$5", "$-5", "$ -5", "\u2212$5", '"$-5"'],
        ["-\u20ac5", "\u20ac-5"],
        ["-5", '"-5"', "\u201c-5\u201d", "**-5**", "*-5*", "_-5_", "'-5'"],
        ["O-", '"O-"', "\u201cO-\u201d", "**O-**", "O -", "O \u2212"],
        ["A+", "A +", "**A+**"],
        ["F#", "F\u266f"],
        ["10^-6", "10\u207b\u2076", "10 ^ -6"],
        ["1.5e3", "1.5E+3", "1,5e3"],
        ["A & B", "A and B"],
        ["Jean-Paul Sartre", "Jean Paul Sartre", "jean\u2010paul sartre."],
        ["J. R. R. Tolkien", "J.R.R. Tolkien", "JRR Tolkien"],
        ["Spider-Man", "Spiderman", "spider man"],
        ["1,000", "1000", "1 000", "1\u202f000", "1'000", "1\u2019000", "1\u066c000"],
        ["1,234,567", "1234567", "1.234.567", "1 234 567"],
        ["1,234.56", "1.234,56", "1234.56", "1 234.56"],
        ["1,5", "1.5", "1\u066b5"],
        ["0.5", ".5", "0,5"],
        ["-40", "\u221240", "\u2212 40", "\u201340"],
        ["+49", "49", "+ 49"],
        ["<= 5", "\u22645", "\u2264 5"],
        ["10^6", "10\u2076"],
        ["5 %", "5%", "\u0665\u066a"],
        ["The Beatles", "Beatles", "the beatles"],
        ["Lord of the Rings", "The Lord of the Rings"],
        ["Simon & Garfunkel", "Simon and Garfunkel"],
        ["U.S.A.", "USA", "usa"],
        ["F-16", "F16", "F 16"],
        ["New York", "New\u00a0York", "New\u2009York", "New-York"],
    ],
)
def test_the_rule_for_answers_takes_all_ways_of_writing_one(spellings: list[str]) -> None:
    for one in spellings:
        for other in spellings:
            assert is_correct(one, [other], "answer"), (one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.000", "1000"),
        ("1 2", "12"),
        ("$5", "\u20ac5"),
        ("\u22645", "\u22655"),
        ("3.10", "3.1"),
        ("1,5", "15"),
        ("1, 5", "1.5"),
        ("0,123", "123"),
    ],
)
def test_a_point_is_a_decimal_point_and_a_comma_parts_groups_of_three(one: str, other: str) -> None:
    assert not is_correct(one, [other], "answer")


NUMBERS = st.decimals(-(10**7), 10**7, places=2, allow_nan=False)


@given(NUMBERS, NUMBERS)
def test_numbers_are_the_same_answer_only_where_they_are_equal(one: Decimal, other: Decimal) -> None:
    assert is_correct(f"{one:f}", [f"{other:,f}"], "answer") == (one == other)
    assert is_correct(f"{one:,f}".replace(",", "\u202f"), [f"{one:f}"], "answer")


@given(st.integers(1, 999), st.integers(1, 999), st.sampled_from("./:^-"), st.sampled_from("./:^-"))
def test_what_stands_between_two_numbers_counts(a: int, b: int, one: str, other: str) -> None:
    assert is_correct(f"{a}{one}{b}", [f"{a}{other}{b}"], "answer") == (one == other)
    assert not is_correct(f"{a}{one}{b}", [f"{a}{b}"], "answer")


@given(WRITTEN, WRITTEN)
def test_equality_goes_both_ways(one: str, other: str) -> None:
    for mode in ("squad", "answer", "strict"):
        if is_correct(one, [other], mode) and (
            mode == "strict" or (form_of(mode)(one) and form_of(mode)(other))
        ):
            assert is_correct(other, [one], mode)


@given(WRITTEN, WRITTEN, st.sampled_from([*MATCH_MODES, "regex:[0-9.]+"]))
def test_an_answer_is_judged_by_the_rule_of_its_run_and_by_the_two_that_are_stored(
    answer: str, accepted: str, mode: str
) -> None:
    verdicts = judge(answer, [accepted], mode)
    assert verdicts.correct == is_correct(answer, [accepted], mode)
    assert verdicts.correct_squad == is_correct(answer, [accepted], "squad")
    assert verdicts.correct_answer == is_correct(answer, [accepted], "answer")


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
        ("France", ["France"], {"squad", "answer", "strict", "contains"}),
        ("france.", ["France"], {"squad", "answer", "contains"}),
        ("It is in France, near Paris", ["France"], {"contains"}),
        ("the Bahamas", ["Bahamas"], {"squad", "answer", "contains"}),
        ("Nigeria", ["Niger"], set()),
        ("South Korea", ["Korea"], {"contains"}),
        ("Korea", ["South Korea"], set()),
        (" New\u00a0York ", ["New York"], {"squad", "answer", "contains"}),
        ("USA", ["United States", "USA"], {"squad", "answer", "strict", "contains"}),
        ("", ["France"], set()),
        ("France", [], set()),
        ("中国的首都是北京。", ["北京"], {"contains"}),
        ("คือกรุงเทพ", ["กรุงเทพ"], {"contains"}),
        ("パリは首都です", ["パリ"], {"contains"}),
        ("France's capital", ["France"], {"contains"}),
        ("Paris-based", ["Paris"], {"contains"}),
        ("Paris/France", ["Paris"], {"contains"}),
        ("in São Paulo,Brazil", ["São Paulo"], {"contains"}),
        ("Washington, D.C.-based", ["DC"], {"contains"}),
        ("Washington DC", ["D.C."], {"contains"}),
        ("as a result", ["Asa"], set()),
        ("กรุงเทพ", ["กรง"], set()),
        ("parisian", ["Paris"], set()),
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
        ("北京大学", ["北京"], True),
        ("Jim Henson's Creature Shop", ["Jim Henson"], True),
        ("Pandora\u2019s box", ["Pandora"], True),
        ("Li Ka Shing Foundation", ["Li Ka-shing"], True),
        ("Dallas/Fort Worth Airport", ["Dallas"], True),
        ("Parisian Society", ["Paris"], False),
    ],
)
def test_answer_in_subject_looks_for_whole_words(subject: str, answers: list[str], copied: bool) -> None:
    assert answer_in_subject(question(*answers, subject=subject)) is copied


def test_majority_answer_counts_a_question_once_for_each_accepted_answer() -> None:
    rows = [question("USA", "usa", "United States"), question("Peru"), question("France", "USA!")]
    best = majority_answer(rows)
    assert (best.answer, best.n, best.share) == ("usa", 2, 2 / 3)


@pytest.mark.parametrize(
    ("mode", "answers", "best", "n"),
    [
        ("squad", [["A"], ["A"], ["B"]], "a", 2),
        ("strict", [["USA"], ["usa"], ["U.S.A."], ["Peru"], ["Peru"]], "Peru", 2),
        ("answer", [["-5"], ["5"], ["\u22125"]], "-5", 2),
        ("squad", [["-5"], ["5"], ["\u22125"]], "5", 3),
        ("contains", [["Korea"], ["South Korea"], ["Peru"]], "south korea", 2),
        ("contains", [["北京"], ["北京市"], ["市"]], "北京市", 3),
        ("regex:[A-Z]+", [["Peru", "PE"], ["Chad"], ["Chad"]], "PE", 3),
        ("regex:[A-Z]+", [["Peru"], ["Chad"]], "", 0),
    ],
)
def test_the_majority_answer_is_found_by_the_rule_of_the_run(
    mode: str, answers: list[list[str]], best: str, n: int
) -> None:
    rows = [question(*some, name=str(number)) for number, some in enumerate(answers)]
    found = majority_answer(rows, mode)
    assert (found.answer, found.n, found.share) == (best, n, n / len(rows))
    assert sum(is_correct(found.answer, row.answers, mode) for row in rows) == n


def test_majority_answer_of_no_questions_is_empty() -> None:
    best = majority_answer([])
    assert (best.answer, best.n, best.share) == ("", 0, 0.0)


@given(
    st.lists(st.lists(st.sampled_from(["USA", "the usa", "France", "Peru", "The"]), min_size=1), max_size=12),
    st.randoms(use_true_random=False),
    st.sampled_from([*MATCH_MODES, "regex:[A-Z]+"]),
)
def test_majority_share_is_the_accuracy_of_always_giving_it(
    answers: list[list[str]], order: random.Random, mode: str
) -> None:
    rows = [question(*some, name=str(number)) for number, some in enumerate(answers)]
    best = majority_answer(rows, mode)
    n_right = sum(is_correct(best.answer, row.answers, mode) for row in rows) if best.answer else 0
    assert best.n == n_right
    accepted = {answer for some in answers for answer in some}  # of a pattern's, only these are tried
    for constant in ("USA", "France", "Peru", "The") if mode in MATCH_MODES else accepted:
        assert sum(is_correct(constant, row.answers, mode) for row in rows) <= best.n
    order.shuffle(rows)
    assert majority_answer(rows, mode) == best
