"""Training examples: questions as token ids, and the order in which batches present them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.questions.prompts import check_no_control, zero_shot
from morfi.questions.question import Question

if TYPE_CHECKING:
    import torch

# Ends an answer, as in a few-shot prompt. Evaluation stops at the first token that holds a newline, every
# tokenizer has one, and base models know it as the end of a line, which is not so for their EOS.
ANSWER_END = "\n"


@dataclass(frozen=True, slots=True)
class Example:
    """A question and its first answer; the loss is on the tokens from `n_prompt` on, the end included."""

    question_id: str
    token_ids: tuple[int, ...]
    n_prompt: int

    @property
    def n_targets(self) -> int:
        """The tokens that carry loss."""
        return len(self.token_ids) - self.n_prompt


def encode_examples(questions: Sequence[Question], tokenizer: Any, context: int) -> tuple[Example, ...]:
    """The examples of `questions`, in order: the 0-shot prompt of an evaluation, " answer" and a newline.

    Raises InputError where a text holds a control token, where a prompt's own token ids are not the beginning
    of the whole, where the tokenizer writes no newline, and where an example is longer than `context`.
    """
    if not questions:
        return ()
    prompts = zero_shot(questions, tokenizer)
    texts = [f"{prompt.text} {prompt.question.answers[0]}{ANSWER_END}" for prompt in prompts]
    encoded = tokenizer(texts)["input_ids"]
    ends = tokenizer.batch_decode([ids[-1:] for ids in encoded])
    examples = []
    for prompt, ids, end in zip(prompts, encoded, ends, strict=True):
        question, n_prompt = prompt.question, len(prompt.token_ids)
        if ANSWER_END in question.answers[0]:
            raise InputError(
                f"question {question.id}: the answer {question.answers[0]!r} holds a newline, which ends an "
                "answer; take it out"
            )
        # A tokenizer that ends every text with a special token would hide the newline behind it.
        if ANSWER_END not in end or tuple(ids[:n_prompt]) != prompt.token_ids or len(ids) == n_prompt:
            raise InputError(
                f"question {question.id}: the tokenizer does not write prompt, answer "
                f"{question.answers[0]!r} and newline one after the other, so that an evaluation would see "
                "other tokens than the training; leave the question out or take another model"
            )
        if len(ids) > context:
            raise InputError(
                f"question {question.id}: prompt and answer have {len(ids)} tokens, the model takes "
                f"{context}; leave the question out"
            )
        examples.append(Example(question.id, tuple(ids), n_prompt))
    check_no_control(
        [(one.question_id, text, one.token_ids) for one, text in zip(examples, texts, strict=True)], tokenizer
    )
    return tuple(examples)


def epoch_order(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch as indices: a permutation drawn from seed and epoch, cut every `batch`.

    Inside a batch the indices are sorted by length, so that micro-batches cut from it need little padding,
    while which examples share an optimizer step is left to chance.
    """
    order = list(range(len(lengths)))
    random.Random(f"order/{seed}/{epoch}").shuffle(order)  # noqa: S311 - a reproducible draw, not a secret
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    return [sorted(indices, key=lambda index: (lengths[index], index)) for indices in batches]


class MicroBatches:
    """The micro-batches of one epoch after another, padded to their own longest example.

    What `transformers.Trainer` asks of a data loader: a length, a `dataset`, `set_epoch` and iteration.
    """

    def __init__(self, dataset: Sequence[Example], batch: int, micro_batch: int, seed: int) -> None:
        self.dataset = dataset
        self._batch, self._micro_batch, self._seed = batch, micro_batch, seed
        self._epoch = 0

    def __len__(self) -> int:
        return sum(-(-len(indices) // self._micro_batch) for indices in self._order())

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for indices in self._order():
            for start in range(0, len(indices), self._micro_batch):
                yield collate([self.dataset[index] for index in indices[start : start + self._micro_batch]])

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration that of `epoch`, from 0."""
        self._epoch = epoch

    def _order(self) -> list[list[int]]:
        lengths = [len(example.token_ids) for example in self.dataset]
        return epoch_order(lengths, self._batch, self._seed, self._epoch)


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """The tensors of a micro-batch: `input_ids`, the places whose logits are needed, and their targets.

    input_ids: [n_examples, n_longest], padded on the right, where a causal model needs no mask: no token
    sees what comes after it. rows, columns, targets: [n_targets]; the logits at (row, column) predict the
    target.
    """
    import torch

    # The last token is only ever predicted.
    longest = max(len(example.token_ids) for example in examples) - 1
    input_ids = torch.zeros((len(examples), longest), dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, example in enumerate(examples):
        seen = example.token_ids[:-1]
        input_ids[row, : len(seen)] = torch.tensor(seen)
        rows += [row] * example.n_targets
        columns += range(example.n_prompt - 1, len(seen))
        targets += example.token_ids[example.n_prompt :]
    return {
        "input_ids": input_ids,
        "rows": torch.tensor(rows),
        "columns": torch.tensor(columns),
        "targets": torch.tensor(targets),
    }
