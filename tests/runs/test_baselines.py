from __future__ import annotations

import pytest

from morfi.questions.matching import is_correct
from morfi.questions.question import Question
from morfi.runs.baselines import baselines_of


def question(number: int, *answers: str, relation: str = "P17") -> Question:
    return Question(f"q{number}", relation, f"s{number}", f"Where is s{number}?", answers)


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
