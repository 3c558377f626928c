from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.questions.prompts import ASKED
from morfi.questions.question import Question
from morfi.training.examples import Example, MicroBatches, collate, encode_examples, epoch_order

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = st.text(st.characters(exclude_characters="\n<", exclude_categories=["Cs"]), min_size=1, max_size=20)


def question(text: str = "Where is Aa?", answer: str = "Peru") -> Question:
    return Question("q", "P17", "Aa", text, (answer, "Earth"))


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer()


@given(text=WORDS, answer=WORDS)
def test_the_loss_is_on_the_first_answer_and_a_newline_after_the_prompt_of_an_evaluation(
    tokenizer: PreTrainedTokenizerFast, text: str, answer: str
) -> None:
    [example] = encode_examples([question(text, answer)], tokenizer, context=500)
    prompt_ids = tokenizer(ASKED.format(question=text))["input_ids"]
    assert list(example.token_ids[: example.n_prompt]) == prompt_ids
    assert tokenizer.decode(example.token_ids[example.n_prompt :]) == f" {answer}\n"
    assert example.n_targets == len(f" {answer}\n".encode())


def test_bos_stands_only_where_the_tokenizer_puts_it(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> None:
    with_bos, without = (
        encode_examples([question()], make_tokenizer(adds_bos=adds), 500)[0] for adds in (True, False)
    )
    assert with_bos.token_ids == (0, *without.token_ids)
    assert 0 not in without.token_ids


def test_no_questions_give_no_examples(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode_examples([], tokenizer, 10) == ()


def test_an_answer_over_two_lines_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"question q: the answer 'Peru\\nLima' holds a newline"):
        encode_examples([question(answer="Peru\nLima")], tokenizer, 500)


def test_an_example_longer_than_the_context_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    length = len(encode_examples([question()], tokenizer, 500)[0].token_ids)
    assert encode_examples([question()], tokenizer, length)
    with pytest.raises(
        InputError, match=f"question q: prompt and answer have {length} tokens, the model takes"
    ):
        encode_examples([question()], tokenizer, length - 1)


def test_an_answer_with_a_control_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = Question("q7", "P17", "Lima", "Which country is Lima in?", ("Peru</s>",))
    with pytest.raises(InputError, match=r"question q7: .*control token \(</s>\)"):
        encode_examples([asked], tokenizer, 500)


class Joining:
    """A tokenizer that changes what the byte tokenizer gives for a text that holds an answer."""

    def __init__(self, inner: Any, change: Callable[[list[int]], list[int]]) -> None:
        self._inner, self._change = inner, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, texts: Any, **options: Any) -> Any:
        if isinstance(texts, str):
            return self._inner(texts, **options)
        encoded = self._inner(texts)["input_ids"]
        return {
            "input_ids": [
                ids if text.endswith(":") else self._change(ids)
                for text, ids in zip(texts, encoded, strict=True)
            ]
        }

    def batch_decode(self, ids: list[list[int]]) -> list[str]:
        return list(self._inner.batch_decode(ids))


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: [*ids[:3], 200, *ids[4:]],  # another token inside the prompt
        lambda ids: ids[:-1],  # no newline
        lambda ids: [*ids, 1],  # a special token after every text
        lambda ids: ids[:5],
    ],
)
def test_a_tokenizer_that_joins_or_drops_is_refused(
    tokenizer: PreTrainedTokenizerFast, change: Callable[[list[int]], list[int]]
) -> None:
    with pytest.raises(InputError, match="question q: the tokenizer does not write prompt, answer 'Peru'"):
        encode_examples([question()], Joining(tokenizer, change), 500)


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=70),
    batch=st.integers(1, 33),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_an_epoch_is_a_permutation_in_whole_batches(
    lengths: list[int], batch: int, seed: int, epoch: int
) -> None:
    batches = epoch_order(lengths, batch, seed, epoch)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert [len(indices) for indices in batches[:-1]] == [batch] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= batch
    for indices in batches:
        assert [lengths[i] for i in indices] == sorted(lengths[i] for i in indices)
    assert batches == epoch_order(lengths, batch, seed, epoch)


def test_composition_changes_with_epoch_and_seed_and_not_with_the_lengths() -> None:
    lengths = list(range(64))
    first = [set(indices) for indices in epoch_order(lengths, 8, 0, 0)]
    assert first != [set(indices) for indices in epoch_order(lengths, 8, 0, 1)]
    assert first != [set(indices) for indices in epoch_order(lengths, 8, 1, 0)]
    assert first == [set(indices) for indices in epoch_order(lengths[::-1], 8, 0, 0)]


def test_micro_batches_hold_every_example_once_with_little_padding() -> None:
    examples = [Example(str(n), tuple(range(n + 2)), n) for n in range(1, 22)]
    batches = MicroBatches(examples, batch=8, micro_batch=4, seed=0)
    micro = list(batches)
    assert len(micro) == len(batches) == 2 + 2 + 2
    assert sum(len(each["input_ids"]) for each in micro) == len(examples)
    assert sorted(len(each["targets"]) for each in micro) == [2, 8, 8, 8, 8, 8]
    order = [each["input_ids"].tolist() for each in micro]
    assert order == [each["input_ids"].tolist() for each in batches]
    batches.set_epoch(1)
    assert order != [each["input_ids"].tolist() for each in batches]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=6))
def test_every_target_is_predicted_from_the_token_before_it(shapes: list[tuple[int, int]]) -> None:
    ids = itertools.count(1)
    examples = [
        Example(str(i), tuple(next(ids) for _ in range(n_prompt + n_answer)), n_prompt)
        for i, (n_prompt, n_answer) in enumerate(shapes)
    ]
    made = collate(examples)
    seen = made["input_ids"][made["rows"], made["columns"]].tolist()
    # Ids are numbered through, so that the next token is the next number.
    assert [token + 1 for token in seen] == made["targets"].tolist()
    assert made["targets"].tolist() == [t for e in examples for t in e.token_ids[e.n_prompt :]]
    assert made["input_ids"].shape == (len(examples), max(len(e.token_ids) for e in examples) - 1)
