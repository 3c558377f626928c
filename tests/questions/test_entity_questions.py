from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.questions import load_questions
from morfi.questions.entity_questions import _Row, _Source, _subjects


def item(subject: str, answer: str = "there") -> dict[str, Any]:
    return {"question": f"Where was {subject} born?", "answers": [answer]}


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_questions(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_splits(root: Path) -> None:
    put(root / "train/P19.train.json", [item("Ada"), item("Alan Turing", "London")])
    put(root / "dev/P19.dev.json", [item("Grace")])
    put(root / "test/P19.test.json", [item("Edsger")])
    put(root / "test/P40.test.json", [{"question": f"Who is {x}'s child?", "answers": ["y"]} for x in "AB"])


@pytest.mark.parametrize("below", ["", "dataset"])
def test_split_folders_are_read_from_their_root_or_the_one_above(below: str, tmp_path: Path) -> None:
    in_splits(tmp_path / below)
    put(tmp_path / "README.json", "not a question file")
    put(tmp_path / below / "test/P19.notes.json", "neither is this")
    loaded = load_questions(str(tmp_path))
    ids = {split: [(q.id, q.subject) for q in rows] for split, rows in loaded.splits.items()}
    assert ids == {
        "train": [("P19/train/00000", "Ada"), ("P19/train/00001", "Alan Turing")],
        "dev": [("P19/dev/00000", "Grace")],
        "test": [("P19/test/00000", "Edsger"), ("P40/test/00000", "A"), ("P40/test/00001", "B")],
    }
    assert loaded.splits["train"][1].answers == ("London",)


def test_where_the_folder_lies_does_not_change_the_sha256(tmp_path: Path) -> None:
    in_splits(tmp_path / "one")
    in_splits(tmp_path / "two/dataset")
    assert load_questions(str(tmp_path / "one")).sha256 == load_questions(str(tmp_path / "two")).sha256


def test_flat_folder_takes_the_split_from_file_names(tmp_path: Path) -> None:
    put(tmp_path / "P19.test.json", [item("Ada")])
    put(tmp_path / "P19.dev.json", [item("Alan")])
    loaded = load_questions(str(tmp_path))
    assert {split: rows[0].subject for split, rows in loaded.splits.items()} == {"test": "Ada", "dev": "Alan"}


def test_flat_folder_without_splits_is_one_set(tmp_path: Path) -> None:
    put(tmp_path / "P19.json", [item("Ada"), item("Alan")])
    assert [q.id for q in load_questions(str(tmp_path)).splits["all"]] == ["P19/all/00000", "P19/all/00001"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"question": ', "not valid JSON"),
        ("", "holds no questions"),
        ("[]", "holds no questions"),
        ('{"question": "Where?"}', 'line 1: "answers" is missing'),
        ("[" * 100_000, "nested too deeply"),
        ([item("Ada"), "Where?"], 'question 2: found "Where?"'),
        ([item("Ada"), {"question": "Where?"}], 'question 2: "answers" is missing'),
        ([{"answers": ["x"]}], 'question 1: "question" is missing'),
        ([item("Ada"), item("Alan") | {"answers": []}], 'question 2: "answers" is []'),
        ([item("Ada"), item("Alan") | {"answers": [None]}], '"answers", entry 1 is null'),
        ([item("Ada"), item("Alan") | {"question": 5}], '"question" is 5'),
        ([item("Ada")], "has one question only"),
        ([item("Ada"), item("Ada")], "has one question only"),
        ([*map(item, "ABCDE"), {"question": "Where was born?", "answers": ["x"]}], "holds no subject"),
    ],
)
def test_broken_file_is_refused_by_name(content: Any, said: str, tmp_path: Path) -> None:
    put(tmp_path / "P19.json", content)
    message = refusal(tmp_path)
    assert str(tmp_path / "P19.json") in message
    assert said in message


def test_bad_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "P19.json").write_bytes(b'["\xff"]')
    assert "byte 3 is not UTF-8" in refusal(tmp_path)


def test_folder_without_question_files_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "facts.json", [item("Ada")])
    assert "holds no questions" in refusal(tmp_path)


def test_file_in_the_folder_of_another_split_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "test/P19.dev.json", [item("Ada"), item("Alan")])
    assert "is named dev but lies in test" in refusal(tmp_path)


def test_files_with_and_without_split_together_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "P19.test.json", [item("Ada"), item("Alan")])
    put(tmp_path / "P20.json", [item("Ada"), item("Alan")])
    assert "P20.json does not say its split" in refusal(tmp_path)


WORDS = st.lists(st.text("abcé", min_size=1, max_size=4), min_size=1, max_size=3).map(" ".join)


@given(
    st.lists(WORDS, min_size=1, max_size=8),
    st.sampled_from(["Where is {} located?", "Who is {}'s child?", "{} was founded by whom?", "Who owns {}"]),
)
def test_subjects_that_share_no_words_are_recovered(subjects: list[str], frame: str) -> None:
    # Two that differ in their first and last words show how far the wording reaches.
    subjects = [*subjects, "x one x", "y two y"]
    rows = [
        _Row(_Source(Path("P1.json"), "P1", "all"), number, frame.format(subject), ("a",))
        for number, subject in enumerate(subjects)
    ]
    assert _subjects(rows)[0] == subjects


def test_no_test_fact_stands_in_train_under_another_wording(tmp_path: Path) -> None:
    people = ["Ada Lovelace", "Alan Turing", "Kurt Gödel", "Emmy Noether", "Marie Curie"]
    in_city = [{"question": f"In what city was {one} born?", "answers": ["x"]} for one in people]
    put(tmp_path / "train/P19.train.json", in_city)
    put(tmp_path / "test/P19.test.json", [item(one) for one in people])
    loaded = load_questions(str(tmp_path))
    assert [question.subject for question in loaded.splits["train"]] == people
    assert [question.subject for question in loaded.splits["test"]] == people
    assert loaded.notes == (
        'P19: subjects were found from 2 wordings: "In what city was ... born ?" (5), '
        '"Where was ... born ?" (5)',
    )


@pytest.mark.parametrize("name", ["P19.test.json", "P19.test.json.gz", "P19.test.jsonl", "P19.test.jsonl.gz"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("lines", [True, False])
def test_a_file_is_read_packed_or_as_lines_whatever_its_ending(
    name: str, packed: bool, lines: bool, tmp_path: Path
) -> None:
    items = [item("Ada"), item("Alan")]
    text = "\n".join(map(json.dumps, items)) if lines else json.dumps(items)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    for source in (tmp_path, tmp_path / name):
        found = load_questions(str(source)).splits["test"]
        assert [(row.id, row.subject) for row in found] == [
            ("P19/test/00000", "Ada"),
            ("P19/test/00001", "Alan"),
        ]


def test_one_relation_and_split_in_two_files_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "P19.json", [item("Ada"), item("Alan")])
    put(tmp_path / "P19.jsonl", [item("Ada"), item("Alan")])
    assert "are the same relation and split; keep one of them" in refusal(tmp_path)
