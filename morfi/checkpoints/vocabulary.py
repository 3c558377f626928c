"""The vocabulary that a directory's tokenizer files describe, and whether two of them are one tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints.model_files import TOKENIZER_FILES
from morfi.checkpoints.own_tokenizer import (
    auto_tokenizer,
    has_slow_vocabulary,
    has_vocabulary,
    known_text,
    own_tokenizer,
)
from morfi.checkpoints.tokenizer import control_tokens
from morfi.checkpoints.weights import read_json
from morfi.errors import InputError

# What settings of a tokenizer say about prompts and answers; the rest is of batches, or of who saved them.
_SAID = ("bos_token", "eos_token", "chat_template", "add_bos_token", "add_eos_token")


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of a vocabulary."""

    id: int
    text: str


def highest_token(directory: Path) -> Token | None:
    """The token with the highest id that `directory`'s tokenizer can produce, None if it has no tokenizer."""
    return max(_tokens(directory), key=lambda token: token.id, default=None)


def check_same_tokenizer(folder: Path, base_dir: Path) -> None:
    """Raises InputError where `folder` brings a tokenizer that works otherwise than that of `base_dir`.

    Files that were only saved again, by another version or with another padding, are the same tokenizer.
    """
    if not brings_tokenizer(folder, base_dir):
        return
    names = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if all(_same_bytes(folder / name, base_dir / name) for name in names):
        return
    if _behaviour(folder) != _behaviour(base_dir):
        raise InputError(
            f"{folder} comes with a tokenizer that is not that of its base {base_dir}, and a live "
            "engine keeps the base's; evaluate it by itself, with morfi eval --ckpt"
        )


def brings_tokenizer(adapter_dir: Path, base_dir: Path) -> bool:
    """Whether an adapter's folder holds a tokenizer of its own, whose files then count and not its base's.

    Raises InputError for settings of a tokenizer without its vocabulary, unless the base has the same ones.
    """
    if has_vocabulary(adapter_dir):
        return True
    for name in TOKENIZER_FILES:
        path = adapter_dir / name
        if path.is_file() and not _is_said_by(path, base_dir / name):
            raise InputError(
                f"{path} differs from that of the base {base_dir}, and the adapter has no vocabulary beside "
                "it; save the whole tokenizer with the adapter, or remove the file"
            )
    return False


def _is_said_by(path: Path, other: Path) -> bool:
    """Whether `other` says all that decides about prompts and answers in the tokenizer's file `path`."""
    if path.suffix != ".json" or path.name == "added_tokens.json":
        return _same_bytes(path, other)
    content, theirs = read_json(path), read_json(other) if other.is_file() else {}
    return all(_text(content[key]) == _text(theirs.get(key)) for key in _SAID if content.get(key) is not None)


def _text(token: Any) -> Any:
    """A special token's text, which older files keep among its properties."""
    return token.get("content") if isinstance(token, dict) else token


def _same_bytes(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _behaviour(directory: Path) -> dict[str, Any]:
    """All of a tokenizer that decides what becomes of a text, and where an answer ends."""
    # Whether BOS is added besides is decided by the model, not by these files.
    tokenizer = own_tokenizer(directory, auto_tokenizer(directory))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if backend is None else json.loads(backend.to_str())
    # Padding and truncation are set by whoever used it last.
    decisive = {key: value for key, value in state.items() if key not in ("padding", "truncation", "version")}
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return {"vocabulary": tokenizer.get_vocab(), "special": special, "backend": decisive} | {
        "chat_template": tokenizer.chat_template
    }


def _tokens(directory: Path) -> Iterator[Token]:
    tokenizer, added = directory / "tokenizer.json", directory / "added_tokens.json"
    if has_slow_vocabulary(directory):
        tokenizer = directory / "vocab.json"
    try:
        if tokenizer.name == "vocab.json":
            yield from (Token(int(number), text) for text, number in read_json(tokenizer).items())
        elif tokenizer.is_file():
            content = read_json(tokenizer)
            yield from (
                Token(int(token["id"]), token["content"]) for token in content.get("added_tokens") or []
            )
            vocab = content["model"]["vocab"]
            # Unigram models list [text, score] pairs in the order of ids, the others map text to id.
            pairs = (
                vocab.items() if isinstance(vocab, dict) else ((pair[0], i) for i, pair in enumerate(vocab))
            )
            yield from (Token(int(number), text) for text, number in pairs)
        if added.is_file():
            yield from (Token(int(number), text) for text, number in read_json(added).items())
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{tokenizer} is not a tokenizer's file ({error!r}); save the tokenizer again"
        ) from error


def newline_tokens(tokenizer: Any) -> list[int]:
    """The ids of every token whose text holds a newline: generating one of them ends an answer."""
    return [index for index, piece in enumerate(_pieces(tokenizer)) if "\n" in piece]


def line_ends(tokenizer: Any) -> frozenset[int]:
    """The ids of every token whose text begins with a newline: nothing of it belongs to the line before.

    As a token decodes after others: some tokenizers drop a blank that stands first in a text. Special tokens,
    which answers leave out, are not among them.
    """
    before = tokenizer.encode(known_text(tokenizer), add_special_tokens=False)
    special = control_tokens(tokenizer)
    possible = [index for index in newline_tokens(tokenizer) if index not in special]
    shown = tokenizer.batch_decode([before, *([*before, index] for index in possible)])
    head = shown[0]
    return frozenset(
        index for index, text in zip(possible, shown[1:], strict=True) if text.startswith(f"{head}\n")
    )


def _pieces(tokenizer: Any) -> list[str]:
    # Numbers may have gaps: the last is not the number of tokens less one.
    n = 1 + max(tokenizer.get_vocab().values())
    found: list[str] = tokenizer.batch_decode([[index] for index in range(n)])
    return found
