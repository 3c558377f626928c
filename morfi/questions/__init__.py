"""Question sets: the embedded facts, files and folders of questions."""

from morfi.questions.sets import (
    SPLITS,
    UNSPLIT,
    QuestionSet,
    load_questions,
    question_set,
    select,
    subject_key,
    with_splits,
)

__all__ = [
    "SPLITS",
    "UNSPLIT",
    "QuestionSet",
    "load_questions",
    "question_set",
    "select",
    "subject_key",
    "with_splits",
]
