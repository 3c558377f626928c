from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.questions.question import Question
from morfi.store.records import KnowledgeRow, MixtureRow
from morfi.training.mixtures import Dropped, MixConfig, confounds, draw, given_away

KNOWN = ("HighlyKnown", "MaybeKnown", "WeaklyKnown")


def fact(number: int, category: str = "Unknown", **changes: Any) -> KnowledgeRow:
    base = KnowledgeRow(
        question_id=f"q{number:04d}",
        split="train",
        relation="P17",
        subject=f"Town {number}",
        question=f"Where is Town {number}?",
        answers=(f"land {number}",),
        p_greedy=0.0,
        p_sampled=0.0,
        category=category,
    )
    return replace(base, **changes)


def facts(sizes: dict[str, tuple[int, int]]) -> list[KnowledgeRow]:
    """So many Known and Unknown train questions of each relation."""
    rows: list[KnowledgeRow] = []
    for relation, (n_known, n_unknown) in sizes.items():
        for i in range(n_known + n_unknown):
            category = KNOWN[i % 3] if i < n_known else "Unknown"
            rows.append(fact(len(rows), category, relation=relation))
    return rows


def by_level(rows: tuple[MixtureRow, ...]) -> dict[int, list[MixtureRow]]:
    found: dict[int, list[MixtureRow]] = defaultdict(list)
    for row in rows:
        found[row.level].append(row)
    return found


def unknown_ids(rows: list[MixtureRow]) -> set[str]:
    return {row.question_id for row in rows if row.category == "Unknown"}


def known_ids(rows: list[MixtureRow]) -> set[str]:
    return {row.question_id for row in rows} - unknown_ids(rows)


def largest(message: str) -> int:
    """The size that a refusal proposes; 0 where it says that none is possible."""
    return int(message.partition("--size ")[2].partition(" ")[0]) if "--size" in message else 0


SIZES = st.dictionaries(
    st.sampled_from(["P17", "P19", "P30", "P36", "P131"]),
    st.tuples(st.integers(0, 30), st.integers(0, 30)),
    min_size=1,
)
LEVELS = st.lists(st.integers(0, 100), min_size=1, max_size=7, unique=True).map(tuple)


def drawn_or_refused(rows: list[KnowledgeRow], config: MixConfig) -> tuple[MixtureRow, ...] | str:
    try:
        return draw(rows, config).rows
    except InputError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(SIZES, LEVELS, st.integers(1, 60), st.integers(0, 3), st.booleans())
def test_every_mixture_has_the_size_the_share_and_the_same_relations(
    sizes: dict[str, tuple[int, int]], levels: tuple[int, ...], size: int, seed: int, nested: bool
) -> None:
    rows = facts(sizes)
    config = MixConfig("split-1", levels, size, seed, nested)
    found = drawn_or_refused(rows, config)
    if isinstance(found, str):
        assert "\n" not in found
        if largest(found):
            # The size it proposes works, and is the largest that does.
            assert largest(found) < size
            assert draw(rows, replace(config, size=largest(found))).rows
            with pytest.raises(InputError):
                draw(rows, replace(config, size=largest(found) + 1))
        return
    relation_of = {row.question_id: row.relation for row in rows}
    category_of = {row.question_id: row.category for row in rows}
    counts = []
    mixtures = by_level(found)
    assert list(mixtures) == sorted(levels)
    for level, mixture in mixtures.items():
        assert [row.position for row in mixture] == list(range(size))
        assert len({row.question_id for row in mixture}) == size
        assert all(row.category == category_of[row.question_id] for row in mixture)
        assert len(unknown_ids(mixture)) == round(size * level / 100)
        counts.append(Counter(relation_of[row.question_id] for row in mixture))
    assert all(count == counts[0] for count in counts)


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["P17", "P19", "P30"]), st.tuples(st.integers(1, 30), st.integers(1, 30))
    ),
    LEVELS,
    st.integers(0, 3),
)
def test_nested_neighbours_differ_in_exactly_the_places_whose_question_was_replaced(
    sizes: dict[str, tuple[int, int]], levels: tuple[int, ...], seed: int
) -> None:
    sizes = sizes or {"P17": (3, 3)}
    size = sum(min(pair) for pair in sizes.values())  # the most that every choice of levels can fill
    mixtures = by_level(draw(facts(sizes), MixConfig("split-1", levels, size, seed)).rows)
    in_order = [mixtures[level] for level in sorted(levels)]
    for lower, higher in itertools.pairwise(in_order):
        assert unknown_ids(lower) <= unknown_ids(higher)
        assert known_ids(higher) <= known_ids(lower)
        changed = [(a, b) for a, b in zip(lower, higher, strict=True) if a.question_id != b.question_id]
        assert all(a.category != "Unknown" and b.category == "Unknown" for a, b in changed)
        assert len(changed) == len(unknown_ids(higher)) - len(unknown_ids(lower))


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans(), st.integers(0, 5))
def test_the_order_of_the_rows_changes_nothing(order: random.Random, nested: bool, seed: int) -> None:
    rows = facts({"P17": (12, 9), "P36": (5, 20), "P30": (8, 8)})
    config = MixConfig("split-1", (0, 40, 100), 18, seed, nested)
    expected = draw(rows, config)
    order.shuffle(rows)
    assert draw(rows, config) == expected


