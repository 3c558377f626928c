"""Question sets: the embedded facts, files and folders of questions."""

from morfi.questions.recognition import gives_away, marks, marks_of, subject_key
from morfi.questions.sets import (
    SPLITS,
    UNSPLIT,
    QuestionSet,
    load_questions,
    question_set,
    select,
    with_splits,
)

__all__ = [
    "SPLITS",
    "UNSPLIT",
    "QuestionSet",
    "gives_away",
    "load_questions",
    "marks",
    "marks_of",
    "question_set",
    "select",
    "subject_key",
    "with_splits",
]
