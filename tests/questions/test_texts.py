"""Texts that are no questions, from plain lines and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.questions.texts import load_texts


def load(tmp_path: Path, content: str | bytes) -> list[tuple[str, str]]:
    file = tmp_path / "texts"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(one.id, one.text) for one in load_texts(str(file)).splits["all"]]


def test_plain_lines_are_known_by_their_numbers(tmp_path: Path) -> None:
    assert load(tmp_path, "one \n\n[two]\r\n3") == [("1", "one "), ("3", "[two]"), ("4", "3")]


def test_json_lines_bring_texts_of_several_lines_and_ids(tmp_path: Path) -> None:
    rows = [{"text": "a\nb", "id": "x"}, {"text": "{c}", "more": 1}]
    assert load(tmp_path, "\n".join(map(json.dumps, rows))) == [("x", "a\nb"), ("2", "{c}")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n \n", "holds no texts"),
        (b"\xff\xfe", "is not UTF-8"),
        ('{"text": "a"}\nb', "line 2 is not JSON"),
        ('{"text": "a"}\n[1]', "line 2: found .1.; expected a JSON object"),
        ('{"question": "a"}', 'line 1: "text" is null'),
        ('{"text": 3}', 'line 1: "text" is 3'),
        ('{"text": "a", "id": ""}', 'line 1: "id" is blank'),
        ('{"text": "a", "id": "2"}\n{"text": "b"}', 'line 2: the id "2" is taken by line 1'),
    ],
)
def test_other_files_are_refused_by_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, content)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_texts(str(tmp_path / "none"))


@given(content=st.binary(max_size=60))
def test_any_bytes_are_texts_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        found = load(tmp_path_factory.mktemp("any"), content)
    except InputError:
        return
    assert all(text.strip() for _, text in found)