def test_the_seed_changes_questions_and_order_and_the_order_of_levels_changes_nothing() -> None:
    rows = facts({"P17": (40, 40), "P36": (40, 40)})
    one = draw(rows, MixConfig("split-1", (0, 50, 100), 40, seed=0))
    two = draw(rows, MixConfig("split-1", (0, 50, 100), 40, seed=1))
    assert {row.question_id for row in one.rows} != {row.question_id for row in two.rows}
    assert draw(rows, MixConfig("split-1", (100, 0, 50), 40, seed=0)) == one


def test_mixtures_that_are_not_nested_are_drawn_anew_at_every_level() -> None:
    rows = facts({"P17": (200, 200)})
    config = MixConfig("split-1", (50, 60), 60, nested=False)
    lower, higher = by_level(draw(rows, config).rows).values()
    # 30 and 36 of 200: on average 5.4 in common, never all 30.
    assert len(unknown_ids(lower) & unknown_ids(higher)) < 15
    assert draw(rows, config) == draw(rows, config)


def test_relations_are_as_even_as_their_scarcer_kind_allows() -> None:
    rows = facts({"P17": (100, 100), "P30": (4, 100), "P36": (100, 7), "P38": (50, 0)})
    relation_of = {row.question_id: row.relation for row in rows}
    mixture = by_level(draw(rows, MixConfig("split-1", (0, 100), 40)).rows)[0]
    assert Counter(relation_of[row.question_id] for row in mixture) == {"P17": 29, "P30": 4, "P36": 7}


def test_levels_that_need_few_unknown_questions_use_relations_that_have_few() -> None:
    rows = facts({"P17": (90, 10)})
    assert len(draw(rows, MixConfig("split-1", (0, 10), 90)).rows) == 180
    with pytest.raises(InputError, match="give --size 20 or less"):
        draw(rows, MixConfig("split-1", (0, 50), 90))


def test_the_unknown_of_every_level_are_spread_over_the_relations_in_proportion() -> None:
    rows = facts({"P17": (100, 100), "P30": (40, 40), "P36": (11, 11), "P38": (100, 100)})
    relation_of = {row.question_id: row.relation for row in rows}
    levels = tuple(range(0, 101, 5))
    mixtures = by_level(draw(rows, MixConfig("split-1", levels, 200)).rows)
    places = Counter(relation_of[row.question_id] for row in mixtures[0])
    for level, mixture in mixtures.items():
        unknown = Counter(relation_of[name] for name in unknown_ids(mixture))
        for relation, n in places.items():
            assert abs(unknown[relation] - n * level / 100) <= 1


WHOLE = {
    "dev": [Question("d1", "P38", "hague", "Which currency?", ("x",))],
    "test": [Question("t1", "P36", "Town 9", "Which capital?", ("x",))],
}


