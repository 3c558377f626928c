"""A question file is read in any of its forms, and any other file is named for what it is."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from morfi.errors import InputError
from morfi.questions import load_questions, select
from morfi.questions.formats import rows_of
from morfi.questions.question import Question

ROWS: list[dict[str, Any]] = [
    {
        "id": f"q{i}",
        "relation": "city, state",
        "subject": f"Łódź {i}",
        "question": f"Where is Łódź {i}?",
        "answers": [f"Land {i}", "Πόλη"],
        "split": "test" if i % 2 else "train",
    }
    for i in range(8)
]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


FORMS = {
    "lines": LINES,
    "gzip": gzip.compress(LINES),
    "bzip2": bz2.compress(LINES),
    "xz": lzma.compress(LINES),
    "two members": bz2.compress(LINES[:9]) + bz2.compress(LINES[9:]),
    "two streams": lzma.compress(LINES[:9]) + lzma.compress(LINES[9:]),
    "CR": LINES.replace(b"\n", b"\r"),
    "CR LF": LINES.replace(b"\n", b"\r\n"),
    "CR list": json.dumps(ROWS, indent=1).encode().replace(b"\n", b"\r"),
    "list": json.dumps(ROWS, indent=1).encode("utf-8-sig"),
    "packed list": gzip.compress(b"\n\n" + json.dumps(ROWS).encode()),
    "parquet": as_parquet(ROWS),
}


def test_every_form_holds_the_same_questions(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(LINES)
    wanted = load_questions(str(tmp_path / "q.jsonl")).sha256
    with pa.output_stream(str(tmp_path / "zstd"), compression="zstd") as stream:
        stream.write(LINES)
    for name, content in FORMS.items():
        (tmp_path / name).write_bytes(content)  # what it is shows inside, not in its name
    for name in ("zstd", *FORMS):
        found = load_questions(str(tmp_path / name))
        assert (found.sha256, len(found.splits["test"])) == (wanted, 4), name


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "parquet", "list"])
def test_a_cut_file_is_refused_as_damaged(tmp_path: Path, name: str) -> None:
    content = FORMS[name]
    path = tmp_path / "q"
    for share in (0.3, 0.7, 0.95):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"cut short or damaged|not valid JSON") as refused:
            load_questions(str(path))
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest", "a ZIP archive"),
        (pickle.dumps(ROWS), "a Python pickle, which may run any program and is not opened"),
        (LINES.decode().encode("utf-16"), "is UTF-16 text; save the file as UTF-8"),
        (LINES.decode().encode("utf-16-le"), "is UTF-16 text; save the file as UTF-8"),
        (LINES.decode().encode("utf-32"), "is UTF-32 text; save the file as UTF-8"),
        (LINES.decode().encode("utf-32-be"), "is UTF-32 text; save the file as UTF-8"),
        (lzma.compress(LINES, format=lzma.FORMAT_ALONE), "is LZMA data of before .xz"),
        (
            gzip.compress(as_parquet(ROWS)),
            "unpacked from gzip, is Parquet; unpack it and give the file inside",
        ),
        (gzip.compress(gzip.compress(LINES)), "unpacked from gzip, is gzip data; unpack it and give"),
        (lzma.compress(bz2.compress(LINES)), "unpacked from xz, is bzip2 data; unpack it and give"),
        (gzip.compress(b"<!DOCTYPE html><html>", mtime=0), "unpacked from gzip, is a web page, not the file"),
        (bz2.compress(pickle.dumps(ROWS)), "unpacked from bzip2, is a Python pickle"),
        (gzip.compress(LINES.decode().encode("utf-16")), "unpacked from gzip, is UTF-16 text"),
        (bz2.compress(LINES) + b"\n" + LINES[:50], "bzip2 data cut short or damaged"),
        (lzma.compress(LINES) + b"\n" + LINES[:50], "xz data cut short or damaged"),
        (gzip.compress(LINES) + b"\n" + LINES[:50], "gzip data cut short or damaged"),
        (json.dumps({"data": ROWS}).encode(), 'line 1: a JSON object that holds its questions in "data";'),
        (json.dumps({"v": [1], "a": ROWS, "b": ROWS}, indent=1).encode(), 'holds its questions in "a", "b";'),
        (b'{"data": [\n' + LINES.replace(b"\n", b",\n") + b"\n]}", 'holds its questions in "data"'),
        (b'{"id": 1,\n "relation": 2}', "line 1: a JSON object over several lines"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "the pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page, not the file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"ARROW1\0\0", "an Arrow file; save it as Parquet"),
        (b"id,relation,subject\n1,P17,x\n", "line 1: looks like comma- or tab-separated values"),
        (b'{\n "id": 1\n}', "line 1: a JSON object over several lines"),
        (b'[{"id": "a"},\n\n{"id": }]', "line 3, column 8: not valid JSON"),
        (b"[1]", "entry 1: found 1; expected a JSON object"),
        (json.dumps([ROWS[0], ROWS[0]]).encode(), 'entry 2: the id "q0" is taken by entry 1'),
    ],
)
def test_what_a_file_is_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_questions(str(path))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_file_of_entity_questions_is_taken(tmp_path: Path) -> None:
    asked = [{"question": row["question"], "answers": row["answers"]} for row in ROWS]
    (tmp_path / "P17.test.json").write_text(json.dumps(asked, indent=4), encoding="utf-8")
    found = load_questions(str(tmp_path / "P17.test.json"))
    assert [(q.id, q.relation, q.text) for q in found.splits["test"]][:2] == [
        ("P17/test/00000", "P17", "Where is Łódź 0?"),
        ("P17/test/00001", "P17", "Where is Łódź 1?"),
    ]
    (tmp_path / "P18.test.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert {q.relation for q in load_questions(str(tmp_path / "P18.test.json")).splits["test"]} == {
        "city, state"
    }


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (("city, state",), ["city, state"]),
        (("city", "state"), ["city, state"]),
        (("P17", "city", "state", "a", "b", "c"), ["P17", "a,b,c", "city, state"]),
        (("city",), ["city"]),
        (("a",), None),
        (("city", "stat"), None),
    ],
)
def test_a_relation_with_commas_in_its_name_can_be_chosen(given: tuple[str, ...], chosen: Any) -> None:
    names = ["P17", "a,b,c", "city, state", *(["city"] if given == ("city",) else [])]
    asked = [Question(name, name, "s", "Where?", ("x",)) for name in names]
    if chosen is None:
        with pytest.raises(InputError, match='available: P17, "a,b,c", "city, state"'):
            select(asked, relations=given)
    else:
        assert [question.relation for question in select(asked, relations=given)] == chosen


def test_blanks_around_a_relation_name_are_not_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{**ROWS[0], "relation": "P17 "}, {**ROWS[1], "relation": " P17"}, {**ROWS[2], "relation": "P17"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = load_questions(str(path))
    assert {q.relation for asked in found.splits.values() for q in asked} == {"P17"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_rows_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([b"", *FORMS.values()]))
    place = data.draw(st.integers(0, len(whole)))
    content = whole[:place] + data.draw(st.binary(max_size=6)) + whole[place + data.draw(st.integers(0, 9)) :]
    path = tmp_path / "any"
    path.write_bytes(content)
    said = ""
    try:
        assert len([*rows_of(path)]) <= len(ROWS) + 7
    except InputError as refused:
        said = str(refused)
    assert "\n" not in said
    assert not said or str(path) in said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("id", b"q1", '"id" is "b\'q1\'"; expected a string'),
        ("id", datetime(2020, 1, 2), '"id" is "datetime.datetime(2020, 1, 2, 0, 0)"; expected a string'),
        ("subject", Decimal("1.50"), '"subject" is "Decimal(\'1.50\')"; expected a string'),
        ("answers", [b"x"], '"answers", entry 1 is "b\'x\'"; expected a string'),
        ("answers", b"x", '"answers" is "b\'x\'"; expected a list'),
        ("split", b"test", '"split" is "b\'test\'"; expected train, dev or test'),
    ],
)
def test_a_value_that_json_has_no_form_for_is_shown(tmp_path: Path, key: str, value: Any, said: str) -> None:
    path = tmp_path / "q.parquet"
    path.write_bytes(as_parquet([{**ROWS[0], key: value}]))
    with pytest.raises(InputError) as refused:
        load_questions(str(path))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62] * len(ROWS), pa.timestamp("us")),
        pa.array([0] * len(ROWS), pa.timestamp("us", tz="Mars/Phobos")),
        pa.array([2**30] * len(ROWS), pa.date32()),
    ],
)
def test_columns_that_are_not_read_may_hold_anything(tmp_path: Path, column: Any) -> None:
    table = pa.Table.from_pylist(ROWS).append_column("gold", column)
    parquet.write_table(table, tmp_path / "q.parquet")
    (tmp_path / "q.jsonl").write_bytes(LINES)
    found = load_questions(str(tmp_path / "q.parquet"))
    assert found.sha256 == load_questions(str(tmp_path / "q.jsonl")).sha256
    (note,) = found.notes
    assert '"gold" is not read; what counts is "answers"' in note
    parquet.write_table(table.drop_columns(["answers"]), tmp_path / "q.parquet")
    with pytest.raises(InputError, match='"answers" is missing; "gold" is not read'):
        load_questions(str(tmp_path / "q.parquet"))
    parquet.write_table(table.select(["gold"]), tmp_path / "q.parquet")
    with pytest.raises(InputError, match='row 1: "id" is missing'):
        load_questions(str(tmp_path / "q.parquet"))


def test_a_column_given_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table.append_column("id", table["id"]), tmp_path / "q.parquet")
    with pytest.raises(InputError, match='the column "id" stands twice; give it once'):
        load_questions(str(tmp_path / "q.parquet"))
