"""A request whose numbers are not finite fails by name and leaves nothing behind for later ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from morfi.engine.directions import Direction
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Steering
from morfi.errors import InputError, MorfiError
from morfi.serve.engine import Engine
from morfi.serve.plugin import finite

BROKEN = 200  # the token whose embedding is NaN
POISON = [0, *range(40, 50), BROKEN, *range(50, 90)]
PROMPTS = [[0, *range(start, start + 10 + start % 7)] for start in range(60, 100, 4)]


@pytest.fixture(scope="module")
def engine(tiny_base: Callable[[str], Path], starts_vllm: None) -> Iterator[Engine]:
    """An engine on a model with a broken token, with few blocks of KV cache: each is soon used again."""
    base = tiny_base("llama")
    with Engine(base, dtype="float32", context=128, overrides={"num_gpu_blocks_override": 12}) as engine:
        # Only now: files with such weights are not loaded.
        model = engine._llm.llm_engine.model_executor.driver_worker.model_runner.get_model()
        model.model.embed_tokens.weight.data[BROKEN] = float("nan")
        yield engine


def ask(engine: Engine) -> list[tuple[int, ...]]:
    engine.reset_prefix_cache()
    return [one.token_ids for (one,) in engine.generate(PROMPTS, Sampling(max_tokens=8))]


def test_rows_that_hold_nan_or_infinity() -> None:
    logits = torch.zeros(5, 7)
    logits[1, 3], logits[2, 6], logits[3] = float("nan"), float("inf"), float("nan")
    logits[4, :5] = float("-inf")  # tokens that may not be chosen
    assert finite.rows_not_finite(logits).tolist() == [0, 1, 1, 1, 0]


def test_an_answer_that_is_not_made_of_numbers_fails_by_name(engine: Engine) -> None:
    with pytest.raises(MorfiError, match=r"request 1 of 3: the model's logits are not finite .*weights are"):
        engine.generate([PROMPTS[0], POISON, PROMPTS[1]], Sampling(max_tokens=4))
    assert engine.generate(PROMPTS[:1], Sampling(max_tokens=4))


def test_no_later_request_changes(engine: Engine) -> None:
    before = ask(engine)
    for _ in range(4):
        with pytest.raises(MorfiError, match="not finite"):
            engine.generate([POISON] * 3, Sampling(max_tokens=4))
        assert ask(engine) == before


def test_its_batchmates_are_answered_and_vllm_alone_says_error(engine: Engine) -> None:
    from vllm import SamplingParams

    before = ask(engine)
    engine.reset_prefix_cache()
    params = SamplingParams(temperature=0, max_tokens=8, detokenize=False, logprobs=1, n=1)
    prompts = [{"prompt_token_ids": tokens} for tokens in (*PROMPTS, POISON)]
    found: list[Any] = [one.outputs[0] for one in engine._llm.generate(prompts, params, use_tqdm=False)]
    assert [tuple(one.token_ids)[: len(mine)] for one, mine in zip(found, before, strict=False)] == before
    assert (found[-1].finish_reason, found[-1].stop_reason) == ("error", finite.NOT_FINITE)
    assert not found[-1].token_ids
    assert ask(engine) == before


def test_steering_that_no_stream_can_take_is_refused(engine: Engine) -> None:
    name = engine.register(Direction(torch.ones(64)))
    for steering in ([Steering(0, name, strength=3e38)], [Steering(0, name, strength=1e17)] * 2):
        with pytest.raises(InputError, match=r"would move the residual stream by .* more than float32 can"):
            engine.generate(PROMPTS[:1], Sampling(), steering=[steering])
    engine.release(name)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("positions", ["all", (1,)])
def test_a_request_that_is_steered_too_far_by_what_it_holds_fails_by_name(
    engine: Engine, layer: int, positions: Any
) -> None:
    draw = torch.Generator().manual_seed(0)
    latent = Direction(torch.randn(64, generator=draw), 1e19 * torch.randn(64, generator=draw), bias=1e20)
    name = engine.register(latent)
    before = ask(engine)
    steering = [[], [Steering(layer, name, "ablate", positions=positions)], []]
    for _ in range(3):
        with pytest.raises(
            MorfiError, match=r"request 1 of 3: steered as asked, .* at position [01] is more"
        ):
            engine.generate(PROMPTS[:3], Sampling(max_tokens=8), steering=steering)
    assert ask(engine) == before
    engine.release(name)


@pytest.mark.parametrize(
    ("stop_reason", "steered", "message"),
    [
        (finite.NOT_FINITE, True, "its steering takes the residual stream out"),
        (finite.NOT_FINITE, False, "the weights are broken"),
        (None, False, 'vLLM ended the request with "error"'),
    ],
)
def test_a_server_says_why_there_is_no_answer(stop_reason: str, steered: bool, message: str) -> None:
    async def outputs() -> AsyncGenerator[Any, None]:
        for reason in (None, "error"):
            part = SimpleNamespace(finish_reason=reason, stop_reason=stop_reason)
            yield SimpleNamespace(outputs=[part])

    async def run() -> list[Any]:
        return [one async for one in finite.answers(outputs(), steered=steered)]

    with pytest.raises(MorfiError, match=message):
        asyncio.run(run())


def test_blocks_are_zeroed_in_every_layer_once() -> None:
    cache = torch.ones(4, 2, 3)
    finite.zero_blocks([cache, cache.view(4, 6)], [1, 3])
    assert cache.sum((1, 2)).tolist() == [6, 0, 6, 0]
