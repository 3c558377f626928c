from __future__ import annotations

import json
from pathlib import Path

import pytest

from morfi.checkpoints.vocabulary import Token, highest_token
from morfi.errors import InputError


def test_the_highest_id_is_found_in_each_form_of_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    added = [{"id": 9, "content": "<new>"}]
    path.write_text(json.dumps({"model": {"vocab": {"b": 1, "a": 4}}}))
    assert highest_token(tmp_path) == Token(4, "a")
    path.write_text(json.dumps({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": None}))
    assert highest_token(tmp_path) == Token(1, "b")
    path.write_text(json.dumps({"model": {"vocab": {"a": 4}}, "added_tokens": added}))
    assert highest_token(tmp_path) == Token(9, "<new>")


def test_added_tokens_count_without_a_tokenizer_file(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 70, "<x>": 69}')
    assert highest_token(tmp_path) == Token(70, "<pad>")


def test_a_folder_without_a_tokenizer_has_no_tokens(tmp_path: Path) -> None:
    assert highest_token(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {}}', '{"model": {"vocab": {"a": "x"}}}'])
def test_a_broken_tokenizer_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        highest_token(tmp_path)
