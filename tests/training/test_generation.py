from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.engine.protocol import Sampling
from morfi.questions.prompts import build_prompts
from morfi.questions.question import Question
from morfi.training.generation import LiveGenerator, dev_accuracy

MAX_TOKENS = 12


def prompts_of(facts: tuple[Question, ...], folder: Path) -> list[tuple[int, ...]]:
    tokenizer = load_tokenizer(folder)
    return [p.token_ids for p in build_prompts(facts, {"P0": (), "P1": ()}, tokenizer)]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_answers_are_those_of_transformers_one_prompt_at_a_time(
    tiny_models: dict[str, Path], facts: tuple[Question, ...], architecture: str, batch: int
) -> None:
    folder = tiny_models[architecture]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    prompts = prompts_of(facts, folder)
    generator = LiveGenerator(model, load_tokenizer(folder), batch)
    answered = generator.generate(prompts, Sampling(max_tokens=MAX_TOKENS))
    newline = 3 + ord("\n")
    for prompt, [completion] in zip(prompts, answered, strict=True):
        # Gemma's own configuration has no EOS of this tokenizer's, so both ends are given.
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            eos_token_id=[1, newline],
            pad_token_id=2,
        )[0, len(prompt) :].tolist()
        assert list(completion.token_ids) == expected
        ended = expected[-1] in (1, newline)
        assert completion.finish_reason == ("stop" if ended else "length")
        assert "\n" not in completion.text


def test_output_head_reads_one_contiguous_place_of_each_row(
    tiny_models: dict[str, Path], facts: tuple[Question, ...]
) -> None:
    folder = tiny_models["gemma2"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    seen: list[tuple[bool, int]] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, read, __: seen.append((read[0].is_contiguous(), read[0].shape[1])))
    LiveGenerator(model, load_tokenizer(folder)).generate(prompts_of(facts, folder), Sampling(max_tokens=3))
    assert len(seen) > 1
    assert set(seen) == {(True, 1)}
    assert model(torch.tensor([[5, 6, 7]])).logits.shape[1] == 3  # nothing stays behind


def test_no_prompts_give_no_answers(tiny_models: dict[str, Path]) -> None:
    folder = tiny_models["llama"]
    generator = LiveGenerator(AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder))
    assert generator.generate([], Sampling()) == []
    assert dev_accuracy(generator, [], 4, "squad").n == 0


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.5), Sampling(temperature=0.5, n=2), [Sampling(), Sampling(max_tokens=3)]],
)
def test_anything_but_one_greedy_answer_is_refused(
    tiny_models: dict[str, Path], sampling: Sampling | list[Sampling]
) -> None:
    folder = tiny_models["llama"]
    generator = LiveGenerator(AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder))
    with pytest.raises(ValueError, match="greedily"):
        generator.generate([(5, 6), (7, 8)], sampling)
