from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from morfi.checkpoints.vocabulary import Token, check_same_tokenizer, highest_token
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


def test_a_tokenizer_that_was_only_saved_again_is_the_same(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_tokenizer().save_pretrained(base)
    again = make_tokenizer()
    again.padding_side = "left"
    again.backend_tokenizer.enable_padding(length=7, pad_id=2, pad_token="<unk>")
    again.backend_tokenizer.enable_truncation(5)
    again.save_pretrained(adapter)
    assert (adapter / "tokenizer.json").read_bytes() != (base / "tokenizer.json").read_bytes()
    check_same_tokenizer(adapter, base)


@pytest.mark.parametrize(
    "changes",
    [{"adds_bos": False}, {"has_bos": False, "adds_bos": False}, {"chat_template": "{{ messages }}"}],
)
def test_a_tokenizer_that_works_otherwise_is_refused(
    tmp_path: Path, make_tokenizer: Callable[..., Any], changes: dict[str, Any]
) -> None:
    make_tokenizer().save_pretrained(tmp_path / "base")
    make_tokenizer(**changes).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="a tokenizer that is not that of its base"):
        check_same_tokenizer(tmp_path / "adapter", tmp_path / "base")


def test_an_adapter_without_a_tokenizer_takes_its_bases(tmp_path: Path) -> None:
    check_same_tokenizer(tmp_path, tmp_path / "gone")


def test_a_tokenizer_that_cannot_be_loaded_is_refused_by_name(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="adapter holds a tokenizer that transformers does not load"):
        check_same_tokenizer(tmp_path / "adapter", tmp_path / "base")