def test_no_subject_is_shared_with_dev_test_or_the_rest_of_the_data() -> None:
    rows = facts({"P17": (20, 20)})
    rows[3] = replace(rows[3], subject="São Tomé")
    rows[30] = replace(rows[30], subject="The Hague")
    elsewhere = [
        fact(100, "HighlyKnown", split="dev", subject="sao tome!", relation="P36"),
        fact(101, split="test", subject="Town 5"),
    ]
    found = draw([*rows, *elsewhere], MixConfig("split-1", (0, 100), 17), splits=WHOLE)
    assert found.dropped == Dropped(shared_subject=4)
    ids = {row.question_id for row in found.rows}
    assert not ids & {"q0003", "q0030", "q0005", "q0009", "q0100", "q0101"}
    with pytest.raises(InputError, match="give --size 17 or less"):
        draw([*rows, *elsewhere], MixConfig("split-1", (0, 100), 18), splits=WHOLE)


def test_no_question_is_drawn_that_dev_or_test_asks_under_another_subject() -> None:
    rows = facts({"P17": (4, 4)})
    asked = replace(fact(50, split="test", subject="m.0x1"), question=f" {rows[2].question.upper()} ")
    found = draw([*rows, asked], MixConfig("split-1", (0, 100), 3))
    assert found.dropped == Dropped(shared_subject=1)
    assert rows[2].question_id not in {row.question_id for row in found.rows}


def test_training_questions_that_dev_or_test_asks_are_found_in_mixtures_of_an_earlier_morfi() -> None:
    rows = facts({"P17": (4, 4)})
    rows.append(replace(fact(50, split="test", subject="m.0x1"), question=rows[2].question))
    drawn = [MixtureRow(0, i, row.question_id, row.category) for i, row in enumerate(rows[:4])]
    assert given_away(drawn, rows) == [rows[2]]
    assert given_away(draw(rows, MixConfig("split-1", (0, 100), 3)).rows, rows) == []


def test_the_majority_is_that_of_the_whole_data_by_the_rule_of_the_split_run() -> None:
    rows = [fact(i, answers=(answer,)) for i, answer in enumerate(["-5", "5", "5", "7", "8"])]
    assert confounds(rows).majority["P17"].n == 3
    assert confounds(rows, match="answer").majority == {}
    whole = [Question(f"w{i}", "P17", f"W{i}", f"W{i}?", ("7",)) for i in range(6)]
    found = confounds(rows, everything=[*whole, *(row.asked for row in rows)])
    assert found.majority["P17"].answer == "7"
    assert found.majority_ids == {rows[3].question_id}


def test_one_subject_may_stand_in_a_mixture_with_several_facts() -> None:
    rows = [
        fact(i, category, relation=relation, subject="Peru" if i % 2 else "Chile")
        for i, (relation, category) in enumerate(
            [("P36", "HighlyKnown"), ("P38", "Unknown"), ("P36", "Unknown"), ("P38", "MaybeKnown")]
        )
    ]
    assert len(draw(rows, MixConfig("split-1", (50,), 2)).rows) == 2


def test_each_dropped_question_is_counted_once_under_its_first_reason() -> None:
    rows = facts({"P17": (20, 20)})
    rows += [fact(50 + i, "HighlyKnown", relation="P38", answers=("the Euro!",)) for i in range(4)]
    rows += [fact(60 + i, relation="P38") for i in range(10)]
    rows[43] = replace(rows[43], subject="Euro Town")  # the majority answer, and in the subject
    rows[0] = replace(rows[0], subject="Land 0 Town")
    rows[1] = replace(rows[1], answers=("a", "b"))
    rows.append(fact(99, split="test", subject="Town 2"))
    config = MixConfig(
        "split-1",
        (0, 100),
        5,
        exclude_confounds=True,
        known=("HighlyKnown", "MaybeKnown"),
        several_answers=False,
    )
    found = draw(rows, config)
    n_weakly = sum(row.category == "WeaklyKnown" for row in rows if row.subject != "Town 2")
    assert found.dropped == Dropped(
        shared_subject=1, other_category=n_weakly, several_answers=1, majority=4, in_subject=1
    )
    assert {row.category for row in found.rows} <= {"HighlyKnown", "MaybeKnown", "Unknown"}
    assert draw(rows, replace(config, exclude_confounds=False)).dropped.majority == 0


