"""A run of four questions, with answers, for tests of the store's file."""

from __future__ import annotations

from morfi.questions.question import Question
from morfi.store.records import CompletionRow, JudgedAnswer

QUESTIONS = [Question(f"q{i}", "P17", f"s{i}", f"Which country is s{i} in?", ("France",)) for i in range(4)]


def completions(first: int, n: int, text: str = "France") -> list[CompletionRow]:
    """Correct answers of run-a, one for each question from the `first`."""
    answer = JudgedAnswer(text, "France", "stop", True, True, True, 1, 1, 1, 1)
    return [CompletionRow("run-a", f"q{i}", 0, "p", answer) for i in range(first, first + n)]
