from __future__ import annotations

from dataclasses import replace

import pytest

from morfi.report.mixtures import mixture_object, mixture_table
from morfi.store.records import KnowledgeRow, MixtureRow
from morfi.training.mixtures import Dropped, MixConfig, draw

CATEGORIES = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown", "Unknown", "Unknown")
FACTS = [
    KnowledgeRow(
        f"q{i:02}", "train", ("P17", "P36")[i // 6 % 2], f"S{i}", "?", (f"a{i}",), 0.0, 0.0, CATEGORIES[i % 6]
    )
    for i in range(48)
]


def drawn() -> tuple[MixtureRow, ...]:
    return draw(FACTS, MixConfig("split-1", (0, 25, 100), 20)).rows


def test_the_object_counts_what_stands_in_each_mixture() -> None:
    rows = drawn()
    found = mixture_object(rows, FACTS, Dropped(majority=2))
    assert list(found["levels"]) == [0, 25, 100]
    assert [part["by_category"]["Unknown"] for part in found["levels"].values()] == [0, 5, 20]
    assert found["relations"] == {"P17": 10, "P36": 10}
    assert found["dropped"]["majority"] == 2
    for level, part in found["levels"].items():
        inside = {row.question_id: row.category for row in rows if row.level == level}
        assert part["n"] == sum(part["by_category"].values()) == 20
        for relation, counts in part["by_relation"].items():
            names = {fact.question_id for fact in FACTS if fact.relation == relation}
            assert counts["n"] == len(names & inside.keys())
            assert counts["unknown"] == sum(inside.get(name) == "Unknown" for name in names)


def test_the_table_shows_every_level_and_only_the_reasons_that_dropped_something() -> None:
    lines = mixture_table(drawn(), FACTS, Dropped(shared_subject=7, in_subject=1)).splitlines()
    rows = {line.split()[0]: line.split()[1:5] for line in lines if line.startswith("D_")}
    assert rows == {
        "D_0": ["20", "0.0", "%", "0"],
        "D_25": ["20", "25.0", "%", "5"],
        "D_100": ["20", "100.0", "%", "20"],
    }
    assert "in every mixture: country (P17) 10, capital (P36) 10" in lines
    assert lines[-2:] == [
        "left out: 7 train questions whose subject or text stands in dev or test",
        "left out: 1 train question whose answer stands in the subject's name",
    ]


def test_stored_rows_without_counts_and_no_rows_at_all_are_shown_as_they_are() -> None:
    assert "left out" not in mixture_table(drawn(), FACTS)
    assert "dropped" not in mixture_object(drawn(), FACTS)
    assert mixture_object([], FACTS) == {"levels": {}, "relations": {}}
    assert len(mixture_table([], FACTS).splitlines()) == 2


@pytest.mark.parametrize("nested", [True, False])
def test_mixtures_too_small_to_differ_are_named(nested: bool) -> None:
    few = draw(FACTS, MixConfig("split-1", (0, 10, 25, 50, 75, 90, 100), 2, nested=nested)).rows
    said = [line for line in mixture_table(few, FACTS).splitlines() if "equally many" in line]
    assert said == [
        f"{names} have equally many Unknown questions; a larger --size tells them apart"
        for names in ("D_0, D_10, D_25", "D_75, D_90, D_100")
    ]
    assert "equally many" not in mixture_table(drawn(), FACTS)


def test_every_reason_has_words() -> None:
    every = replace(Dropped(), **dict.fromkeys(Dropped.__slots__, 3))
    assert mixture_table(drawn(), FACTS, every).count("left out: 3 train questions ") == len(
        Dropped.__slots__
    )