def test_a_majority_answer_is_a_confound_only_where_giving_it_always_earns_something() -> None:
    distinct = [fact(i, relation="P36") for i in range(20)]
    rare = [fact(100 + i, relation="P17", answers=(f"land {i // 5}",)) for i in range(100)]  # 5 % each
    common = [
        fact(300 + i, relation="P30", answers=("Africa", "AF") if i < 3 else (f"x{i}",)) for i in range(30)
    ]
    twice = [fact(400 + i, relation="P38", answers=("euro",) if i < 2 else (f"y{i}",)) for i in range(4)]
    found = confounds([*distinct, *rare, *common, *twice])
    assert {relation: (m.answer, m.n) for relation, m in found.majority.items()} == {"P30": ("africa", 3)}
    assert found.majority_ids == {"q0300", "q0301", "q0302"}
    assert confounds([]).majority == {}


def test_an_answer_inside_the_subjects_name_is_a_confound_in_whole_words_only() -> None:
    rows = [
        fact(1, subject="Mexico City", answers=("MX", "Mexico")),
        fact(2, subject="Nigeria", answers=("Niger",)),
    ]
    assert confounds(rows).in_subject_ids == {"q0001"}


def test_a_shortage_names_the_kinds_the_relations_and_the_largest_size() -> None:
    rows = facts({"P17": (30, 5), "P36": (2, 40)})
    with pytest.raises(InputError) as caught:
        draw(rows, MixConfig("split-1", (0, 100), 27))
    assert str(caught.value) == (
        "mixtures of 27 questions with 0 to 100 % Unknown cannot be filled from split-1: 10 Unknown "
        "questions (P17 10) and 10 Known questions (P36 10) are missing if every relation fills an "
        "even part; give --size 7 or less, or split more data"
    )
    with pytest.raises(InputError, match=r"P17.*at any size: split more data"):
        draw(facts({"P17": (9, 0), "P36": (0, 9)}), MixConfig("split-1", (0, 100), 4))


def test_a_shortage_of_many_relations_is_told_in_one_short_line() -> None:
    rows = facts({f"P{i}": (1, 1) for i in range(60)})
    with pytest.raises(InputError) as caught:
        draw(rows, MixConfig("split-1", (0, 100), 100_000))
    assert "and 55 more" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("sizes", "levels", "said"),
    [
        ({"P17": (0, 9)}, (0, 50), "none of the 9 train questions that split-1 offers is Known"),
        ({"P17": (9, 0)}, (0, 50), "none of the 9 train questions that split-1 offers is Unknown"),
        ({}, (0, 100), "none of the 0 train questions"),
        ({}, (100,), "none of the 0 train questions that split-1 offers is Unknown"),
    ],
)
def test_a_missing_kind_is_refused(sizes: Any, levels: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        draw(facts(sizes), MixConfig("split-1", levels, 4))


def test_levels_of_one_kind_alone_need_no_question_of_the_other() -> None:
    assert len(draw(facts({"P17": (9, 0)}), MixConfig("split-1", (0,), 9)).rows) == 9
    assert len(draw(facts({"P17": (0, 9)}), MixConfig("split-1", (100,), 9)).rows) == 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": ()}, "--levels is empty"),
        ({"levels": (0, 101)}, "--levels holds 101; expected whole percentages from 0 to 100"),
        ({"levels": (-1,)}, "--levels holds -1"),
        ({"levels": (0.5,)}, "--levels holds 0.5"),
        ({"levels": (True,)}, "--levels holds True"),
        ({"levels": ("50",)}, "--levels holds '50'"),
        ({"levels": (0, 50, 0)}, "--levels holds 0 more than once"),
        ({"size": 0}, "--size is 0; expected at least 1"),
        ({"seed": -1}, "--seed is -1"),
        ({"known": ()}, "no category counts as Known"),
        ({"known": ("Unknown",)}, '"Unknown" cannot count as Known'),
        ({"known": ("MaybeKnow",)}, 'Did you mean "MaybeKnown"'),
    ],
)
def test_a_setting_out_of_range_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        MixConfig("split-1", **change)
    assert "\n" not in str(caught.value)
