"""Sampling on a tiny model: a setting for each prompt, and seeds that decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from morfi.engine.protocol import Completion, Sampling
from morfi.errors import InputError, MorfiError
from morfi.serve.engine import Engine

CONTEXT = 128


@pytest.fixture(scope="module")
def engine(tiny_base: Callable[[str], Path], starts_vllm: None) -> Iterator[Engine]:
    """An engine whose steps hold hardly more than one prompt."""
    base = tiny_base("llama")
    overrides: dict[str, Any] = {"max_num_batched_tokens": CONTEXT, "kv_cache_memory_bytes": 1 << 24}
    with Engine(base, dtype="float32", context=CONTEXT, overrides=overrides) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 259, (length,), generator=generator).tolist() for length in range(70, 94, 2)]


def tokens(answered: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[answer.token_ids for answer in answers] for answers in answered]


def test_seeded_samples_of_prompts_that_do_not_fit_one_step_are_the_same_twice(
    engine: Engine, prompts: list[list[int]]
) -> None:
    # With prompts computed in parts vLLM winds the random generator back, which torch cannot do on a CPU.
    runs = []
    for _ in range(2):
        engine.reset_prefix_cache()
        runs.append(tokens(engine.generate(prompts, Sampling(temperature=1.0, top_k=40, n=4, seed=5))))
    assert runs[0] == runs[1]
    assert any(len(set(samples)) > 1 for samples in runs[0])


def test_each_prompt_is_answered_as_its_own_sampling_says(engine: Engine, prompts: list[list[int]]) -> None:
    greedy, drawn = Sampling(max_tokens=3), Sampling(max_tokens=2, temperature=1.0, n=3, seed=1)
    samplings = [greedy if number % 2 else drawn for number in range(len(prompts))]
    mixed = engine.generate(prompts, samplings)
    assert [len(answers) for answers in mixed] == [each.n for each in samplings]
    assert all(
        len(answer.token_ids) <= each.max_tokens
        for each, answers in zip(samplings, mixed, strict=True)
        for answer in answers
    )
    alone = engine.generate(prompts, greedy)
    assert tokens(mixed)[1::2] == tokens(alone)[1::2]


def test_equal_samplings_share_one_object(
    engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    core, given = engine._llm.llm_engine, []
    add_request = core.add_request

    def added(*each: Any) -> Any:
        given.append(each[2])
        return add_request(*each)

    monkeypatch.setattr(core, "add_request", added)
    engine.generate(prompts, [Sampling(max_tokens=1, seed=number % 2) for number in range(len(prompts))])
    assert len(given) == len(prompts)
    assert len({id(one) for one in given}) == 2


def test_samplings_that_are_not_one_for_each_prompt_are_refused(
    engine: Engine, prompts: list[list[int]]
) -> None:
    with pytest.raises(InputError, match=f"2 samplings were given for {len(prompts)} prompts"):
        engine.generate(prompts, [Sampling()] * 2)


def test_progress_counts_every_completion_once(engine: Engine, prompts: list[list[int]]) -> None:
    counted: list[int] = []
    wanted = [Sampling(max_tokens=2, temperature=1.0, n=n % 3 + 1) for n in range(12)]
    engine.generate(prompts, wanted, counted.append)
    assert sum(counted) == 24


@pytest.mark.parametrize("token", [-1, 10**9])
def test_a_token_id_that_the_model_has_not_is_refused(engine: Engine, token: int) -> None:
    with pytest.raises(InputError, match=f"prompt 0 of 1 holds the token id {token}; expected 0 to"):
        engine.generate([[5, token]], Sampling(max_tokens=1))


def test_a_closed_engine_says_so(engine: Engine) -> None:  # the last test of the file
    engine.close()
    for use in (lambda: engine.generate([[5]], Sampling()), engine.reset_prefix_cache):
        with pytest.raises(MorfiError, match="the engine is closed"):
            use()
