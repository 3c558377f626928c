from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from morfi.questions.matching import is_correct
from morfi.questions.question import Question
from morfi.runs.baselines import baselines_of, out_of_reach


def question(number: int, *answers: str, relation: str = "P17") -> Question:
    return Question(f"q{number}", relation, f"s{number}", f"Where is s{number}?", answers)


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    """A token a byte."""
    return make_tokenizer()


@pytest.mark.parametrize("match", ["squad", "answer", "strict"])
def test_a_baseline_is_the_best_constant_answer_of_its_relation_and_split_by_the_rule(match: str) -> None:
    rows = [question(i, answer) for i, answer in enumerate(["-5", "5", "5.", "USA", "U.S.A.", "usa", "usa"])]
    found = baselines_of({"test": [*rows, question(9, "x", relation="P36")], "dev": rows[:1]}, match)
    assert [(row.split, row.relation, row.n) for row in found] == [
        ("test", "P17", 7),
        ("test", "P36", 1),
        ("dev", "P17", 1),
    ]
    best = max(sum(is_correct(answer, row.answers, match) for row in rows) for answer in ("5", "usa", "USA"))
    assert found[0].n_accepting == best


def test_questions_whose_answers_are_all_longer_than_an_answer_may_be_are_counted(tokenizer: Any) -> None:
    rows = [
        question(0, "x" * 15),
        question(1, "x" * 16),
        question(2, "x" * 40, "short"),
        question(3, "ก" * 9),
    ]
    assert out_of_reach(rows, tokenizer, 16) == (
        "2 of 4 questions have accepted answers of more than 16 tokens only, so no answer to them can be "
        "right; "
        "--max-tokens 28 would reach all"
    )
    assert out_of_reach(rows, tokenizer, 28) is None
    assert out_of_reach([], tokenizer, 1) is None
