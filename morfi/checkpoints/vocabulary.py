"""What the tokenizer files of a directory say about its vocabulary, without loading a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
