from __future__ import annotations

import pytest

from morfi.report.knowledge import knowledge_object, knowledge_report, knowledge_table
from morfi.store.records import KnowledgeRow


def row(number: int, split: str, relation: str, answer: str, category: str) -> KnowledgeRow:
    p_greedy = {"HighlyKnown": 1.0, "MaybeKnown": 0.5}.get(category, 0.0)
    return KnowledgeRow(
        f"q{number}", split, relation, f"Town {number} of Peru", "?", (answer,), p_greedy, 0.0, category
    )


ROWS = [
    row(1, "test", "P36", "Lima", "Unknown"),
    row(2, "train", "P36", "Lima", "HighlyKnown"),
    row(3, "train", "P17", "Peru", "HighlyKnown"),
    row(4, "train", "P17", "Peru", "MaybeKnown"),
    row(5, "train", "P17", "Chile", "WeaklyKnown"),
    row(6, "train", "P17", "Peru", "Unknown"),
]


def test_every_split_has_its_relations_then_the_whole() -> None:
    found = knowledge_report(ROWS)
    assert [(line.split, line.relation, line.n) for line in found] == [
        ("train", "P17", 4),
        ("train", "P36", 1),
        ("train", None, 5),
        ("test", "P36", 1),
        ("test", None, 1),
    ]
    p17, whole = found[0], found[2]
    assert p17.by_category == {"HighlyKnown": 1, "MaybeKnown": 1, "WeaklyKnown": 1, "Unknown": 1}
    assert (p17.p_greedy, p17.majority_answer, p17.majority_share, p17.in_subject_share) == (
        0.375,
        "peru",
        0.75,
        0.75,
    )
    # A constant for each relation: 3 of 4 and 1 of 1.
    assert whole.majority_share == pytest.approx(4 / 5)
    assert whole.in_subject_share == pytest.approx(3 / 5)
    assert whole.by_category["HighlyKnown"] == 2


def test_without_a_baseline_the_majority_goes_by_the_runs_rule() -> None:
    rows = [row(number, "test", "P17", answer, "Unknown") for number, answer in enumerate(("U.S.", "US"))]
    squad, strict = (knowledge_report(rows, match=match)[0] for match in ("squad", "strict"))
    assert (squad.majority_answer, squad.majority_share) == ("us", 1.0)
    assert (strict.majority_answer, strict.majority_share) == ("U.S.", 0.5)


def test_a_split_of_one_relation_has_that_relations_numbers() -> None:
    relation, whole = knowledge_report(ROWS[:1])
    assert (whole.majority_share, whole.n, whole.by_category) == (1.0, 1, relation.by_category)


def test_the_table_shows_counts_and_shares_in_columns() -> None:
    lines = knowledge_table(ROWS).splitlines()
    cells = [" ".join(line.split()) for line in lines]
    assert "train country (P17) 4 1 25 % 1 25 % 1 25 % 1 25 % 0.375 75.0 % 75.0 % peru" in cells
    assert "test all 1 0 0 % 0 0 % 0 0 % 1 100 % 0.000 100.0 % 0.0 %" in cells
    assert max(map(len, lines)) <= 120


def test_the_object_holds_the_same_numbers() -> None:
    found = knowledge_object(ROWS)["splits"]
    assert list(found) == ["train", "test"]
    assert found["train"]["n"] == 5
    assert found["train"]["by_relation"]["P17"]["by_category"]["MaybeKnown"] == 1
    assert found["test"]["by_relation"]["P36"]["p_greedy"] == 0.0


def test_no_rows_give_the_header_alone_and_an_empty_object() -> None:
    assert knowledge_table([]).splitlines()[0].split()[:2] == ["split", "relation"]
    assert knowledge_object([]) == {"splits": {}}
