"""The questions of an experiment and their prompts in tokens, before any model is there to answer."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints.tokenizer import open_tokenizer
from morfi.errors import InputError
from morfi.questions.exemplars import no_shots
from morfi.questions.prompts import ASKED, PLAIN, worded
from morfi.questions.question import Question
from morfi.training.examples import ANSWER_END

_PIECE = re.compile(r" ?[^\W\d_]{1,6}|\d| ?[^\w\s]+|\s|.")
TokenIds = Sequence[Hashable]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Texts to token ids: the model's tokenizer, or pieces of words where it is not here."""

    tokenizer: Any = None

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """The token ids of each text, those that are put in front included."""
        if self.tokenizer is None:
            return [_PIECE.findall(text) for text in texts]
        return [tuple(ids) for ids in self.tokenizer(list(texts))["input_ids"]] if texts else []

    def zero_shot(self, questions: Sequence[Question]) -> dict[str, int]:
        """The tokens of the prompt of each question without exemplars, by its id."""
        prompts = worded([no_shots(list(questions))], PLAIN).prompts
        encoded = self.encode([prompt.text for prompt in prompts])
        return {prompt.question.id: len(ids) for prompt, ids in zip(prompts, encoded, strict=True)}

    def answers(self, questions: Sequence[Question]) -> dict[str, int]:
        """The tokens that the right answer to each question adds to its prompt, and the end of its line."""
        heads = [ASKED.format(question=one.text) for one in questions]
        wholes = [f"{head} {one.answers[0]}{ANSWER_END}" for head, one in zip(heads, questions, strict=True)]
        pairs = zip(self.encode(heads), self.encode(wholes), strict=True)
        return {
            one.id: max(1, len(whole) - len(head))
            for one, (head, whole) in zip(questions, pairs, strict=True)
        }


def encoder_of(folder: Path | None, bos: str) -> tuple[Encoder, str | None]:
    """How the model in `folder` writes prompts, and a sentence of what is assumed where it does not say."""
    if folder is not None:
        try:
            return Encoder(open_tokenizer(folder, bos).tokenizer), None
        except (InputError, OSError, ValueError):
            pass  # a folder of a configuration alone
    return Encoder(), "the model's tokenizer is not here: a token is taken to be up to six letters of a word"


def n_cached(prompts: Sequence[TokenIds], batch: int, n_answers: int, block: int) -> int:
    """The prompt tokens that vLLM's prefix cache gives to `n_answers` of each prompt.

    It keeps whole blocks, and begins empty for every batch; the last token of a prompt is always computed.
    """
    total = 0
    for start in range(0, len(prompts), batch):
        seen: set[tuple[Hashable, ...]] = set()
        for ids in prompts[start : start + batch]:
            n_full = (len(ids) - 1) // block
            begun = [tuple(ids[: (n + 1) * block]) for n in range(len(ids) // block)]
            n_hit = next((n for n in range(n_full) if begun[n] not in seen), n_full)
            total += block * (n_hit + (n_answers - 1) * n_full)
            seen.update(begun)
    return total


def mean(values: Mapping[str, int]) -> float:
    """The mean of some counts; 0 of none."""
    return sum(values.values()) / len(values) if values else 0.0
