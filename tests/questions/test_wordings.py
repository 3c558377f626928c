from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.questions.wordings import find_subjects

PEOPLE = (
    "Ada Lovelace",
    "Alan Turing",
    "Kurt G\u00f6del",
    "Emmy Noether",
    "Marie Curie",
    "The Rock",
    "bell hooks",
)
WORDINGS = (
    "Where was {} born?",
    "In what city was {} born?",
    "{} was born where?",
    "What is {}'s place of birth?",
    "{}\u306f\u3069\u3053\u3067\u751f\u307e\u308c\u307e\u3057\u305f\u304b",
)


@given(
    st.lists(st.sampled_from(WORDINGS), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(PEOPLE), min_size=4, unique=True),
    st.randoms(use_true_random=False),
)
def test_subjects_are_found_whatever_the_wordings(
    wordings: list[str], people: list[str], order: random.Random
) -> None:
    asked = [(wording.format(person), person) for wording in wordings for person in people]
    order.shuffle(asked)
    found = find_subjects([text for text, _ in asked])
    assert list(found.subjects) == [person for _, person in asked]
    assert len(found.wordings) == len(wordings)
    assert sum(wording.n for wording in found.wordings) == len(asked)


@pytest.mark.parametrize(
    ("frame", "subjects", "moved"),
    [
        ("What is the capital of {}?", ["North Korea", "North Macedonia", "North Dakota"], ("North",)),
        ("What is the capital of {}?", ["Chad", "North Korea", "North Macedonia", "North Dakota"], ()),
        ("Who wrote {} in 1999?", ["Emma II", "Dune II", "Ada II"], ("II",)),
        ("Which team does {} play for?", ["De Jong", "de Boer", "Van Dijk"], ()),
    ],
)
def test_a_name_that_all_subjects_share_stays_with_them(
    frame: str, subjects: list[str], moved: tuple[str, ...]
) -> None:
    found = find_subjects([frame.format(subject) for subject in subjects])
    assert list(found.subjects) == subjects
    assert found.moved == moved


def test_a_question_worded_like_no_other_has_no_subject() -> None:
    texts = [f"Where was {person} born?" for person in PEOPLE]
    found = find_subjects([*texts, "Name the birthplace of Gauss", "Where was born?"])
    assert found.subjects[-2:] == (None, "")
    assert find_subjects(["x", "y"]).subjects == (None, None)
    assert find_subjects([]).subjects == ()


@given(st.lists(st.text(st.sampled_from("aB ?'\u3042"), max_size=12), max_size=12))
def test_a_subject_stands_in_its_question(texts: list[str]) -> None:
    found = find_subjects(texts)
    assert len(found.subjects) == len(texts)
    assert all(
        subject is None or subject in text for subject, text in zip(found.subjects, texts, strict=True)
    )
