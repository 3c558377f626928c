from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from morfi.checkpoints.vocabulary import (
    Token,
    brings_tokenizer,
    check_same_tokenizer,
    highest_token,
    newline_tokens,
)
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


def test_the_highest_id_of_a_vocabulary_with_merges_is_found(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 7, "c": 3}')
    (tmp_path / "merges.txt").write_text("")
    assert highest_token(tmp_path) == Token(7, "b")


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


def test_a_tokenizer_of_a_family_that_needs_bos_is_the_same_in_an_adapters_folder(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    for name in ("base", "adapter"):
        made = make_tokenizer(adds_bos=False)
        made.add_special_tokens({"bos_token": "<bos>"})
        made.save_pretrained(tmp_path / name)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "gemma3_text"}))
    path = tmp_path / "adapter" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    check_same_tokenizer(tmp_path / "adapter", tmp_path / "base")


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
    with pytest.raises(InputError, match=r"tokenizer in .*adapter cannot be loaded"):
        check_same_tokenizer(tmp_path / "adapter", tmp_path / "base")


def test_a_tokenizer_in_vocab_json_and_merges_txt_is_the_adapters_own(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    make_tokenizer().save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}
    (adapter / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match=r"a tokenizer in vocab\.json only; expected tokenizer\.json"):
        brings_tokenizer(adapter, tmp_path / "base")
    (adapter / "merges.txt").write_text("#version: 0.2\na b\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    assert brings_tokenizer(adapter, tmp_path / "base")
    with pytest.raises(InputError, match="a tokenizer that is not that of its base"):
        check_same_tokenizer(adapter, tmp_path / "base")


def test_settings_of_a_tokenizer_without_its_vocabulary_are_the_bases_or_refused(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    make_tokenizer().save_pretrained(tmp_path / "base")
    make_tokenizer(chat_template="{{ messages }}").save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer.json").unlink()
    with pytest.raises(
        InputError, match=r"chat_template\.jinja differs from that of the base .*no vocabulary"
    ):
        brings_tokenizer(tmp_path / "adapter", tmp_path / "base")
    (tmp_path / "adapter" / "chat_template.jinja").unlink()
    path = tmp_path / "adapter" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"padding_side": "left", "model_max_length": 77}))
    assert not brings_tokenizer(tmp_path / "adapter", tmp_path / "base")
    path.write_text(json.dumps(config | {"eos_token": "<s>"}))
    with pytest.raises(InputError, match=r"tokenizer_config\.json differs from that of the base"):
        brings_tokenizer(tmp_path / "adapter", tmp_path / "base")


def test_newlines_are_found_in_a_vocabulary_whose_numbers_have_gaps() -> None:
    class Gaps:
        """Numbers 0 and 5 of a vocabulary of two."""

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "\n": 5}

        def batch_decode(self, ids: list[list[int]]) -> list[str]:
            return [{0: "a", 5: "\n"}.get(one, "") for (one,) in ids]

    assert newline_tokens(Gaps()) == [5]
