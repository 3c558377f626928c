"""What the tokenizer files of a directory say about its vocabulary, and whether two are one tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints.model_files import TOKENIZER_FILES
from morfi.checkpoints.weights import read_json
from morfi.errors import InputError


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of a vocabulary."""

    id: int
    text: str


def highest_token(directory: Path) -> Token | None:
    """The token with the highest id that `directory`'s tokenizer can produce, None if it has no tokenizer."""
    return max(_tokens(directory), key=lambda token: token.id, default=None)


def check_same_tokenizer(adapter_dir: Path, base_dir: Path) -> None:
    """Raises InputError where `adapter_dir` brings a tokenizer that works otherwise than that of `base_dir`.

    Files that were only saved again, by another version or with another padding, are the same tokenizer.
    """
    if not any((adapter_dir / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return
    names = [name for name in TOKENIZER_FILES if (adapter_dir / name).is_file()]
    if all(_same_bytes(adapter_dir / name, base_dir / name) for name in names):
        return
    if _behaviour(adapter_dir) != _behaviour(base_dir):
        raise InputError(
            f"{adapter_dir} comes with a tokenizer that is not that of its base {base_dir}, and a live "
            "engine keeps the base's; evaluate it by itself, with morfi eval --ckpt"
        )


def _same_bytes(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _behaviour(directory: Path) -> dict[str, Any]:
    """All of a tokenizer that decides what becomes of a text, and where an answer ends."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{directory} holds a tokenizer that transformers does not load: {reason}"
        ) from error
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
    try:
        if tokenizer.is_file():
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
    """The ids of every token whose text begins with a newline: nothing of it belongs to the line before."""
    return frozenset(index for index, piece in enumerate(_pieces(tokenizer)) if piece.startswith("\n"))


def _pieces(tokenizer: Any) -> list[str]:
    found: list[str] = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    return found
