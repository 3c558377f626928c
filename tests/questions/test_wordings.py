from __future__ import annotations

import random
import time

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


@pytest.mark.parametrize(
    ("texts", "cuts"),
    [
        (
            ("\u6cd5\u56fd\u7684\u9996\u90fd\uff1f", "\u4e2d\u56fd\u7684\u9996\u90fd\uff1f"),
            (("\u6cd5", "\u56fd"),),
        ),
        (("\u6cd5\u56fd\u7684\u9996\u90fd\uff1f", "\u65e5\u672c\u7684\u9996\u90fd\uff1f"), ()),
        (("\u6771\u4eac\u306f\u4f55\u770c", "\u5927\u962a\u306f\u4f55\u770c"), ()),
        (("Where is Paris?", "Where is Lyon?"), ()),
    ],
)
def test_characters_beside_a_subject_that_may_be_a_part_of_it_are_named(
    texts: tuple[str, ...], cuts: tuple[tuple[str, str], ...]
) -> None:
    assert find_subjects(texts).cuts == cuts


@pytest.mark.long
def test_many_wordings_without_blanks_take_little_time() -> None:
    draw = random.Random(0)

    def word(n: int) -> str:
        return "".join(chr(0x4E00 + draw.randrange(3000)) for _ in range(n))

    texts = []
    for _ in range(100):
        before, after = word(18), word(18)
        texts += [f"{before}{word(4)}{after}" for _ in range(2)]
    start = time.process_time()
    found = find_subjects(texts)
    assert time.process_time() - start < 10  # it took over 25 s with all counted anew for each wording
    assert len(found.wordings) == 100
    assert {len(subject or "") for subject in found.subjects} == {4}
