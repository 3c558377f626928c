"""Question sets: the embedded facts, files and folders of questions."""

from morfi.questions.load import load_questions
from morfi.questions.recognition import Families, subject_key, text_key
from morfi.questions.sets import (
    SPLITS,
    UNSPLIT,
    QuestionSet,
    question_set,
    select,
    with_splits,
)

__all__ = [
    "SPLITS",
    "UNSPLIT",
    "Families",
    "QuestionSet",
    "load_questions",
    "question_set",
    "select",
    "subject_key",
    "text_key",
    "with_splits",
]
